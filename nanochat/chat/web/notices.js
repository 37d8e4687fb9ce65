// Messages outside of the conversation: for screen readers, and for a few seconds with a button that undoes.

import { byId, el } from "./dom.js";
import { t } from "./i18n.js";

const SECONDS = 8;

export function announce(text) {
  byId("announcer").textContent = text;
}

let timer;
export const toast = (text, undo) => toastText(text, t("undo"), undo);

/** Show a text for a few seconds, with a button. */
export function toastText(text, label, act) {
  const take = () => {
    byId("toast").hidden = true;
    act();
  };
  byId("toast").replaceChildren(el("span", {}, text), el("button", { type: "button", onclick: take }, label));
  byId("toast").hidden = false;
  clearTimeout(timer);
  timer = setTimeout(() => (byId("toast").hidden = true), 1000 * SECONDS);
}
