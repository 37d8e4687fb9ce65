// The live view of a running training: where it stands, its loss curve, and what the model says so far.

import { byId, copyButton, el, icon, svg } from "./dom.js";
import { duration, number, stage, t } from "./i18n.js";

const WIDEST = 640; // of the plot, in pixels
const HEIGHT = 240;
const LEFT = 44; // of the plot, for the axis' numbers
const BOTTOM = 26;
const TOP = 12;

const shown = new Map(); // part of the view -> what it was made of

/**
 * Draw the view from the server's answer {model, training, hint}; null where it has not answered.
 * `on` does what is asked for: announce(text), chat(). Parts that did not change stay, and with them focus and selection.
 */
export function drawTraining(status, language, on) {
  const root = byId("training");
  if (!root.firstChild) root.append(el("div", { class: "column" }));
  const column = root.firstChild;
  const parts = status ? view(status, on) : [];
  const before = new Map([...column.children].map((node) => [node.dataset.part, node]));
  const nodes = parts.map(([name, data, make]) => {
    const state = JSON.stringify([data, language]);
    if (before.has(name) && shown.get(name) === state) return before.get(name);
    shown.set(name, state);
    const node = make();
    node.dataset.part = name;
    return node;
  });
  nodes.forEach((node, index) => node !== column.children[index] && column.insertBefore(node, column.children[index] ?? null));
  while (column.children.length > nodes.length) column.lastChild.remove();
}

/** How far the training is, in percent of its stage. */
export const percent = ({ step, steps }) => Math.min(100, Math.floor((100 * step) / Math.max(steps, 1)));

// The parts of the view: [name, what it is made of, how].
function view({ model, training, hint }, on) {
  const ready = Boolean(model);
  if (!training) return [["nothing", [ready, hint], () => nothing(ready, hint, on)]];
  const { run, stage: at, step, steps, measure, curve, samples, alive, trial } = training;
  const label = t("step_of", number(step), number(steps));
  const parts = [
    ["title", [run, at, trial], () => title(run, at, trial)],
    ["state", [alive, Boolean(training.checkpoint)], () => state(alive, training.checkpoint, on)],
    ["progress", [step, steps], () => el("progress", { value: step, max: Math.max(steps, 1), "aria-label": label })],
    ["stats", training, () => stats(training)],
  ];
  // As wide as its place (the view itself may be hidden yet), so that its letters stay as large on a phone.
  const width = Math.max(240, Math.min(WIDEST, byId("training").parentElement.clientWidth - 72));
  const figure = () => el("figure", {}, el("figcaption", {}, t(`${measure}_curve`)), plot(curve, measure, width));
  if (curve.length > 1) parts.push(["curve", [curve, width], figure]);
  return [...parts, ["samples", samples, () => said(samples)]];
}

function nothing(ready, hint, on) {
  const texts = ready ? ["no_training", "no_training_text"] : ["no_model", "no_model_text"];
  return el("div", { class: "nothing" }, el("h3", {}, t(texts[0])), el("p", {}, t(texts[1])), ...command(hint, on));
}

function title(run, at, trial) {
  return el("h3", {}, run, ...(trial ? [el("span", { class: "badge" }, t("trial"))] : []), el("small", {}, stage(at)));
}

function state(alive, checkpoint, on) {
  if (!alive) return el("p", { class: "error" }, icon("warning"), t("training_stopped"));
  if (!checkpoint) return el("p", {}, t("no_model_training"));
  return el("div", { class: "ready" }, el("p", {}, t("model_so_far")), el("button", { type: "button", class: "quiet", onclick: on.chat }, t("talk")));
}

function said(samples) {
  const list = samples.length ? [...samples].reverse().map(sample) : [el("p", { class: "hint" }, t("no_samples"))];
  return el("div", { class: "samples" }, el("h4", {}, t("samples")), ...list);
}

function command(hint, on) {
  if (!hint) return [];
  const copy = copyButton(t("copy_command"), () => hint, () => on.announce(t("copied")));
  return [el("div", { class: "code" }, el("pre", { tabindex: 0 }, el("code", {}, hint)), copy)];
}

function stats({ step, steps, measure, value, bpb, tokens_per_second: speed, seconds_left: left, alive }) {
  const rows = [
    [t("step"), number(step), el("small", {}, t("of", number(steps)))],
    [t(measure), known(value) ? number(value, 3) : "–"],
    ...(known(bpb) ? [[t("bpb"), number(bpb, 3)]] : []),
    [t("speed"), known(speed) ? number(speed) : "–"],
    ...(alive ? [[t("left"), known(left) ? duration(left) : "–"]] : []),
  ];
  return el("dl", { class: "stats" }, ...rows.map(([name, ...value]) => el("div", {}, el("dt", {}, name), el("dd", {}, ...value))));
}

const known = (value) => typeof value === "number" && Number.isFinite(value);

// Before fine-tuning the model goes on with a text; after it, it answers.
function sample({ stage: at, step, prompt, text }) {
  const asked = el(at === "base" ? "span" : "p", { class: "prompt" }, prompt);
  const where = `${stage(at)} · ${t("step")} ${number(step)}`;
  return el("blockquote", { class: "sample" }, el("div", { class: "text" }, asked, text), el("footer", {}, where));
}

// The loss of every stage in one curve, or the reward: each stage begins where the one before it ended.
function plot(curve, measure, width) {
  const stages = [...new Set(curve.map((point) => point.stage))];
  let begin = 0;
  const lines = stages.map((name) => {
    const own = curve.filter((point) => point.stage === name && known(point.value));
    const line = { name, begin, points: own.map(({ step, value }) => [begin + step, value]) };
    begin += own.at(-1)?.step ?? 0;
    return line;
  });
  const points = lines.flatMap((line) => line.points);
  if (points.length < 2) return "";
  const [low, high, tick] = ticks(Math.min(...points.map(([, value]) => value)), Math.max(...points.map(([, value]) => value)));
  const x = (step) => LEFT + ((width - LEFT - 8) * step) / Math.max(begin, 1);
  const y = (value) => TOP + ((HEIGHT - TOP - BOTTOM) * (high - value)) / (high - low);
  const digits = tick < 0.1 ? 2 : tick < 1 ? 1 : 0;
  const label = t(`${measure}_curve_label`, number(points[0][1], 2), number(points.at(-1)[1], 2), number(begin));
  const chart = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, class: "plot", role: "img", "aria-label": label });
  for (let value = low; value <= high + tick / 2; value += tick) {
    chart.append(svg("line", { x1: LEFT, x2: width - 8, y1: y(value), y2: y(value), class: "grid" }));
    chart.append(svg("text", { x: LEFT - 8, y: y(value) + 4, class: "y" }, number(value, digits)));
  }
  for (const { name, begin: from, points: own } of lines) {
    if (!own.length) continue;
    if (from) chart.append(svg("line", { x1: x(from), x2: x(from), y1: TOP, y2: HEIGHT - BOTTOM, class: "border" }));
    const path = own.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    chart.append(svg("polyline", { points: path, class: `curve ${name}` }));
    chart.append(svg("text", { x: Math.min(x(from) + 4, width - 70), y: HEIGHT - 8, class: "x" }, stage(name)));
  }
  const [lastStep, lastValue] = points.at(-1);
  chart.append(svg("circle", { cx: x(lastStep), cy: y(lastValue), r: 4, class: "now" }));
  return chart;
}

// Round numbers around a range: [lowest, highest, distance].
function ticks(low, high) {
  const rough = Math.max(high - low, 1e-3) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const tick = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  return [Math.floor(low / tick) * tick, Math.ceil(high / tick) * tick, tick];
}
