// The view of an empty conversation: a greeting, a description of the model, and messages to try.

import { byId, el } from "./dom.js";
import { t } from "./i18n.js";

/** Draw it for the model that answers, or null. `ask(text)` sends a message. */
export function drawWelcome(model, ask) {
  const base = model?.chats === false;
  const asked = (!base && model?.suggestions?.length && model.suggestions) || t(base ? "suggestions_base" : "suggestions");
  const tries = asked.map((text) => el("button", { type: "button", dir: "auto", onclick: () => ask(text) }, text));
  byId("welcome").replaceChildren(
    el("img", { src: "/web/icon.svg", alt: "", width: 56, height: 56 }),
    el("h3", {}, t(base ? "welcome_base" : "welcome")),
    ...(base ? [el("p", {}, t("welcome_base_text"))] : []),
    ...(model?.trial ? [el("p", {}, t("trial_note"))] : []),
    ...(model ? [el("div", { class: "suggestions", role: "group", "aria-label": t("try_these") }, ...tries)] : []),
  );
}
