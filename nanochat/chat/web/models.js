// Which checkpoint answers in a conversation: a card of the one that does, all that can be chosen, and one to answer beside it.

import * as api from "./api.js";
import { byId, el } from "./dom.js";
import { known } from "./figures.js";
import { date, number, percent, stage, t } from "./i18n.js";

let list = []; // what /api/models has said
let filter = "";

/** Facts of a checkpoint from its name RUN:STAGE:STEP, in the form of /api/training's model. */
export function modelNamed(id) {
  const found = list.find((one) => one.id === id);
  if (found) return found;
  const [, run, name, step] = /^(.*):(base|sft|rl):(\d+)$/s.exec(id) ?? [];
  return run === undefined ? { id, run: id, stage: "sft", step: 0, chats: true } : { id, run, stage: name, step: Number(step), chats: name !== "base" };
}

/** A checkpoint's name RUN:STAGE:STEP. */
export const nameOf = (one) => one && `${one.run}:${one.stage}:${one.step}`;

/** Draw the button that says which checkpoint answers; `beside`: a second one answers too. */
export function drawModelButton(answering, device, beside) {
  byId("model").hidden = !answering;
  if (!answering) return;
  const badges = [];
  if (answering.trial) badges.push(el("span", { class: "badge", title: t("trial_note") }, t("trial")));
  if (answering.chats === false) badges.push(el("span", { class: "badge", title: t("base_note") }, stage("base")));
  if (beside) badges.push(el("span", { class: "badge" }, t("beside_badge")));
  byId("model").title = t("model_label", { device, ...answering, step: number(answering.step) });
  byId("model").replaceChildren(el("span", { dir: "auto" }, answering.run), ...badges);
}

/** Let a person choose. `current` is the conversation, `model` the server's own; `chosen(id, beside)` is told; undefined: the server's own. */
export async function chooseModel(current, model, chosen) {
  const dialog = byId("models");
  filter = "";
  draw(current, model, chosen);
  dialog.showModal();
  try {
    list = (await api.models()).models;
  } catch {
    return; // what is known stays
  }
  if (dialog.open) draw(current, model, chosen);
}

function draw(current, model, chosen) {
  const answering = current.model ? modelNamed(current.model) : model;
  const own = nameOf(model);
  const search = el("input", { type: "search", class: "filter", placeholder: t("filter_models"), "aria-label": t("filter_models") });
  search.value = filter;
  const options = el("ul", { class: "models" });
  const fill = () => {
    const fits = list.filter((one) => `${one.run} ${one.id} ${stage(one.stage)}`.toLowerCase().includes(filter));
    options.replaceChildren(...fits.slice(0, 200).map((one) => option(one, current.model === one.id, () => pick(one.id))));
  };
  const pick = (id, beside = current.beside) => {
    chosen(id, beside);
    draw(current, model, chosen);
    byId("models-list").querySelector("[aria-pressed=true]")?.focus();
  };
  search.addEventListener("input", () => {
    filter = search.value.trim().toLowerCase();
    fill();
  });
  fill();
  const first = option({ ...model, label: t("model_default") }, !current.model, () => pick(undefined));
  byId("models-card").replaceChildren(...(answering ? [card({ ...answering, device: model?.device, suggestions: undefined })] : []));
  byId("models-list").replaceChildren(...(list.length > 6 ? [search] : []), el("ul", { class: "models" }, ...(model ? [first] : [])), options, besideField(current, own, pick));
}

function option(one, pressed, onclick) {
  const button = el(
    "button",
    { type: "button", class: "row", "aria-pressed": String(pressed), onclick },
    el("strong", { dir: "auto" }, one.label ?? one.run),
    el("span", {}, one.label ? one.run : `${stage(one.stage)} · ${t("step")} ${number(one.step)}`),
    ...(known(one.score) ? [el("small", {}, percent(one.score))] : []),
  );
  return el("li", {}, button);
}

function card(one) {
  const rows = [
    [t("stage"), stage(one.stage)],
    [t("step"), number(one.step)],
    ...(known(one.parameters) ? [[t("parameters"), number(one.parameters)]] : []),
    ...(known(one.context) ? [[t("context"), t("tokens_count", number(one.context))]] : []),
    ...(known(one.score) ? [[t("heldout_score"), percent(one.score)]] : []),
    ...(one.device ? [[t("device"), one.device === "cuda" ? "GPU" : "CPU"]] : []),
    ...(one.date ? [[t("date"), date(one.date)]] : []),
  ];
  const pairs = rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
  return el("div", { class: "card" }, el("h3", { dir: "auto" }, one.run), el("dl", {}, ...pairs), ...(one.chats === false ? [el("p", { class: "hint" }, t("base_note"))] : []));
}

function besideField(current, own, pick) {
  const none = el("option", { value: "" }, t("beside_none"));
  const others = list.filter((one) => one.id !== (current.model ?? own)).map((one) => el("option", { value: one.id, selected: one.id === current.beside }, `${one.run} · ${stage(one.stage)} ${number(one.step)}`));
  const select = el("select", { id: "beside", disabled: !others.length }, none, ...others);
  select.addEventListener("change", () => pick(current.model, select.value || undefined));
  return el("div", { class: "field" }, el("label", { for: "beside" }, t("beside")), select, el("p", { class: "hint" }, t("beside_hint")));
}
