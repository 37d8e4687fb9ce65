// The conversation that is open, and the answers that are on their way (one for each conversation at most).

import { answer } from "./api.js";
import * as conversations from "./conversations.js";

const TRIES = 3; // of a request that a busy server put off
const SAVE_EVERY = 1000; // milliseconds, of an answer on its way

export class Chat {
  /**
   * `settings()` has the sampling settings and `system`; `model()` the model that answers, or null.
   * `on` is told what happens: opened(), changed(message), ended(conversation, message), kept(whether there was room).
   */
  constructor(settings, model, on) {
    this.settings = settings;
    this.model = model;
    this.on = on;
    this.running = new Map(); // conversation's id -> AbortController
    this.current = conversations.create();
  }

  /** Whether an answer is on its way in the open conversation. */
  get busy() {
    return this.running.has(this.current.id);
  }

  /** Open a conversation, a new one where none is given. */
  open(conversation = conversations.create()) {
    this.current = conversation;
    this.on.opened();
  }

  /** Say something. */
  send(text) {
    this.current.messages.push({ role: "user", text });
    return this.#answer();
  }

  /** Say something else in place of the message at `index`; what came after it goes. */
  edit(index, text) {
    this.current.messages.splice(index, Infinity, { role: "user", text });
    return this.#answer();
  }

  /** Answer the last message once more. */
  again() {
    const { messages } = this.current;
    while (messages.at(-1)?.role === "assistant") messages.pop();
    return this.#answer();
  }

  /** End the answer that is on its way. */
  stop(id = this.current.id) {
    this.running.get(id)?.abort();
  }

  /** Keep what has come so far, of every answer on its way. */
  keep() {
    for (const id of this.running.keys()) if (conversations.get(id)) conversations.save(conversations.get(id));
  }

  async #answer() {
    const conversation = this.current;
    const { system, ...settings } = this.settings();
    const sent = conversations.history(conversation.messages, conversation.messages.length, system);
    const message = { role: "assistant", parts: [], continues: this.model()?.chats === false };
    const controller = new AbortController();
    conversation.messages.push(message);
    conversation.updated = Date.now();
    this.running.set(conversation.id, controller);
    this.#save(conversation);
    this.on.opened();
    try {
      await this.#tries(conversation, message, sent, settings, controller.signal);
    } catch (error) {
      if (error.name === "AbortError") message.finish = "stopped";
      else message.error = { kind: error.kind ?? "other", message: error.message };
    }
    if (this.running.get(conversation.id) === controller) this.running.delete(conversation.id);
    this.#save(conversation);
    if (conversation.messages.includes(message)) this.on.ended(conversation, message); // an edit may have removed it
  }

  // The answer, asked for again where the server says when to.
  async #tries(conversation, message, sent, settings, signal) {
    for (let attempt = 1; ; attempt++) {
      try {
        await this.#stream(conversation, message, sent, settings, signal);
        return;
      } catch (error) {
        if (attempt === TRIES || message.parts.length || !error.retryAfter || !["busy", "draining"].includes(error.kind)) throw error;
        for (let left = Math.ceil(error.retryAfter); left > 0; left--) {
          message.waiting = { kind: error.kind, seconds: left };
          this.#changed(conversation, message);
          await second(signal);
        }
      } finally {
        delete message.waiting;
      }
    }
  }

  async #stream(conversation, message, sent, settings, signal) {
    let saved = Date.now();
    for await (const { model, text, calculator, dropped, finish } of answer(sent, settings, signal)) {
      if (model) message.model = model;
      if (text) add(message.parts, "text", text);
      if (calculator) message.parts.push({ type: "python", text: calculator.expression });
      if (typeof calculator?.result === "string") message.parts.push({ type: "python_output", text: calculator.result });
      if (dropped) message.dropped = dropped;
      if (finish) message.finish = finish;
      if (Date.now() - saved > SAVE_EVERY) {
        saved = Date.now();
        this.#save(conversation);
      }
      this.#changed(conversation, message);
    }
  }

  #changed(conversation, message) {
    if (conversation === this.current) this.on.changed(message);
  }

  // A conversation that was deleted meanwhile, or brought back as it had been, stays so.
  #save(conversation) {
    const kept = conversations.get(conversation.id) === conversation || conversation === this.current;
    if (kept) this.on.kept(conversations.save(conversation));
  }
}

function add(parts, type, text) {
  if (parts.at(-1)?.type === type) parts.at(-1).text += text;
  else parts.push({ type, text });
}

function second(signal) {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal.reason);
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", stop);
      resolve();
    }, 1000);
    if (signal.aborted) stop();
    else signal.addEventListener("abort", stop);
  });
}
