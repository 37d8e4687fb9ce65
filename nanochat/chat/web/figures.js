// Drawing of figures for runs and reports: boxes with figures, curves with tabs, skills, samples.

import { el, icon } from "./dom.js";
import { duration, number, percent, stage, t } from "./i18n.js";
import { chart, plotWidth, smoothed } from "./plot.js";

const SMOOTH = [0, 0.6, 0.9];
const chosen = { tab: "loss", smooth: 0, sample: null }; // by a person; it holds while the page is open

export const known = (value) => typeof value === "number" && Number.isFinite(value);

/** Figures in boxes: rows of [name, value, more]. */
export function stats(rows) {
  const box = ([name, ...value]) => el("div", {}, el("dt", {}, name), el("dd", {}, ...value));
  return el("dl", { class: "stats" }, ...rows.map(box));
}

/** A button with an icon and a text. */
export function action(name, text, onclick, properties = {}) {
  return el("button", { type: "button", class: "quiet", onclick, ...properties }, icon(name), text);
}

/**
 * The curves of a run as tabs. `data` is {stages: [{stage, steps}], loss, bpb, speed, lr} with points {stage, step, value}; a tab without
 * points is left out. `redraw()` is called when a person chooses another tab.
 */
export function curves(data, redraw) {
  const begins = new Map();
  let end = 0;
  for (const { stage: name, steps } of data.stages) {
    begins.set(name, end);
    end += steps;
  }
  const place = ({ stage: name, step, value }) => [(begins.get(name) ?? 0) + step, value];
  const tabs = ["loss", "reward", "bpb", "speed", "lr"].filter((name) => (data[name] ?? []).length > 1);
  if (!tabs.length) return null;
  const tab = tabs.includes(chosen.tab) ? chosen.tab : tabs[0];
  const series = data.stages.map(({ stage: name }) => {
    const own = data[tab].filter((point) => point.stage === name && known(point.value)).map(place);
    return { name: t(tab), kind: name, points: tab === "bpb" ? own : smoothed(own, chosen.smooth) };
  });
  if (tab === "loss" && data.bpb?.length) series.push({ name: t("bpb"), kind: "bpb", dots: true, points: data.bpb.map(place) });
  const all = series.flatMap((one) => one.points);
  if (all.length < 2) return null;
  const label = t("curve_label", t(tab), number(all[0][1], 2), number(all.at(-1)[1], 2), number(end));
  const borders = data.stages.map(({ stage: name }) => ({ x: begins.get(name), name: stage(name) }));
  const digits = { speed: 0, lr: 4 }[tab] ?? 3;
  const width = plotWidth();
  const drawn = chart({ width, series: series.filter((one) => one.points.length), end, borders, digits, label });
  const choose = (name) => {
    chosen.tab = name;
    redraw();
    document.querySelector(`[data-tab="${name}"]`)?.focus();
  };
  const buttons = tabs.map((name) =>
    el("button", { type: "button", role: "tab", class: "tab", "data-tab": name, "aria-selected": String(name === tab), tabindex: name === tab ? 0 : -1, onclick: () => choose(name) }, t(name)),
  );
  const list = el("div", { role: "tablist", class: "tabs", "aria-label": t("curves") }, ...buttons);
  list.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (by) choose(tabs[(tabs.indexOf(tab) + by + tabs.length) % tabs.length]);
  });
  const smooth = el("select", { class: "smooth", "aria-label": t("smoothing") }, ...SMOOTH.map((value) => el("option", { value, selected: value === chosen.smooth }, t("smooth", value))));
  smooth.addEventListener("change", () => {
    chosen.smooth = Number(smooth.value);
    redraw();
    document.querySelector(".smooth")?.focus();
  });
  return el("figure", {}, el("div", { class: "row-of-tabs" }, list, smooth), el("div", { role: "tabpanel", "aria-label": t(tab) }, drawn));
}

