// The dialogs that ask for the API key and list the keyboard's shortcuts.

import * as api from "./api.js";
import { byId, el } from "./dom.js";
import { t } from "./i18n.js";

/** Ask for the key of the server, unless that is being done. */
export function askKey() {
  if (byId("key").open) return;
  byId("key-text").textContent = t(api.hasKey() ? "key_wrong" : "key_text");
  byId("key-input").value = "";
  byId("key").showModal();
}

/** Let the dialogs close, and the key's take effect; then `keyGiven()` is called. */
export function setUpDialogs(keyGiven) {
  for (const node of document.querySelectorAll("[data-close]")) node.addEventListener("click", () => node.closest("dialog").close());
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    api.useKey(byId("key-input").value.trim());
    byId("key").close();
    keyGiven();
  });
}

/** Draw the list of shortcuts. */
export function drawHelp() {
  const row = ([keys, meaning]) => el("div", {}, el("dt", {}, ...keys.split(" ").map((key) => el("kbd", {}, key))), el("dd", {}, meaning));
  byId("help-list").replaceChildren(...t("keys").map(row));
}
