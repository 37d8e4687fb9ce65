// Conversations, kept in this browser: one entry of localStorage each, so that two tabs do not write over each other's.
//
// A conversation is {id, title, updated, messages}. A message is {role: "user", text}, or {role: "assistant", parts, ...}
// with parts {type: "text" | "python" | "python_output", text} as the API has them.

const PREFIX = "nanochat.conversation.";
const TITLE = 60; // characters

const kept = new Map(); // id -> conversation: what this tab knows
let storage = null;
try {
  storage = window.localStorage;
  storage.setItem("nanochat.probe", "1");
  storage.removeItem("nanochat.probe");
} catch {
  storage = null;
}

/** Whether the browser keeps anything for this page. */
export const persistent = () => storage !== null;

/** An empty conversation; it is kept from its first `save` on. */
export function create() {
  const id = Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  return { id, title: "", updated: Date.now(), messages: [] };
}

/** Read what is stored; entries that are no conversations are left alone. */
export function load() {
  for (const name of storage ? Object.keys(storage) : []) read(name);
}

function read(name) {
  if (!name?.startsWith(PREFIX)) return;
  const id = name.slice(PREFIX.length);
  let found = null;
  try {
    found = JSON.parse(storage.getItem(name));
  } catch {
    return;
  }
  if (found === null) kept.delete(id);
  else if (valid(found)) kept.set(id, { ...found, id });
}

const isText = (value) => typeof value === "string";
const isPart = (part) => isText(part?.type) && isText(part?.text);
const isMessage = (message) =>
  message?.role === "user" ? isText(message.text) : message?.role === "assistant" && Array.isArray(message.parts) && message.parts.every(isPart);
const valid = (found) => isText(found?.title) && Number.isFinite(found.updated) && Array.isArray(found.messages) && found.messages.every(isMessage);

/** All of them, the newest first. */
export const all = () => [...kept.values()].sort((a, b) => b.updated - a.updated);

/** The conversation with this id, or undefined. */
export const get = (id) => kept.get(id);

/** Store a conversation. Returns whether the browser could store it; otherwise it exists only until the page is closed. */
export function save(conversation) {
  const first = conversation.messages.find((message) => message.role === "user");
  conversation.title ||= (first?.text ?? "").trim().replace(/\s+/g, " ").slice(0, TITLE);
  kept.set(conversation.id, conversation);
  try {
    storage?.setItem(PREFIX + conversation.id, JSON.stringify(conversation));
    return true;
  } catch {
    return false;
  }
}

/** Delete a conversation; `save` brings it back. */
export function remove(id) {
  kept.delete(id);
  storage?.removeItem(PREFIX + id);
}

/** Call `listener` with the conversation's id when another tab changes one. */
export function onOtherTab(listener) {
  window.addEventListener("storage", (event) => {
    if (!event.key?.startsWith(PREFIX)) return;
    read(event.key);
    listener(event.key.slice(PREFIX.length));
  });
}

/** A message's text as a person reads it. */
export function textOf(message) {
  if (message.role === "user") return message.text;
  return message.parts
    .filter((part) => part.type === "text")
    .map((part) => part.text)
    .join("");
}

// More than any model here reads; the server refuses longer lists.
const MOST = 1000;

/** The messages before `end` as the API takes them. Answers that never began are left out. */
export function history(messages, end, system) {
  const said = messages.slice(0, end).filter((message) => message.role === "user" || message.parts.length);
  const recent = said.slice(-MOST).map((message) =>
    message.role === "user" ? { role: "user", content: message.text } : { role: "assistant", content: message.parts },
  );
  while (recent[0]?.role === "assistant") recent.shift();
  return system.trim() ? [{ role: "system", content: system }, ...recent] : recent;
}

/** Number of messages before `end` in the oldest `turns` turns; a turn begins with a user message after an answer. */
export function messagesInTurns(messages, end, turns) {
  let begun = 0;
  let answered = true;
  for (let index = 0; index < end; index++) {
    const message = messages[index];
    if (message.role === "user" && answered) {
      if (begun === turns) return index;
      begun++;
      answered = false;
    } else if (message.role === "assistant" && message.parts.length) {
      answered = true;
    }
  }
  return end;
}

/** The conversations in which a word occurs, in the title or a message; all for "". */
export function search(words) {
  const wanted = words.trim().toLowerCase();
  if (!wanted) return all();
  return all().filter(({ title, messages }) => title.toLowerCase().includes(wanted) || messages.some((message) => textOf(message).toLowerCase().includes(wanted)));
}

/** All conversations as JSON that `importJson` reads. */
export const exportJson = () => JSON.stringify({ format: "nanochat-conversations", version: 1, conversations: all() }, null, 1);

/** Take in conversations of a JSON file; returns how many. Throws where it is none. One that is here already stays as it is. */
export function importJson(text) {
  const found = JSON.parse(text);
  if (found?.format !== "nanochat-conversations" || !Array.isArray(found.conversations)) throw new TypeError("no conversations");
  const fresh = found.conversations.filter((one) => valid(one) && isText(one.id) && /^[0-9a-f]{1,64}$/.test(one.id) && !kept.has(one.id));
  for (const one of fresh) save(one);
  return fresh.length;
}

/** A conversation as Markdown; what the two say is quoted as it is. */
export function exportMarkdown({ title, updated, messages }, you) {
  const one = (message) => `## ${message.role === "user" ? you : `NanoChat${message.model ? ` (${message.model.run}, ${message.model.stage} ${message.model.step})` : ""}`}\n\n${textOf(message)}\n`;
  return [`# ${title}\n`, `${new Date(updated).toISOString()}\n`, ...messages.map(one)].join("\n");
}
