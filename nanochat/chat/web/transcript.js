// The messages of the open conversation on the page.

import * as conversations from "./conversations.js";
import { byId, copyButton, el, icon, iconButton } from "./dom.js";
import { number, t } from "./i18n.js";
import { CALL, Markdown } from "./markdown.js";

const NEAR = 80; // pixels from the end: nearer than this, the page follows the answer

export class Transcript {
  /** `on` does what the buttons ask for: edit(index, text), again(), retry(kind), announce(text). `context()` is the model's, or null. */
  constructor(on, context) {
    this.on = on;
    this.context = context;
    this.list = byId("messages");
    this.scroll = byId("scroll");
    this.scroll.addEventListener("scroll", () => this.#showToEnd(), { passive: true });
    byId("to-end").addEventListener("click", () => this.toEnd());
  }

  /** Show a conversation from its beginning. `busy`: its last answer is still on its way. */
  show(conversation, busy) {
    this.conversation = conversation;
    const { messages } = conversation;
    this.items = messages.map((message, index) => (message.role === "user" ? this.#question(message, index) : this.#answer(message)));
    this.list.replaceChildren(...this.items);
    this.pending = null;
    if (messages.at(-1)?.role === "assistant") this.#fill(messages.at(-1), busy);
    this.#markForgotten();
    this.toEnd();
  }

  /** More of the last answer has come: it is drawn with the next frame. */
  update(message) {
    if (this.pending) {
      this.pending = message;
      return;
    }
    this.pending = message;
    requestAnimationFrame(() => {
      if (this.pending) this.#draw(this.pending, true);
    });
  }

  /** The last answer is complete. */
  finish(message) {
    this.#draw(message, false);
  }

  /** Scroll to the newest message. */
  toEnd() {
    this.scroll.scrollTop = this.scroll.scrollHeight;
    this.#showToEnd();
  }

  /** Open the editor of the last message of the user, if there is one. */
  editLast() {
    const buttons = this.list.querySelectorAll(".user .edit");
    buttons[buttons.length - 1]?.click();
  }

  #draw(message, busy) {
    this.pending = null;
    const follow = this.#atEnd();
    this.#fill(message, busy);
    this.#markForgotten();
    if (follow) this.toEnd();
    else this.#showToEnd();
  }

  #atEnd() {
    return this.scroll.scrollHeight - this.scroll.scrollTop - this.scroll.clientHeight < NEAR;
  }

  #showToEnd() {
    byId("to-end").hidden = this.#atEnd();
  }

