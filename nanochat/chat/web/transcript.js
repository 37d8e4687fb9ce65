// The messages of the open conversation on the page.

import * as conversations from "./conversations.js";
import { byId, copyButton, el, icon, iconButton } from "./dom.js";
import { number, stage, t } from "./i18n.js";
import { CALL, Markdown } from "./markdown.js";
import { toggleTokens } from "./tokens.js";

const NEAR = 8; // pixels from the end: nearer than this, it counts as the end

export class Transcript {
  /**
   * `on` does what the buttons ask for: edit(index, text), again(), retry(kind), announce(text), version(message,
   * index), keepBeside(message). `model()` would answer now, or null.
   */
  constructor(on, model) {
    this.on = on;
    this.model = model;
    this.list = byId("messages");
    this.scroll = byId("scroll");
    this.following = true; // the page stays at the end while an answer comes, until the reader scrolls up
    this.top = 0; // of the view, when it was last looked at
    this.scroll.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    byId("to-end").addEventListener("click", () => this.toEnd());
  }

  /** Show a conversation, at its end. `busy`: its last answer is still on its way. */
  show(conversation, busy) {
    this.conversation = conversation;
    const { messages } = conversation;
    this.items = messages.map((message, index) => (message.role === "user" ? this.#question(message, index) : this.#answer(message)));
    this.list.replaceChildren(...this.items);
    this.pending = null;
    if (messages.at(-1)?.role === "assistant") this.#fill(messages.at(-1), busy);
    this.#markForgotten();
    this.#markSwaps();
    this.swap = this.last?.textContent; // it is there already: nothing to announce
    this.toEnd();
  }

  /** Another model may answer from now on: it is said in the conversation. */
  modelChanged() {
    if (!this.conversation) return;
    this.#markSwaps();
    if (this.last && this.last.textContent !== this.swap) this.on.announce(this.last.textContent);
    this.swap = this.last?.textContent;
    if (this.following) this.toEnd();
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
    this.top = this.scroll.scrollTop;
    this.following = true;
    this.#showToEnd();
  }

  /** After the view was hidden, which takes its position: where the reader was. */
  back() {
    if (this.following) this.toEnd();
    else this.scroll.scrollTop = this.top;
    this.#showToEnd();
  }

  /** Open the editor of the last message of the user, if there is one. */
  editLast() {
    const buttons = this.list.querySelectorAll(".user .edit");
    buttons[buttons.length - 1]?.click();
  }

  #draw(message, busy) {
    this.pending = null;
    this.#fill(message, busy);
    this.#markForgotten();
    this.#markSwaps();
    if (this.following) this.toEnd();
    else this.#showToEnd();
  }

  #atEnd() {
    return this.scroll.scrollHeight - this.scroll.scrollTop - this.scroll.clientHeight < NEAR;
  }

  #scrolled() {
    if (!this.scroll.clientHeight) return; // it is hidden
    const { scrollTop } = this.scroll;
    if (this.#atEnd()) this.following = true;
    else if (scrollTop < this.top) this.following = false;
    this.top = scrollTop;
    this.#showToEnd();
  }

