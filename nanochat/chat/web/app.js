// The page: its parts, its keys, and the state of the model and of the training that the server reports.

import * as api from "./api.js";
import { Chat } from "./chat.js";
import * as conversations from "./conversations.js";
import { byId, el, icon } from "./dom.js";
import { number, stage, switchLanguage, t, translate } from "./i18n.js";
import { announce, toast } from "./notices.js";
import { drawSettings, drawTheme, loadSettings, resetSettings, settings, setUpTheme } from "./settings.js";
import { drawConversations, focusAfter, setUpSidebar, showSidebar } from "./sidebar.js";
import { drawTraining, percent } from "./training.js";
import { Transcript } from "./transcript.js";
import { drawWelcome } from "./welcome.js";

const LIVE = 2000; // milliseconds between looks at a training, or while there is no model or no server
const CALM = 10000; // and otherwise

const message = byId("message");
let status = null; // the server's last answer {model, training, hint}
let offline = false;
let keyless = false; // the server asks for a key, and none was given that it takes
let viewChosen = false; // a person has chosen between chat and training
let showsTraining = false;

const model = () => status?.model ?? null;
const ready = () => !status || model() !== null; // until the server has spoken, a message may be tried
const chat = new Chat(settings, model, { opened, changed: (answer) => transcript.update(answer), ended, kept });
const transcript = new Transcript(
  { edit, again, retry: (kind) => (kind === "key" ? askKey() : again()), announce },
  model,
);

let storageFull = false;
function drawNotice() {
  const told = !showsTraining && chat.current.messages.at(-1)?.error?.kind === "network"; // below the message, with its button
  const kind = offline ? (told ? "" : "offline") : keyless ? "error_key" : storageFull ? "storage_full" : conversations.persistent() ? "" : "storage_none";
  const notice = byId("notice");
  const state = kind && t(kind);
  if (notice.dataset.state === state) return;
  notice.dataset.state = state;
  notice.hidden = !kind;
  notice.replaceChildren(state, ...(keyless ? [" ", el("button", { type: "button", class: "quiet", onclick: askKey }, t("key_enter"))] : []));
}

// The conversation.

function opened() {
  drawChat(); // first what is seen: a hidden list has no end to scroll to
  transcript.show(chat.current, chat.busy);
  drawNotice();
  const hash = chat.current.messages.length ? `#${chat.current.id}` : " ";
  if (location.hash !== hash.trim()) history.replaceState(null, "", hash === " " ? location.pathname : hash);
}

function ended(conversation, answer) {
  if (conversation === chat.current) {
    transcript.finish(answer);
    drawChat();
    drawNotice();
    announce(answer.error ? "" : t("answered", conversations.textOf(answer)));
  }
  if (answer.error) look();
}

function kept(room) {
  storageFull = !room;
  drawNotice();
}

function edit(index, text) {
  const before = { ...chat.current, messages: [...chat.current.messages] };
  const removed = before.messages.length - index - 2; // the message itself and its answer are no loss to mention
  chat.stop();
  chat.edit(index, text);
  if (removed > 0) toast(t("edited", removed), () => undo(before));
  focusMessage();
}

function again() {
  chat.again();
  focusMessage(); // the button that had the focus is gone
}

function undo(conversation) {
  bringBack(conversation);
  focusMessage();
}

function bringBack(conversation) {
  chat.stop(conversation.id);
  conversations.save(conversation);
  showChat();
  chat.open(conversation);
}

function remove(conversation) {
  const focus = byId("conversations").contains(document.activeElement) ? focusAfter(conversation.id) : () => {};
  chat.stop(conversation.id);
  conversations.remove(conversation.id);
  if (conversation === chat.current) chat.open();
  drawChat();
  focus();
  toast(t("deleted", conversation.title || t("untitled")), () => undo(conversation));
}

function rename(conversation, title) {
  conversation.title = title;
  kept(conversations.save(conversation));
  drawChat();
}

function newChat() {
  showChat();
  chat.open();
  showSidebar(false);
  focusMessage();
}

// Where there is a keyboard: on a phone it would cover the half of the page.
function focusMessage() {
  if (window.matchMedia("(hover: hover)").matches) message.focus();
}

function submit() {
  const text = message.value.trim();
  if (chat.busy || !text || !ready()) return;
  message.value = "";
  grow();
  chat.send(text);
  announce(t("thinking"));
}

// What depends on the conversation, the model or the language.

function drawChat() {
  const { current, busy } = chat;
  const answering = model();
  const title = showsTraining ? t("training") : current.title || t("untitled");
  byId("title").textContent = title;
  document.title = current.title && !showsTraining ? `${current.title} · NanoChat` : "NanoChat";
  message.placeholder = t(!ready() ? "placeholder_none" : answering?.chats === false ? "placeholder_base" : "placeholder");
  byId("send").replaceChildren(icon(busy ? "stop" : "send"));
  byId("send").setAttribute("aria-label", t(busy ? "stop" : "send"));
  byId("send").title = t(busy ? "stop" : "send");
  byId("send").disabled = !busy && (!ready() || !message.value.trim());
  byId("welcome").hidden = current.messages.length > 0;
  byId("messages").hidden = current.messages.length === 0;
  drawWelcome(answering, (text) => {
    message.value = text;
    submit();
    focusMessage();
  });
  drawConversations(current, {
    open: (conversation) => {
      showChat();
      chat.open(conversation);
      showSidebar(false);
      focusMessage();
    },
    rename,
    remove,
  });
}

