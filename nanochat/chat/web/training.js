// The live view of a running training: where it stands, its loss curve, and what the model says so far.

import { byId, copyButton, el, icon, svg } from "./dom.js";
import { duration, number, stage, t } from "./i18n.js";

const WIDTH = 640;
const HEIGHT = 240;
const LEFT = 44; // of the plot, for the axis' numbers
const BOTTOM = 26;
const TOP = 12;

let drawn = ""; // what is shown, so that an equal answer changes nothing

/**
 * Draw the view from the server's answer {model, training, hint}; null where it has not answered.
 * `on` does what is asked for: announce(text), chat().
 */
export function drawTraining(status, language, on) {
  const state = JSON.stringify([status, language]);
  if (state === drawn) return;
  drawn = state;
  byId("training").replaceChildren(el("div", { class: "column" }, ...(status ? view(status, on) : [])));
}

/** How far the training is, in percent of its stage. */
export const percent = ({ step, steps }) => Math.min(100, Math.floor((100 * step) / Math.max(steps, 1)));

function view({ model, training, hint }, on) {
  if (!training) {
    const title = el("h3", {}, t(model ? "no_training" : "no_model"));
    return [el("div", { class: "nothing" }, title, el("p", {}, t(model ? "no_training_text" : "no_model_text")), ...command(hint, on))];
  }
  const { run, step, steps, curve, samples, alive, trial } = training;
  const badge = trial ? [" ", el("span", { class: "badge" }, t("trial"))] : [];
  const parts = [
    el("h3", {}, run, ...badge, el("small", {}, stage(training.stage))),
    alive ? el("p", {}, t(model ? "model_so_far" : "no_model_training")) : el("p", { class: "error" }, icon("warning"), t("training_stopped")),
    el("progress", { value: step, max: Math.max(steps, 1), "aria-label": t("step_of", number(step), number(steps)) }),
    stats(training),
  ];
  if (curve.length > 1) parts.push(el("figure", {}, el("figcaption", {}, t("loss_curve")), plot(curve)));
  parts.push(el("h4", {}, t("samples")), ...(samples.length ? [...samples].reverse().map(sample) : [el("p", { class: "hint" }, t("no_samples"))]));
  if (alive && model) parts[1].append(" ", el("button", { type: "button", class: "quiet", onclick: on.chat }, t("talk")));
  return parts;
}

function command(hint, on) {
  if (!hint) return [];
  const copy = copyButton(t("copy_command"), () => hint, () => on.announce(t("copied")));
  return [el("div", { class: "code" }, el("pre", { tabindex: 0 }, el("code", {}, hint)), copy)];
}

function stats({ step, steps, loss, bpb, tokens_per_second: speed, seconds_left: left, alive }) {
  const rows = [
    [t("step"), t("step_of", number(step), number(steps))],
    [t("loss"), known(loss) ? number(loss, 3) : "–"],
    ...(known(bpb) ? [[t("bpb"), number(bpb, 3)]] : []),
    [t("speed"), known(speed) ? number(speed) : "–"],
    ...(alive ? [[t("left"), known(left) ? duration(left) : "–"]] : []),
  ];
  return el("dl", { class: "stats" }, ...rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

const known = (value) => typeof value === "number" && Number.isFinite(value);

function sample({ stage: at, step, prompt, text }) {
  const where = `${stage(at)} · ${t("step")} ${number(step)}`;
  return el("blockquote", { class: "sample" }, el("p", { class: "text" }, el("span", { class: "prompt" }, prompt), " ", text), el("footer", {}, where));
}

// The loss of every stage in one curve: each stage begins where the one before it ended.
function plot(curve) {
  const stages = [...new Set(curve.map((point) => point.stage))];
  let begin = 0;
  const lines = stages.map((name) => {
    const own = curve.filter((point) => point.stage === name && known(point.loss));
    const line = { name, begin, points: own.map(({ step, loss }) => [begin + step, loss]) };
    begin += own.at(-1)?.step ?? 0;
    return line;
  });
  const points = lines.flatMap((line) => line.points);
  if (points.length < 2) return "";
  const [low, high, tick] = ticks(Math.min(...points.map(([, loss]) => loss)), Math.max(...points.map(([, loss]) => loss)));
  const x = (step) => LEFT + ((WIDTH - LEFT - 8) * step) / Math.max(begin, 1);
  const y = (loss) => TOP + ((HEIGHT - TOP - BOTTOM) * (high - loss)) / (high - low);
  const digits = tick < 0.1 ? 2 : tick < 1 ? 1 : 0;
  const label = t("loss_curve_label", number(points[0][1], 2), number(points.at(-1)[1], 2), number(begin));
  const chart = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "plot", role: "img", "aria-label": label });
  for (let value = low; value <= high + tick / 2; value += tick) {
    chart.append(svg("line", { x1: LEFT, x2: WIDTH - 8, y1: y(value), y2: y(value), class: "grid" }));
    chart.append(svg("text", { x: LEFT - 8, y: y(value) + 4, class: "y" }, number(value, digits)));
  }
  for (const { name, begin: from, points: own } of lines) {
    if (!own.length) continue;
    if (from) chart.append(svg("line", { x1: x(from), x2: x(from), y1: TOP, y2: HEIGHT - BOTTOM, class: "border" }));
    const path = own.map(([step, loss]) => `${x(step).toFixed(1)},${y(loss).toFixed(1)}`).join(" ");
    chart.append(svg("polyline", { points: path, class: `curve ${name}` }));
    chart.append(svg("text", { x: Math.min(x(from) + 4, WIDTH - 70), y: HEIGHT - 8, class: "x" }, stage(name)));
  }
  const [lastStep, lastLoss] = points.at(-1);
  chart.append(svg("circle", { cx: x(lastStep), cy: y(lastLoss), r: 4, class: "now" }));
  return chart;
}

// Round numbers around a range: [lowest, highest, distance].
function ticks(low, high) {
  const rough = Math.max(high - low, 1e-3) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const tick = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  return [Math.floor(low / tick) * tick, Math.ceil(high / tick) * tick, tick];
}