/** Held-out questions by skill: the untrained model's share of right answers, and the trained one's. */
export function skills(scores) {
  const rows = [...Object.entries(scores.by_skill ?? {}).sort(([a], [b]) => a.localeCompare(b)), [t("all_skills"), scores]];
  const row = ([name, { untrained, trained }]) =>
    el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "right" }, percent(untrained)), el("td", { class: "right" }, percent(trained)), el("td", {}, bar(name, untrained, trained)));
  const head = el("tr", {}, ...["skill", "untrained", "trained"].map((key) => el("th", { scope: "col", class: key === "skill" ? undefined : "right" }, t(key))), el("td"));
  return el("div", { class: "skills" }, el("h4", {}, t("heldout")), el("div", { class: "wide-table", tabindex: 0 }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows.map(row)))));
}

function bar(name, untrained, trained) {
  return el("meter", { min: 0, max: 1, value: trained ?? 0, "aria-label": `${name}: ${percent(untrained)} → ${percent(trained)}` }, percent(trained));
}

/** The model's answers to one prompt over the steps, with a slider. */
export function samplesOverTime(samples, announce) {
  const prompts = [...new Set(samples.map(({ prompt }) => prompt))];
  if (!samples.length) return el("div", { class: "samples" }, el("h4", {}, t("samples")), el("p", { class: "hint" }, t("no_samples")));
  // By default the prompt that was asked most often, of these the newest.
  const often = (prompt) => samples.filter((one) => one.prompt === prompt).length;
  const prompt = prompts.includes(chosen.sample) ? chosen.sample : prompts.reduce((best, one) => (often(one) >= often(best) ? one : best), prompts[0]);
  const root = el("div", { class: "samples" }, el("h4", {}, t("samples")));
  const draw = (wanted) => {
    const own = samples.filter((one) => one.prompt === wanted);
    const shown = el("blockquote", { class: "sample" });
    const slider = el("input", { type: "range", min: 0, max: own.length - 1, step: 1, "aria-label": t("sample_step") });
    slider.value = own.length - 1;
    const fill = () => {
      const one = own[slider.value];
      slider.setAttribute("aria-valuetext", whereOf(one));
      const asked = el(one.stage === "base" ? "span" : "p", { class: "prompt", dir: "auto" }, one.prompt);
      shown.replaceChildren(el("div", { class: "text", dir: "auto" }, asked, one.text), el("footer", {}, whereOf(one)));
    };
    slider.addEventListener("input", () => {
      fill();
      announce(own[slider.value].text);
    });
    fill();
    return [...(own.length > 1 ? [slider] : []), shown];
  };
  const body = el("div", { class: "over-time" }, ...draw(prompt));
  if (prompts.length > 1) {
    const pick = el("select", { "aria-label": t("sample_prompt") }, ...prompts.map((one) => el("option", { value: one, selected: one === prompt }, one.slice(0, 60))));
    pick.addEventListener("change", () => {
      chosen.sample = pick.value;
      body.replaceChildren(...draw(pick.value));
    });
    root.append(pick);
  }
  root.append(body);
  return root;
}

const whereOf = ({ stage: at, step }) => `${stage(at)} · ${t("step")} ${number(step)}`;

/** The stages as steps that are done, under way or to come, with the time that is left of all. */
export function stepper(stages, at, left) {
  const names = [...stages.map(({ stage: name }) => name), "evaluation"];
  const now = names.indexOf(at);
  const item = (name, index) => {
    const state = index < now ? "done" : index === now ? "now" : "ahead";
    return el("li", { class: state, "aria-current": state === "now" ? "step" : undefined }, ...(state === "done" ? [icon("check")] : []), stage(name));
  };
  const rest = known(left) ? [el("span", { class: "left" }, t("left_in_all", duration(left)))] : [];
  return el("div", { class: "stepper" }, el("ol", {}, ...names.map(item)), ...rest);
}
