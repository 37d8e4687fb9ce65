// All runs: a table, one run's report, and several runs over each other.

import * as api from "./api.js";
import { byId, el } from "./dom.js";
import { action, known } from "./figures.js";
import { table, wholeReport } from "./finished.js";
import { compact, date, duration, number, percent, size, stage, t } from "./i18n.js";
import { chart, plotWidth } from "./plot.js";
import { drawParts } from "./training.js";

const MOST = 6; // runs over each other: more colours cannot be told apart
const FILTER_FROM = 6; // runs: fewer need no filter
const ticked = new Set();
const shown = new Map();
let list = null;
let filter = "";
let at = { page: "list", names: [] };
let details = []; // of the runs in `at`
let failure = "";

const root = () => byId("runs").firstElementChild;

/** Open the list, one run (`names` has one) or a comparison. `on` does what is asked for: go(hash), chat(model), announce(text). */
export async function openRuns(names, on) {
  at = { page: names.length ? (names.length > 1 ? "compare" : "run") : "list", names };
  failure = "";
  details = [];
  shown.clear();
  root().replaceChildren(el("p", { class: "hint" }, t("loading")));
  const wanted = at;
  try {
    if (at.page === "list") list = (await api.runs()).runs;
    else details = await Promise.all(names.map((name) => api.run(name)));
  } catch (error) {
    failure = error.kind === "other" ? error.message : t(`error_${error.kind}`);
  }
  if (wanted === at) drawRuns(on);
}

/** Draw what is open once more, after the language or the window's width has changed. */
export function drawRuns(on) {
  if (failure) root().replaceChildren(el("p", { class: "error" }, failure), back(on));
  else if (at.page === "list" && list) drawList(on);
  else if (at.page === "run" && details.length) drawRun(on);
  else if (at.page === "compare" && details.length) root().replaceChildren(back(on), ...comparison());
}

const back = (on) => action("back", t("all_runs"), () => on.go("#/runs"));

function drawRun(on) {
  const parts = wholeReport(details[0], {
    announce: on.announce,
    chat: on.chat,
    redraw: () => drawRun(on),
    compare: () => {
      ticked.add(at.names[0]);
      on.go("#/runs");
    },
    save: (name) => api.saveReport(name).catch((error) => on.announce(error.message)),
  });
  drawParts(root(), [["back", 0, () => back(on)], ...parts], document.documentElement.lang, shown);
}

// The table.

function drawList(on) {
  if (!list.length) {
    root().replaceChildren(el("div", { class: "nothing" }, el("h3", {}, t("no_runs")), el("p", {}, t("no_model_text"))));
    return;
  }
  for (const name of ticked) if (!list.some((one) => one.name === name)) ticked.delete(name);
  const compare = action("compare", "", () => on.go(`#/compare/${[...ticked].map(encodeURIComponent).join("/")}`), { class: "primary" });
  const count = () => {
    compare.disabled = ticked.size < 2 || ticked.size > MOST;
    compare.lastChild.textContent = ticked.size > MOST ? t("compare_most", MOST) : t("compare_count", ticked.size);
  };
  const body = el("tbody");
  const fill = () => body.replaceChildren(...list.filter((one) => one.name.toLowerCase().includes(filter)).map((one) => row(one, count, on)));
  const search = el("input", { type: "search", class: "filter", placeholder: t("filter_runs"), "aria-label": t("filter_runs") });
  search.value = filter;
  search.addEventListener("input", () => {
    filter = search.value.trim().toLowerCase();
    fill();
  });
  const heads = ["run", "stage", "bpb", "heldout_score", "parameters", "tokens", "date", "size"];
  const head = heads.map((name, index) => el("th", { scope: "col", class: index > 1 ? "right" : undefined }, t(name)));
  fill();
  count();
  const grid = el("table", {}, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, el("span", { class: "unseen" }, t("compare"))), ...head)), body);
  root().replaceChildren(
    el("div", { class: "over-list" }, el("h3", {}, t("runs_count", list.length)), ...(list.length >= FILTER_FROM ? [search] : []), ...(list.length > 1 ? [compare] : [])),
    el("div", { class: "wide-table runs", tabindex: 0 }, grid),
  );
  count();
}