  #question(message, index) {
    const text = el("p", { class: "text" }, message.text);
    const item = el("li", { class: "message user" }, el("h3", { class: "unseen" }, t("you")), text);
    const edit = iconButton("edit", t("edit"), () => this.#edit(item, message, index), { class: "icon edit" });
    item.append(el("div", { class: "actions" }, this.#copyButton(() => message.text), edit));
    return item;
  }

  #edit(item, message, index) {
    const before = [...item.childNodes];
    const area = el("textarea", { "aria-label": t("edit_label"), rows: Math.min(message.text.split("\n").length + 1, 12) });
    area.value = message.text;
    const close = () => {
      item.classList.remove("editing");
      item.replaceChildren(...before);
      item.querySelector(".edit").focus();
    };
    const send = () => area.value.trim() && this.on.edit(index, area.value.trim());
    area.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return;
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        send();
      } else if (event.key === "Escape") {
        event.stopPropagation();
        close();
      }
    });
    const cancel = el("button", { type: "button", class: "quiet", onclick: close }, t("cancel"));
    const again = el("button", { type: "button", class: "primary", onclick: send }, t("edit_send"));
    item.classList.add("editing");
    item.replaceChildren(area, el("div", { class: "buttons" }, cancel, again));
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }

  #answer(message) {
    const body = el("div", { class: "body" });
    const item = el("li", { class: "message assistant" }, el("h3", { class: "unseen" }, "NanoChat"), body, el("div", { class: "below" }));
    const calls = () => callsOf(message.parts);
    const code = (text) => copyButton(t("copy_code"), text, () => this.on.announce(t("copied")));
    item.markdown = new Markdown(body, code, (index) => chip(calls()[index]));
    item.plain = el("p", { class: "text" });
    if (message.continues) body.append(item.plain);
    this.#body(item, message);
    this.#below(item, message, false);
    return item;
  }

  // The last answer, as far as it has come.
  #fill(message, busy) {
    const item = this.items.at(-1);
    item.classList.toggle("busy", busy);
    item.classList.toggle("waiting", busy && !message.parts.length);
    this.#body(item, message);
    this.#below(item, message, busy);
  }

  #body(item, message) {
    if (message.continues) item.plain.textContent = conversations.textOf(message);
    else item.markdown.update(source(message.parts));
  }

  // What stands below an answer: what became of it, and its buttons.
  #below(item, message, busy) {
    const state = JSON.stringify([message.waiting, message.error, message.finish, busy]);
    if (item.state === state) return;
    item.state = state;
    const below = item.querySelector(".below");
    below.replaceChildren();
    if (message.waiting) below.append(el("p", { class: "note" }, t(`error_${message.waiting.kind}`, message.waiting.seconds)));
    if (busy) {
      if (!message.waiting) below.append(el("p", { class: "thinking" }, el("span", { class: "unseen" }, t("thinking"))));
      return;
    }
    if (message.error) below.append(this.#error(message.error));
    if (message.finish === "stopped") below.append(el("p", { class: "note" }, t("stopped")));
    if (message.finish === "length" && !message.continues) below.append(el("p", { class: "note" }, t("cut")));
    const actions = el("div", { class: "actions" });
    if (message.parts.length) actions.append(this.#copyButton(() => conversations.textOf(message)));
    const last = message === this.conversation.messages.at(-1);
    if (last && !message.error) actions.append(iconButton("again", t("again"), () => this.on.again(), { class: "icon again" }));
    if (actions.childNodes.length) below.append(actions);
  }

  #error({ kind, message }) {
    const argument = kind === "too_long" ? this.context() && number(this.context()) : kind === "other" ? message : undefined;
    const retry = el("button", { type: "button", class: "quiet retry", onclick: () => this.on.retry(kind) }, t("retry"));
    return el("div", { class: "error" }, icon("warning"), el("p", {}, t(`error_${kind}`, argument)), retry);
  }

  #copyButton(text) {
    return copyButton(t("copy_message"), text, () => this.on.announce(t("copied")));
  }

  // A line below the turns that the model no longer sees.
  #markForgotten() {
    const { messages } = this.conversation;
    const last = messages.findLastIndex((message) => message.role === "assistant" && (message.dropped || message.parts.length));
    const turns = messages[last]?.dropped ?? 0;
    if (this.forgotten?.isConnected && this.forgotten.turns === turns && this.forgotten.last === last) return;
    this.forgotten?.remove();
    const count = turns ? conversations.messagesInTurns(messages, last, turns) : 0;
    this.items.forEach((item, index) => item.classList.toggle("forgotten", index < count));
    if (!count) return;
    const context = this.context();
    const text = t("forgotten", turns, context && number(context));
    this.forgotten = Object.assign(el("li", { class: "divider" }, el("p", {}, text)), { turns, last });
    this.items[count - 1].after(this.forgotten);
    this.on.announce(text);
  }
}

// An answer's text, with CALL where the calculator was asked.
function source(parts) {
  return parts.map(({ type, text }) => (type === "python" ? CALL : type === "text" ? text.replaceAll(CALL, "") : "")).join("");
}

function callsOf(parts) {
  const calls = [];
  parts.forEach(({ type, text }, index) => {
    const next = parts[index + 1];
    if (type === "python") calls.push([text, next?.type === "python_output" ? next.text : null]);
  });
  return calls;
}

// A call of the calculator: the expression and its result.
function chip([expression, result]) {
  const said = result ?? t("no_result");
  const inner = [icon("calculator"), el("code", {}, expression), el("span", {}, "="), el("code", {}, said)];
  return el("span", { class: "chip", title: t("calculator", expression, said) }, ...inner);
}