function drawModel() {
  const answering = model();
  const training = status?.training;
  const badges = [];
  if (answering?.trial) badges.push(el("span", { class: "badge", title: t("trial_note") }, t("trial")));
  if (answering?.chats === false) badges.push(el("span", { class: "badge", title: t("base_note") }, stage("base")));
  const name = answering && el("span", { title: t("model_label", { ...answering, step: number(answering.step) }) }, answering.run);
  byId("model").replaceChildren(...(answering ? [name, ...badges] : []));
  byId("training-pill").hidden = !training?.alive;
  if (training?.alive) byId("training-pill").textContent = t("pill", percent(training));
  drawTraining(status, document.documentElement.lang, { announce, chat: newChat });
}

// Chat or training.

function showChat() {
  viewChosen = true;
  show(false);
}

function show(training) {
  showsTraining = training;
  byId("training").hidden = !training;
  byId("chat").hidden = training;
  byId("open-training").toggleAttribute("data-open", training);
  if (training) byId("open-training").setAttribute("aria-current", "page");
  else byId("open-training").removeAttribute("aria-current");
  drawChat();
  drawNotice();
  if (!training) transcript.back();
}

function openTraining() {
  viewChosen = true;
  show(true);
  showSidebar(false);
  byId("training").focus();
}

function closeTraining() {
  showChat();
  showSidebar(false);
  focusMessage();
}

// The server's state, looked at again and again while the page is visible.

let timer;
async function look() {
  clearTimeout(timer);
  let failed = null;
  try {
    const next = await api.status();
    // Until a person chooses, the view is the chat where there is a model, else the training; nobody who watches one is interrupted.
    const watching = showsTraining && next.training?.alive;
    if (!viewChosen && !watching && !next.model !== showsTraining) show(!next.model);
    status = next;
  } catch (error) {
    failed = error;
  }
  offline = failed?.kind === "network";
  keyless = failed?.kind === "key";
  if (keyless) askKey();
  drawNotice();
  drawModel();
  const drawn = JSON.stringify([ready(), model(), offline]);
  if (drawn !== look.drawn) {
    drawChat();
    transcript.modelChanged();
  }
  look.drawn = drawn;
  clearTimeout(timer);
  const wait = failed || !model() || status.training?.alive ? LIVE : CALM;
  if (!document.hidden && !keyless) timer = setTimeout(look, wait);
}

function askKey() {
  if (byId("key").open) return;
  byId("key-text").textContent = t(api.hasKey() ? "key_wrong" : "key_text");
  byId("key-input").value = "";
  byId("key").showModal();
}

function drawHelp() {
  const row = ([keys, meaning]) => el("div", {}, el("dt", {}, ...keys.split(" ").map((key) => el("kbd", {}, key))), el("dd", {}, meaning));
  byId("help-list").replaceChildren(...t("keys").map(row));
}

function draw() {
  translate();
  drawTheme();
  drawSettings();
  drawHelp();
  drawModel();
  drawChat();
  transcript.show(chat.current, chat.busy);
  drawNotice();
}

// The height of the message's field follows its text.
function grow() {
  message.style.height = "auto";
  message.style.height = `${message.scrollHeight}px`;
  byId("send").disabled = !chat.busy && (!ready() || !message.value.trim());
}

function onKey(event) {
  if (event.isComposing || event.keyCode === 229 || document.querySelector("dialog[open]")) return;
  const typing = event.target.matches("input, textarea");
  if (event.key === "Escape" && chat.busy) chat.stop();
  else if ((event.ctrlKey || event.metaKey) && event.shiftKey && event.key.toLowerCase() === "o") newChat();
  else if (!typing && event.key === "/") message.focus();
  else if (!typing && event.key === "?") byId("help").showModal();
  else return;
  event.preventDefault();
}

function onMessageKey(event) {
  if (event.isComposing || event.keyCode === 229) return; // Enter ends the input of a Chinese word
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    submit();
  } else if (event.key === "ArrowUp" && !message.value && !chat.busy) {
    event.preventDefault();
    transcript.editLast();
  }
}

function setUp() {
  for (const node of document.querySelectorAll("[data-icon]")) node.prepend(icon(node.dataset.icon));
  for (const node of document.querySelectorAll("[data-close]")) node.addEventListener("click", () => node.closest("dialog").close());
  const clicks = {
    "new-chat": newChat,
    "open-training": () => (showsTraining ? closeTraining() : openTraining()),
    "training-pill": openTraining,
    "open-settings": () => byId("settings").showModal(),
    "reset-settings": resetSettings,
    "open-help": () => byId("help").showModal(),
    language: () => {
      switchLanguage();
      draw();
    },
  };
  for (const [id, click] of Object.entries(clicks)) byId(id).addEventListener("click", click);
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault();
    message.focus();
  });
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (chat.busy) chat.stop();
    else submit();
  });
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    api.useKey(byId("key-input").value.trim());
    byId("key").close();
    if (chat.current.messages.at(-1)?.error?.kind === "key") chat.again();
    look();
  });
  message.addEventListener("input", grow);
  message.addEventListener("keydown", onMessageKey);
  document.addEventListener("keydown", onKey);
  document.addEventListener("visibilitychange", () => !document.hidden && look());
  window.addEventListener("pagehide", () => chat.keep());
  window.addEventListener("hashchange", () => openHash());
  conversations.onOtherTab((id) => {
    if (id === chat.current.id && !chat.busy && conversations.get(id)) chat.open(conversations.get(id));
    else drawChat();
  });
}

function openHash() {
  const found = conversations.get(location.hash.slice(1));
  if (found && found !== chat.current) chat.open(found);
}

conversations.load();
loadSettings();
setUpTheme();
setUpSidebar();
setUp();
draw();
openHash();
focusMessage();
look();