  #showToEnd() {
    byId("to-end").hidden = this.#atEnd();
  }

  #question(message, index) {
    const text = el("p", { class: "text", dir: "auto" }, message.text);
    const item = el("li", { class: "message user" }, el("h3", { class: "unseen" }, t("you")), text);
    const edit = iconButton("edit", t("edit"), () => this.#edit(item, message, index), { class: "icon edit" });
    item.append(el("div", { class: "actions" }, this.#copyButton(() => message.text), edit));
    return item;
  }

  #edit(item, message, index) {
    const before = [...item.childNodes];
    const area = el("textarea", { "aria-label": t("edit_label"), dir: "auto", rows: Math.min(message.text.split("\n").length + 1, 12) });
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
    item.plain = el("p", { class: "text", dir: "auto" });
    if (message.continues) body.append(item.plain);
    if (message.beside) {
      const other = el("div", { class: "body" });
      item.beside = { head: el("h4", { dir: "auto" }), note: el("div", { class: "beside-note" }) };
      item.beside.markdown = new Markdown(other, code, (index) => chip(callsOf(message.beside.parts)[index]));
      item.head = el("h4", { dir: "auto" });
      item.querySelector(".below").before(el("div", { class: "columns" }, el("div", {}, item.head, body), el("div", { class: "other" }, item.beside.head, other, item.beside.note)));
    }
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
    const { beside } = message;
    if (!beside || !item.beside) return;
    item.beside.markdown.update(source(beside.parts));
    item.head.textContent = message.model ? nameOf(message.model) : "";
    item.beside.head.textContent = beside.model ? nameOf(beside.model) : "";
    item.beside.note.replaceChildren(...(beside.error ? [el("p", { class: "error" }, t(`error_${beside.error.kind}`, beside.error.message))] : []));
  }

  // The line below an answer: its status and its buttons.
  #below(item, message, busy) {
    const last = message === this.conversation.messages.at(-1);
    const state = JSON.stringify([message.waiting, message.error, message.finish, busy, last, message.at, message.stats, message.tokens?.length, Boolean(message.beside)]);
    if (item.state === state) return;
    item.state = state;
    const below = item.querySelector(".below");
    below.replaceChildren();
    if (message.waiting) below.append(el("p", { class: "note" }, t(`error_${message.waiting.kind}`, message.waiting.seconds)));
    if (busy) {
      if (!message.waiting) below.append(el("p", { class: "thinking" }, el("span", { class: "unseen" }, t("thinking"))));
      return;
    }
    if (message.error) below.append(this.#error(message.error, last));
    const empty = isBlank(message) && !message.error && message.finish !== "stopped";
    if (empty) below.append(this.#empty(message, last));
    if (message.finish === "stopped") below.append(el("p", { class: "note" }, t("stopped")));
    if (message.finish === "length" && !message.continues) below.append(el("p", { class: "note" }, t("cut")));
    const actions = el("div", { class: "actions" });
    if (message.parts.length) actions.append(this.#copyButton(() => conversations.textOf(message)));
    if (last && !message.error && !empty) actions.append(iconButton("again", t("again"), () => this.on.again(), { class: "icon again" }));
    if (message.tokens?.length) actions.append(iconButton("tokens", t("show_tokens"), () => toggleTokens(item, message), { class: "icon show-tokens", "aria-expanded": "false" }));
    if (message.beside && last) actions.append(el("button", { type: "button", class: "quiet keep", onclick: () => this.on.keepBeside(message) }, t("keep_beside")));
    if (message.versions?.length > 1 && last) actions.prepend(this.#versions(message));
    if (message.stats && message.parts.length) actions.append(el("small", { class: "pace" }, said(message)));
    if (actions.childNodes.length) below.append(actions);
  }

  // An error. Only the last message can be tried again, because later ones would be lost.
  #error({ kind, message }, last) {
    const context = this.model()?.context;
    const argument = kind === "too_long" ? context && number(context) : kind === "other" ? message : undefined;
    return el("div", { class: "error" }, icon("warning"), el("p", {}, t(`error_${kind}`, argument)), ...this.#retry(kind, last));
  }

  // The model's first token was the end of its answer, or the page was closed before the first one came.
  #empty({ finish }, last) {
    return el("div", { class: "empty-answer" }, el("p", { class: "note" }, t(finish ? "empty_answer" : "stopped")), ...this.#retry("empty", last));
  }

  #retry(kind, last) {
    return last ? [el("button", { type: "button", class: "quiet retry", onclick: () => this.on.retry(kind) }, t("retry"))] : [];
  }

  // Which version of the answer is shown: 2/3, with buttons to the others.
  #versions(message) {
    const { at, versions } = message;
    const turn = (name, label, by) => iconButton(name, t(label), () => this.on.version(message, at + by), { class: `icon ${name}`, disabled: !versions[at + by] });
    return el("span", { class: "versions" }, turn("left", "version_before", -1), el("span", {}, `${at + 1}/${versions.length}`), turn("right", "version_next", 1));
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
    const context = this.model()?.context;
    const text = t("forgotten", turns, context && number(context));
    this.forgotten = Object.assign(el("li", { class: "divider" }, el("p", {}, text)), { turns, last });
    this.items[count - 1].after(this.forgotten);
    this.on.announce(text);
  }

  // A line before each answer that another model gave than the one before, and at the end where another one answers now.
  #markSwaps() {
    const { messages } = this.conversation;
    const wanted = [];
    let before = null;
    messages.forEach((message, index) => {
      if (!message.model) return;
      if (before && !sameModel(before, message.model)) wanted.push([this.items[index], message.model]);
      before = message.model;
    });
    const now = this.model();
    const busy = this.items.at(-1)?.classList.contains("busy");
    const ahead = Boolean(now && before && !busy && !sameModel(before, now));
    const state = JSON.stringify([wanted.map(([item, model]) => [this.items.indexOf(item), model]), ahead && nameOf(now)]);
    if (this.list.dataset.swaps === state && (!this.swaps?.length || this.swaps[0].isConnected)) return;
    this.list.dataset.swaps = state;
    for (const line of this.swaps ?? []) line.remove();
    const line = (model) => el("li", { class: "divider swap" }, el("p", {}, t("swapped", nameOf(model))));
    this.swaps = wanted.map(([item, model]) => {
      const node = line(model);
      item.before(node);
      return node;
    });
    this.last = ahead ? line(now) : null;
    if (this.last) this.list.append(this.last);
    if (this.last) this.swaps.push(this.last);
  }
}

const sameModel = (a, b) => a.run === b.run && a.stage === b.stage && a.step === b.step;
const nameOf = ({ run, stage: at, step }) => t("model_name", { run, stage: stage(at), step: number(step) });

// An answer's text, with CALL where the calculator was asked.
function source(parts) {
  return parts.map(({ type, text }) => (type === "python" ? CALL : type === "text" ? text.replaceAll(CALL, "") : "")).join("");
}

const SHORTEST = 0.05; // seconds: what comes sooner came at once, and has no speed

// How fast an answer came, and why it ended.
function said({ stats: { tokens, seconds }, finish }) {
  const speed = seconds > SHORTEST && tokens > 1 ? t("tokens_per_second", number(tokens / seconds, tokens / seconds < 10 ? 1 : 0)) : "";
  const why = finish === "stop" ? t("ended_itself") : ""; // the other reasons are shown above it
  return [t("tokens_count", number(tokens)), speed, why].filter(Boolean).join(" · ");
}

const isBlank = ({ parts }) => parts.every(({ type, text }) => type === "text" && !text.trim());

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
