// The conversation that is open, and the answers that are on their way (one for each conversation at most).

import { answer } from "./api.js";
import * as conversations from "./conversations.js";

const TRIES = 3; // of a request that a busy server put off
const SAVE_EVERY = 1000; // milliseconds, of an answer on its way
const ALTERNATIVES = 5; // tokens whose probabilities are asked for with each token
const ANSWER = ["parts", "finish", "error", "dropped", "model", "stats", "tokens", "continues"]; // what versions of an answer differ in

const pick = (message) => Object.fromEntries(ANSWER.filter((key) => message[key] !== undefined).map((key) => [key, structuredClone(message[key])]));

// All versions of an answer, the one that is shown as it is now.
function versionsOf(message) {
  const versions = [...(message.versions ?? [{}])];
  versions[message.at ?? 0] = pick(message);
  return versions;
}

// A token with its probability and the likeliest ones in its place: [text, probability, [[text, probability], ...]].
const token = ({ token: text, logprob, top_logprobs: top }) => [text, share(logprob), top.map((one) => [one.token, share(one.logprob)])];
const share = (logprob) => Math.round(1e4 * Math.exp(logprob)) / 1e4;

export class Chat {
  /**
   * `settings(conversation)` has the sampling settings, `system` and `probabilities`; `model()` the model that answers, or null.
   * `on` is told what happens: opened(), changed(message), ended(conversation, message), kept(whether it could be stored).
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

  /** Replace the message at `index` and remove the messages after it. */
  edit(index, text) {
    this.current.messages.splice(index, Infinity, { role: "user", text });
    return this.#answer();
  }

  /** Answer the last message once more; the answers before stay, as versions of it. */
  again() {
    const { messages } = this.current;
    let versions = [];
    while (messages.at(-1)?.role === "assistant") versions = versionsOf(messages.pop()).filter((one) => one.parts.length);
    return this.#answer(versions);
  }

  /** Show another version of the last answer. */
  turnTo(message, index) {
    const versions = versionsOf(message);
    for (const key of ANSWER) delete message[key];
    Object.assign(message, structuredClone(versions[index]), { versions, at: index });
    this.#save(this.current);
    this.on.opened();
  }

  /** Keep the second answer in place of the first one, which becomes a version. */
  keepBeside(message) {
    const versions = [...versionsOf(message), message.beside];
    delete message.beside;
    Object.assign(message, { versions, at: message.at ?? 0 });
    this.turnTo(message, versions.length - 1);
  }

  /** End the answer that is on its way. */
  stop(id = this.current.id) {
    this.running.get(id)?.abort();
  }

  /** Keep what has come so far, of every answer on its way. */
  keep() {
    for (const id of this.running.keys()) if (conversations.get(id)) conversations.save(conversations.get(id));
  }

  async #answer(versions = []) {
    const conversation = this.current;
    const { system, probabilities, ...settings } = this.settings(conversation);
    if (probabilities) Object.assign(settings, { logprobs: true, top_logprobs: ALTERNATIVES });
    const sent = conversations.history(conversation.messages, conversation.messages.length, system);
    const message = { role: "assistant", parts: [], continues: this.model()?.chats === false };
    if (versions.length) Object.assign(message, { versions, at: versions.length });
    const wanted = [[message, conversation.model]];
    if (conversation.beside) wanted.push([(message.beside = { parts: [] }), conversation.beside]);
    const controller = new AbortController();
    conversation.messages.push(message);
    conversation.updated = Date.now();
    this.running.set(conversation.id, controller);
    this.#save(conversation);
    this.on.opened();
    const one = async ([target, model]) => {
      try {
        await this.#tries(conversation, message, target, sent, model ? { ...settings, model } : settings, controller.signal);
      } catch (error) {
        if (error.name === "AbortError") target.finish = "stopped";
        else target.error = { kind: error.kind ?? "other", message: error.message };
      }
    };
    await Promise.all(wanted.map(one));
    if (message.versions) message.versions[message.at] = pick(message);
    if (this.running.get(conversation.id) === controller) this.running.delete(conversation.id);
    this.#save(conversation);
    if (conversation.messages.includes(message)) this.on.ended(conversation, message); // an edit may have removed it
  }

  // The answer, asked for again where the server says when to. `target` is the message, or its second answer.
  async #tries(conversation, message, target, sent, settings, signal) {
    for (let attempt = 1; ; attempt++) {
      try {
        await this.#stream(conversation, message, target, sent, settings, signal);
        return;
      } catch (error) {
        if (attempt === TRIES || target.parts.length || !error.retryAfter || !["busy", "draining"].includes(error.kind)) throw error;
        for (let left = Math.ceil(error.retryAfter); left > 0; left--) {
          target.waiting = { kind: error.kind, seconds: left };
          this.#changed(conversation, message);
          await second(signal);
        }
      } finally {
        delete target.waiting;
      }
    }
  }

  async #stream(conversation, message, target, sent, settings, signal) {
    let saved = Date.now();
    let began = 0;
    for await (const { model, usage, tokens, text, calculator, dropped, finish } of answer(sent, settings, signal)) {
      if (model) target.model = model;
      if (text || calculator) began ||= performance.now();
      if (tokens) (target.tokens ??= []).push(...tokens.map(token));
      if (text) add(target.parts, "text", text);
      if (calculator) target.parts.push({ type: "python", text: calculator.expression });
      if (typeof calculator?.result === "string") target.parts.push({ type: "python_output", text: calculator.result });
      if (dropped) target.dropped = dropped;
      if (finish) target.finish = finish;
      if (usage) target.stats = { tokens: usage.completion_tokens, seconds: began ? Math.round(performance.now() - began) / 1000 : 0 };
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
