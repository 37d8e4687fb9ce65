// An answer as its tokens: how likely each one was, and what else could have come in its place.

import { el } from "./dom.js";
import { percent } from "./i18n.js";
import { t } from "./i18n.js";

/** Show the tokens of an answer below it, or hide them. */
export function toggleTokens(item, message) {
  const shown = item.querySelector(".token-list");
  const button = item.querySelector(".show-tokens");
  button.setAttribute("aria-expanded", String(!shown));
  if (shown) shown.remove();
  else item.querySelector(".below").append(list(message.tokens));
}

function list(tokens) {
  const card = el("div", { class: "token-card", "aria-live": "polite" }, el("p", { class: "hint" }, t("token_hint")));
  const buttons = tokens.map((token, index) => button(token, index, card));
  return el("div", { class: "token-list" }, el("p", { class: "tokens", role: "group", "aria-label": t("show_tokens") }, ...buttons), card);
}

// Whiteness is made visible: a token may be nothing but a space.
const visible = (text) => text.replaceAll("\n", "⏎").replaceAll(" ", "·") || "∅";

function button([text, share, top], index, card) {
  const node = el("button", { type: "button", class: `token ${share > 0.9 ? "sure" : share > 0.5 ? "likely" : share > 0.1 ? "open" : "unlikely"}`, title: percent(share), "aria-pressed": "false" }, visible(text));
  node.addEventListener("click", () => {
    for (const other of node.parentElement.children) other.setAttribute("aria-pressed", String(other === node));
    const rows = top.map(([one, likely]) => el("tr", { class: one === text ? "chosen" : undefined }, el("th", { scope: "row" }, visible(one)), el("td", { class: "right" }, percent(likely)), el("td", {}, el("meter", { min: 0, max: 1, value: likely, "aria-label": visible(one) }))));
    card.replaceChildren(el("p", {}, t("token_chosen", visible(text), percent(share))), el("table", {}, el("tbody", {}, ...rows)));
  });
  return node;
}
