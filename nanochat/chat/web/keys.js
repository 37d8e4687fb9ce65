// The keyboard's shortcuts.

import { byId } from "./dom.js";

// Enter ends the input of a Chinese word before it sends a message.
const composing = (event) => event.isComposing || event.keyCode === 229;

/** Listen. `on` does what is asked for: busy(), stop(), newChat(), submit(), editLast(). */
export function setUpKeys(on) {
  const message = byId("message");
  document.addEventListener("keydown", (event) => {
    if (composing(event) || document.querySelector("dialog[open]")) return;
    const typing = event.target.matches("input, textarea, select");
    if (event.key === "Escape" && on.busy()) on.stop();
    else if ((event.ctrlKey || event.metaKey) && event.shiftKey && event.key.toLowerCase() === "o") on.newChat();
    else if (!typing && event.key === "/") message.focus();
    else if (!typing && event.key === "?") byId("help").showModal();
    else return;
    event.preventDefault();
  });
  message.addEventListener("keydown", (event) => {
    if (composing(event)) return;
    if (event.key === "Enter" && !event.shiftKey) on.submit();
    else if (event.key === "ArrowUp" && !message.value && !on.busy()) on.editLast();
    else return;
    event.preventDefault();
  });
}
