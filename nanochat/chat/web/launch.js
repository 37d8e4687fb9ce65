// Starting, stopping and resuming a training run from the page, where the server allows it: the form with its live plan, and the outcome.

import * as api from "./api.js";
import { el, icon } from "./dom.js";
import { action, known, stats } from "./figures.js";
import { compact, duration, size, t } from "./i18n.js";

const PAUSE = 500; // milliseconds without a change, after which the plan is asked for
const chosen = { profile: "auto", hours: "", data: "", run: "" }; // in the form; it holds while the page is open
let open = false; // whether the form below the quickstart or a finished run is open
let minutes = null; // that the quickstart takes here
let problem = ""; // what the server said to the last button

/** The run that was started here as parts of the training view: starting, in training, or how it ended. */
export function launchParts({ training, launch }, on) {
  if (!launch?.run) return [];
  if (launch.alive) return [["launch", [launch.stopping, problem, training ? 0 : launch.log], () => running(launch, Boolean(training), on)]];
  return launch.finished || training?.alive ? [] : [["launch", [launch, problem], () => outcome(launch, on)]];
}

/** The form as a part of the training view, unless a run is in training; without a model below the quickstart's button. */
export function launchForm({ model, training, launch }, on) {
  if (!launch || launch.alive || training?.alive) return [];
  return [["train", [Boolean(model), problem, launch.profiles], () => form(Boolean(model), launch.profiles, on)]];
}

const said = (error) => (error.kind === "other" ? error.message : t(`error_${error.kind}`, error.retryAfter));
const warning = (text) => el("p", { class: "error", role: "alert" }, icon("warning"), text);
const shownProblem = () => (problem ? [warning(problem)] : []);

// Send a button's request and show its result. The button is gone then: the focus goes to the one in its place.
async function act(button, request, on) {
  button.disabled = true;
  try {
    await request();
    problem = "";
  } catch (error) {
    problem = said(error);
    on.announce(problem);
  }
  await on.look();
  on.redraw();
  (document.querySelector("#training [data-part=launch] button") ?? document.querySelector("#training [data-part=train] button"))?.focus();
}

function acting(name, text, request, on, properties = {}) {
  const node = action(name, text, () => act(node, request, on), properties);
  return node;
}

function running({ run, stopping, log, command }, live, on) {
  const stop = stopping ? el("p", { class: "hint" }, t("stopping")) : acting("stop", t("stop_run"), api.stopTraining, on);
  const row = el("div", { class: "ready" }, stop, ...shownProblem());
  return live ? row : el("div", { class: "launch" }, el("h3", {}, el("span", { dir: "auto" }, run), el("small", {}, t("starting"))), messages(command, log), row);
}

function outcome({ run, command, code, error, hint, resumable, log }, on) {
  const stopped = code === 75 || error.startsWith("stopped");
  const text = stopped ? el("p", {}, t("run_was_stopped", run)) : warning(error || t("run_without_words", run));
  const again = acting(resumable ? "right" : "again", t(resumable ? "resume" : "retry"), api.resumeTraining, on, { class: "primary" });
  const details = el("details", {}, el("summary", {}, t("messages")), messages(command, log));
  details.open = !stopped && !error;
  return el("div", { class: "launch", dir: "auto" }, text, ...(hint && !stopped ? [el("p", { class: "hint" }, hint)] : []), el("div", { class: "ready" }, again), ...shownProblem(), details);
}

const messages = (command, log) => el("div", { class: "code" }, el("pre", { tabindex: 0, "aria-label": t("messages") }, el("code", {}, [`$ ${command}`, ...log].join("\n"))));

// The form.

