// A finished run: its result, next steps, and its whole report.

import { el, icon } from "./dom.js";
import { action, curves, known, samplesOverTime, skills, stats } from "./figures.js";
import { compact, date, duration, number, percent, size, stage, t } from "./i18n.js";

/** The end of the newest run as parts of the training view. `ended` is the response of /api/runs/NAME; `on` as in training.js. */
export function ending({ run, report, samples }, on) {
  const key = [run.name, run.date, report.finished];
  const talk = () => on.chat(`${run.name}:${run.stage}:${run.step}`);
  const buttons = () =>
    el(
      "div",
      { class: "ready" },
      ...(run.stage ? [el("button", { type: "button", class: "primary", onclick: talk }, t("talk"))] : []),
      ...(on.report ? [action("chart", t("report"), () => on.report(run.name))] : []),
      action("compare", t("compare"), () => on.compare(run.name)),
    );
  return [
    ["title", key, () => head(run)],
    ["state", key, () => (report.finished ? scored(report) : el("p", { class: "error" }, icon("warning"), t("run_stopped", number(lastStep(report)))))],
    ["buttons", key, buttons],
    ["stats", key, () => stats(figures(run, report))],
    ...curvePart(key, report, on.redraw),
    ...(report.scores ? [["skills", key, () => skills(report.scores)]] : []),
    ...(report.samples.length ? [["answers", key, () => answers(report.samples)]] : []),
    ["samples", key, () => samplesOverTime(samples, on.announce)],
  ];
}

/** A run's whole report as parts of a column. */
export function wholeReport(detail, on) {
  const { run, report } = detail;
  const key = [run.name, run.date];
  const rows = Object.entries(report.stages).map(([name, one]) => [
    stage(name),
    number(one.steps),
    ...[one.first_reward ?? one.first_loss, one.last_reward ?? one.last_loss].map((value) => number(value, 3)),
    known(one.bpb) ? number(one.bpb, 3) : "–",
    known(one.tokens_per_second) ? number(one.tokens_per_second) : "–",
    known(one.peak_memory_bytes) ? size(one.peak_memory_bytes) : "–",
  ]);
  const heads = ["stage", "steps", "first_loss", "last_loss", "bpb", "speed", "memory"].map((name) => t(name));
  const about = [["date", date(run.date)], ["command", report.command], ["revision", report.revision]].filter(([, value]) => value);
  return [
    ...ending(detail, on),
    ["stages", key, () => el("section", {}, el("h4", {}, t("training")), table(heads, rows))],
    ["about", key, () => el("section", {}, el("h4", {}, t("about_run")), pairs(about.map(([name, value]) => [t(name), value])))],
    ...[["data", report.data], ["machine", report.machine], ["config", report.config]].filter(([, values]) => Object.keys(values).length).map(([name, values]) => [name, key, () => el("details", {}, el("summary", {}, t(name)), pairs(Object.entries(values)))]),
    ["save", key, () => el("div", { class: "ready" }, action("down", t("save_report"), () => on.save(run.name)))],
  ];
}

/** A table that scrolls by itself where it is wide; the first column names the rows. */
export function table(heads, rows) {
  const head = heads.map((text, index) => el("th", { scope: "col", class: index ? "right" : undefined }, text));
  const line = ([name, ...cells]) => el("tr", {}, el("th", { scope: "row", dir: "auto" }, name), ...cells.map((cell) => el("td", { class: "right", dir: "auto" }, cell)));
  return el("div", { class: "wide-table", tabindex: 0 }, el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows.map(line))));
}

function pairs(values) {
  const row = ([name, value]) => el("div", {}, el("dt", {}, name), el("dd", { dir: "auto" }, String(value)));
  return el("dl", { class: "pairs" }, ...values.map(row));
}

function head(run) {
  const when = run.date ? [el("small", {}, date(run.date))] : [];
  return el("h3", {}, el("span", { dir: "auto" }, run.name), ...(run.trial ? [el("span", { class: "badge" }, t("trial"))] : []), ...when);
}

function scored({ scores, seconds }) {
  if (!scores) return el("p", { class: "ended" }, icon("check"), t("ended_in", duration(seconds)));
  const before = el("span", { class: "before" }, percent(scores.untrained));
  const after = el("strong", {}, percent(scores.trained));
  const text = el("p", {}, t("ended_in", duration(seconds)));
  return el("div", { class: "ended big" }, el("p", { class: "score", "aria-label": t("ended_score_label", percent(scores.untrained), percent(scores.trained)) }, before, " → ", after), el("p", { class: "hint" }, t("heldout_hint", number(scores.items))), text);
}

function figures(run, report) {
  return [
    ...(known(report.bpb) ? [[t("bpb"), number(report.bpb, 3)]] : []),
    ...(known(report.parameters) ? [[t("parameters"), compact(report.parameters)]] : []),
    [t("tokens"), compact(report.tokens)],
    [t("time"), duration(report.seconds)],
    [t("size"), size(run.size_bytes)],
  ];
}

const lastStep = (report) => Object.values(report.stages).at(-1)?.steps ?? 0;

/** The curves of a report as a part of a view, where it has some. */
export function curvePart(key, report, redraw) {
  const points = (what) => Object.entries(report.curve).flatMap(([name, curve]) => curve[what].map(([step, value]) => ({ stage: name, step, value })));
  const stages = Object.keys(report.curve).map((name) => ({ stage: name, steps: report.stages[name]?.steps ?? 0 }));
  const figure = curves({ stages, loss: points("loss"), bpb: points("bpb") }, redraw);
  if (!figure) return [];
  return [["curve", [key, figure.querySelector("[aria-selected=true]").dataset.tab, figure.querySelector("select").value], () => figure]];
}

function answers(samples) {
  const one = ({ prompt, answer }) => el("blockquote", { class: "sample" }, el("p", { class: "prompt", dir: "auto" }, prompt), el("p", { class: "text", dir: "auto" }, answer));
  return el("div", { class: "samples" }, el("h4", {}, t("final_answers")), ...samples.map(one));
}
