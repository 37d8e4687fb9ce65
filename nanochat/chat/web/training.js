// The live view of a run in training, and of the newest finished run: progress, curves, samples.

import { byId, copyButton, el, icon } from "./dom.js";
import { action, curves, known, samplesOverTime, stats, stepper } from "./figures.js";
import { ending } from "./finished.js";
import { launchForm, launchParts } from "./launch.js";
import { compact, duration, number, percent as inPercent, stage, t } from "./i18n.js";
import { plotWidth } from "./plot.js";

const shown = new Map(); // part of the view -> what it was made of

/**
 * Draw the view from the server's answer {model, training, hint}, null if there is none, and from `ended`, the response of /api/runs/NAME
 * for the newest run if none is in training. `on` does what is asked for: announce(text), chat(name of a model), report(run), compare(run),
 * notify(), look(), redraw(). Parts that did not change stay, and with them focus and selection.
 */
export function drawTraining(status, ended, language, on) {
  const root = byId("training");
  if (!root.firstChild) root.append(el("div", { class: "column" }));
  drawParts(root.firstChild, status ? view(status, ended, on) : [], language, shown);
}

/** Put parts [name, what it is made of, how] into a column; those that did not change stay. */
export function drawParts(column, parts, language, before) {
  const old = new Map([...column.children].map((node) => [node.dataset.part, node]));
  const nodes = parts.map(([name, data, make]) => {
    const state = JSON.stringify([data, language]);
    if (old.has(name) && before.get(name) === state) return old.get(name);
    before.set(name, state);
    const node = make();
    node.dataset.part = name;
    return node;
  });
  nodes.forEach((node, index) => node !== column.children[index] && column.insertBefore(node, column.children[index] ?? null));
  while (column.children.length > nodes.length) column.lastChild.remove();
}

/** Progress of the run in percent of all its stages. */
export function percent({ stage: at, step, steps, stages }) {
  const all = stages?.length ? stages : [{ stage: at, steps }];
  const index = all.findIndex((one) => one.stage === at);
  const before = all.slice(0, Math.max(index, 0)).reduce((sum, one) => sum + one.steps, 0);
  const whole = all.reduce((sum, one) => sum + one.steps, 0);
  return Math.min(100, Math.floor((100 * (before + step)) / Math.max(whole, 1)));
}

function view(status, ended, on) {
  const { model, training, launch, hint } = status;
  if (!training) {
    const none = launch?.alive ? [] : [["nothing", [Boolean(model), hint, Boolean(launch)], () => nothing(Boolean(model), hint, Boolean(launch), on)]];
    const own = launchParts(status, on);
    const told = own.length && launch.run === ended?.run.name; // that it has stopped, with a button that resumes it
    const last = ended && !launch?.alive ? ending(ended, on).filter(([name]) => name !== "state" || !told) : none;
    return [...own, ...last, ...launchForm(status, on)];
  }
  const { run, stage: at, step, steps, stages = [], samples, alive, trial, seconds_left: left } = training;
  const width = plotWidth();
  const data = dataOf(training);
  const figure = curves(data, on.redraw);
  const over = step >= steps && at === stages.at(-1)?.stage && alive;
  return [
    ["title", [run, at, trial], () => title(run, at, trial)],
    ["stepper", [stages, at, over, known(left) && duration(left)], () => stepper(stages, over ? "evaluation" : at, alive ? left : null)],
    ["progress", [step, steps], () => el("progress", { value: step, max: Math.max(steps, 1), "aria-label": t("step_of", number(step), number(steps)) })],
    ["state", [alive, training.checkpoint, run, on.canNotify(), movedToCPU(model, training)], () => state(training, movedToCPU(model, training), on)],
    ...launchParts(status, on),
    ["stats", training, () => stats(figuresOf(training))],
    ...(figure ? [["curve", [training.curve, training.validation, width, figure.querySelector("[aria-selected=true]").dataset.tab, figure.querySelector("select").value], () => figure]] : []),
    ["samples", samples, () => samplesOverTime(samples, on.announce)],
    ...launchForm(status, on),
  ];
}

// Whether the model answers from the CPU because the run has the GPU.
const movedToCPU = (model, { alive, device }) => alive && device === "cuda" && model?.device === "cpu";

// The curves' points by what they show.
function dataOf({ stage: at, steps, stages, measure, curve, validation = [] }) {
  const of = (key) => curve.filter((point) => known(point[key])).map((point) => ({ ...point, value: point[key] }));
  const planned = stages?.length ? stages : [{ stage: at, steps }];
  const own = measure === "reward" ? planned.filter((one) => one.stage === "rl") : planned.filter((one) => one.stage !== "rl");
  const bpb = measure === "reward" ? [] : validation.map((point) => ({ ...point, value: point.bpb }));
  return { stages: own.length ? own : [{ stage: at, steps }], [measure]: of("value"), bpb, speed: of("tokens_per_second"), lr: of("lr") };
}

function figuresOf({ step, steps, measure, value, bpb, tokens, tokens_per_second: speed, stage_seconds_left: left, elapsed_seconds: elapsed, cpu_others: others, alive }) {
  return [
    [t("step"), number(step), el("small", {}, t("of", number(steps)))],
    [t(measure), known(value) ? number(value, 3) : "–"],
    ...(known(bpb) ? [[t("bpb"), number(bpb, 3)]] : []),
    [t("speed"), known(speed) ? number(speed) : "–"],
    ...(known(tokens) ? [[t("tokens"), compact(tokens)]] : []),
    ...(known(elapsed) ? [[t("elapsed"), duration(elapsed)]] : []),
    ...(alive ? [[t("left"), known(left) ? duration(left) : "–", ...(known(others) ? [el("small", { class: "whole" }, t("cpu_others", number(100 * others)))] : [])]] : []),
  ];
}

function nothing(ready, hint, allowed, on) {
  const texts = ready ? ["no_training", "no_training_text"] : ["no_model", allowed ? "train_first" : "no_model_text"];
  return el("div", { class: allowed ? "nothing low" : "nothing" }, el("h3", {}, t(texts[0])), el("p", {}, t(texts[1])), ...(allowed ? [] : command(hint, on)));
}

export function title(run, at, trial) {
  return el("h3", {}, el("span", { dir: "auto" }, run), ...(trial ? [el("span", { class: "badge" }, t("trial"))] : []), el("small", {}, at && stage(at)));
}

function state({ alive, checkpoint, run }, moved, on) {
  if (!alive) return el("p", { class: "error" }, icon("warning"), t("training_stopped"));
  const notify = on.canNotify() ? [action("bell", t("notify"), on.notify)] : [];
  if (!checkpoint) return el("div", { class: "ready" }, el("p", {}, t("no_model_training")), ...notify);
  const talk = () => on.chat(`${run}:${checkpoint.stage}:${checkpoint.step}`);
  return el("div", { class: "ready" }, el("p", {}, t("model_so_far"), ...(moved ? [` ${t("chat_on_cpu")}`] : [])), el("button", { type: "button", class: "quiet", onclick: talk }, t("talk")), ...notify);
}

/** A command that can be copied. */
export function command(hint, on) {
  if (!hint) return [];
  const copy = copyButton(t("copy_command"), () => hint, () => on.announce(t("copied")));
  return [el("div", { class: "code" }, el("pre", { tabindex: 0 }, el("code", {}, hint)), copy)];
}

/** The end of a run in one line, for a notification and for screen readers. */
export function summaryOf({ run, report }) {
  const scores = report.scores;
  return scores ? t("ended_score", run.name, inPercent(scores.untrained), inPercent(scores.trained)) : t("ended", run.name);
}