function form(ready, profiles, on) {
  const fields = el("form", { class: "train" });
  const shownPlan = el("div", { class: "plan", role: "status" });
  const start = el("button", { class: ready ? "primary" : "quiet" }, icon("right"), t("train_start"));
  const select = el("select", {}, ...profiles.map((name) => el("option", { value: name, selected: name === chosen.profile }, name === "auto" ? t("profile_auto") : name)));
  const inputs = {
    profile: select,
    hours: el("input", { type: "number", min: 0, max: 9999, step: "any", inputmode: "decimal" }),
    data: el("input", { type: "text", maxlength: 4096, spellcheck: "false", autocomplete: "off", dir: "ltr" }),
    run: el("input", { type: "text", maxlength: 200, spellcheck: "false", autocomplete: "off", dir: "auto" }),
  };
  for (const [name, input] of Object.entries(inputs)) {
    input.value = chosen[name];
    input.addEventListener("input", () => {
      chosen[name] = input.value;
      drawPlan(shownPlan, start, PAUSE);
    });
  }
  fields.append(el("div", { class: "columns" }, ...Object.entries(inputs).map(([name, input]) => field(name, input))), shownPlan, el("div", { class: "ready" }, start));
  fields.addEventListener("submit", (event) => {
    event.preventDefault();
    act(start, () => api.startTraining(body()), on);
  });
  const details = el("details", { class: "train-more" }, el("summary", {}, t(ready ? "train_another" : "train_own")), fields);
  details.open = open;
  details.addEventListener("toggle", () => {
    open = details.open;
    if (open) drawPlan(shownPlan, start, 0);
  });
  if (ready) return el("div", { class: "launch" }, ...shownProblem(), details);
  return el("div", { class: "launch" }, quickstart(on), ...shownProblem(), details);
}

function field(name, input) {
  input.id = `train-${name}`;
  input.setAttribute("aria-describedby", `${input.id}-hint`);
  return el("div", { class: "field" }, el("label", { for: input.id }, t(`train_${name}`)), input, el("p", { id: `${input.id}-hint`, class: "hint" }, t(`train_${name}_hint`)));
}

// The form's values as a request; what is empty is the profile's.
function body() {
  const { profile, hours, data, run } = chosen;
  return { profile, ...(hours !== "" && { hours: Number(hours) }), ...(data.trim() && { data: data.trim() }), ...(run.trim() && { run: run.trim() }) };
}

function quickstart(on) {
  const label = () => (minutes ? t("train_quickstart_in", minutes) : t("train_quickstart"));
  const start = acting("right", label(), () => api.startTraining({ quickstart: true }), on, { class: "primary" });
  if (!minutes) {
    planned({ quickstart: true }).then(
      (plan) => {
        if (!plan) return; // a run has begun meanwhile
        minutes = Math.max(1, Math.round(plan.seconds / 60));
        start.lastChild.textContent = label();
      },
      () => {}, // the button works without
    );
  }
  return el("div", { class: "ready" }, start);
}

// Plans, one after the other: the server measures some steps for one.
let asking = Promise.resolve();
function planned(wanted, stale = () => false) {
  const answer = asking.then(() => (stale() ? null : api.plan(wanted)));
  asking = answer.catch(() => {});
  return answer;
}

let newest = 0;
let timer;
function drawPlan(root, start, pause) {
  const own = ++newest;
  clearTimeout(timer);
  root.replaceChildren(el("p", { class: "hint" }, t("planning")));
  start.disabled = false;
  timer = setTimeout(async () => {
    try {
      const plan = await planned(body(), () => own !== newest);
      if (own !== newest || !plan) return;
      start.disabled = !plan.fits || !plan.card_here;
      root.replaceChildren(...planParts(plan));
    } catch (error) {
      if (own !== newest) return;
      start.disabled = true;
      root.replaceChildren(el("p", { class: "error" }, icon("warning"), said(error)));
    }
  }, pause);
}

function planParts({ card, card_here: here, fits, memory_bytes: memory, seconds, tokens, parameters, download_bytes: download }) {
  const verdict = t(!here ? "plan_elsewhere" : fits ? "plan_fits" : "plan_too_large", card);
  const rows = [
    [t("time"), t("about", duration(seconds))],
    [t("memory"), `${size(memory.total)}${t("of", size(memory.usable))}`],
    [t("tokens"), compact(tokens)],
    [t("parameters"), compact(parameters)],
    ...(known(download) && download > 0 ? [[t("download"), size(download)]] : []),
  ];
  return [here && fits ? el("p", {}, icon("check"), verdict) : el("p", { class: "error" }, icon("warning"), verdict), stats(rows)];
}