function row(run, count, on) {
  const tick = el("input", { type: "checkbox", "aria-label": t("tick", run.name) });
  tick.checked = ticked.has(run.name);
  tick.addEventListener("change", () => {
    if (tick.checked) ticked.add(run.name);
    else ticked.delete(run.name);
    count();
  });
  const name = el("button", { type: "button", class: "link", dir: "auto", onclick: () => on.go(`#/runs/${encodeURIComponent(run.name)}`) }, run.name);
  const badges = [run.running && el("span", { class: "badge live" }, t("live")), run.trial && el("span", { class: "badge" }, t("trial")), !run.running && !run.finished && el("span", { class: "badge" }, t("unfinished"))];
  const cells = [run.bpb === null ? "–" : number(run.bpb, 3), run.score === null ? "–" : percent(run.score), known(run.parameters) ? compact(run.parameters) : "–", known(run.tokens) ? compact(run.tokens) : "–", run.date ? date(run.date) : "–", size(run.size_bytes)];
  return el(
    "tr",
    {},
    el("td", {}, el("label", { class: "tick" }, tick)),
    el("th", { scope: "row" }, name, ...badges.filter(Boolean)),
    el("td", {}, run.stage ? stage(run.stage) : "–"),
    ...cells.map((cell) => el("td", { class: "right" }, cell)),
  );
}

// Several runs.

function comparison() {
  const names = at.names;
  const reports = details.map(({ report }) => report);
  const width = plotWidth();
  const plots = ["loss", "bpb"].map((what) => {
    const series = reports.map((report, index) => ({ name: names[index], kind: `c${index}`, points: joined(report, what) })).filter((one) => one.points.length);
    const drawn = chart({ width, series, label: t("overlay_label", t(what), names.join(", ")) });
    return drawn && el("figure", {}, el("figcaption", {}, t(what)), drawn);
  });
  const legend = el("ul", { class: "legend" }, ...names.map((name, index) => el("li", { class: `c${index}`, dir: "auto" }, name)));
  const value = (number_, form) => (known(number_) ? form(number_) : "–");
  const figures = [
    [t("bpb"), ...reports.map((one) => value(one.bpb, (number_) => number(number_, 3)))],
    [t("heldout_score"), ...reports.map((one) => value(one.scores?.trained, percent))],
    [t("parameters"), ...reports.map((one) => value(one.parameters, number))],
    [t("tokens"), ...reports.map((one) => value(one.tokens, number))],
    [t("time"), ...reports.map((one) => value(one.seconds, duration))],
  ];
  const keys = [...new Set(reports.flatMap((one) => Object.keys(one.config)))].filter((key) => !["run", "profile"].includes(key));
  const differ = keys.filter((key) => new Set(reports.map((one) => JSON.stringify(one.config[key]))).size > 1);
  const settings = differ.map((key) => [key, ...reports.map((one) => String(one.config[key] ?? "–"))]);
  const prompts = reports[0].samples.map((one) => one.prompt).filter((prompt) => reports.every((one) => one.samples.some((sample) => sample.prompt === prompt)));
  const side = prompts.map((prompt) =>
    el("section", { class: "side-by-side" }, el("p", { class: "prompt", dir: "auto" }, prompt), el("div", { class: "columns" }, ...reports.map((one, index) => said(names[index], index, one.samples.find((sample) => sample.prompt === prompt).answer)))),
  );
  return [
    el("h3", {}, t("compare")),
    legend,
    ...plots.filter(Boolean),
    el("section", {}, el("h4", {}, t("figures")), table(["", ...names], figures)),
    ...(settings.length ? [el("section", {}, el("h4", {}, t("settings_differ")), table(["", ...names], settings))] : []),
    ...(side.length ? [el("h4", {}, t("same_prompt")), ...side] : []),
  ];
}

const said = (name, index, text) => el("blockquote", { class: "sample" }, el("footer", { class: `c${index}`, dir: "auto" }, name), el("p", { class: "text", dir: "auto" }, text));

// The points of all stages, each behind the one before.
function joined(report, what) {
  let begin = 0;
  return Object.entries(report.curve).flatMap(([name, curve]) => {
    const own = curve[what].map(([step, value]) => [begin + step, value]);
    begin += report.stages[name]?.steps ?? 0;
    return own;
  });
}
