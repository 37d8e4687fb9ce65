// The page: its parts, its keys, and the state of the model and of the run that the server reports.

import * as api from "./api.js";
import { Chat } from "./chat.js";
import * as conversations from "./conversations.js";
import { askKey, drawHelp, setUpDialogs } from "./dialogs.js";
import { byId, el, icon } from "./dom.js";
import { setUpFiles } from "./files.js";
import { switchLanguage, t, translate } from "./i18n.js";
import { setUpKeys } from "./keys.js";
import { chooseModel, drawModelButton, modelNamed } from "./models.js";
import { announce, toast } from "./notices.js";
import { drawSettings, drawTheme, loadSettings, resetSettings, settings, settingsOf, setUpTheme } from "./settings.js";
import { drawConversations, focusAfter, setUpSidebar, showSidebar } from "./sidebar.js";
import { Transcript } from "./transcript.js";
import { Views } from "./views.js";
import { drawWelcome } from "./welcome.js";

const LIVE = 2000; // milliseconds between two requests of the state during training, or without a model or server
const CALM = 10000; // and otherwise

const message = byId("message");
let status = null; // the server's last answer {model, training, hint}
let offline = false;
let keyless = false; // the server asks for a key, and none was given that it takes

const serverModel = () => status?.model ?? null;
const model = () => (chat.current.model ? { ...modelNamed(chat.current.model) } : serverModel()); // that answers in the open conversation
const ready = () => !status || model() !== null; // until the server has spoken, a message may be tried
const views = new Views({ changed: viewChanged, chat: newChat, announce, look });
const chat = new Chat(settings, model, { opened, changed: (answer) => transcript.update(answer), ended, kept });
const transcript = new Transcript({ edit, again, retry: (kind) => (kind === "key" ? askKey() : again()), announce, version, keepBeside }, model);

let storageFull = false;
function drawNotice() {
  const told = views.current === "chat" && chat.current.messages.at(-1)?.error?.kind === "network"; // below the message, with its button
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
  settingsOf(chat.current, keepSettings);
  drawModel();
  drawChat(); // first what is seen: a hidden list has no end to scroll to
  transcript.show(chat.current, chat.busy);
  drawNotice();
  if (views.current !== "chat") return;
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

function keepSettings(conversation) {
  if (conversations.get(conversation.id)) kept(conversations.save(conversation));
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

function version(message, index) {
  chat.turnTo(message, index);
  const buttons = [...document.querySelectorAll(".versions button:not(:disabled)")];
  buttons[0]?.focus();
}

function keepBeside(message) {
  chat.keepBeside(message);
  focusMessage();
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

// A new conversation, with the checkpoint `name` if given.
function newChat(name) {
  const { model: kept, beside } = chat.current;
  showChat();
  chat.open();
  const own = typeof name === "string" && (serverModel()?.run ?? modelNamed(name).run) === modelNamed(name).run; // the server follows the newest one by itself
  chat.current.model = typeof name === "string" ? (own ? undefined : name) : kept;
  if (typeof name !== "string") chat.current.beside = beside;
  drawModel();
  drawChat();
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

// Parts that depend on the conversation, the model or the language.

function drawChat() {
  const { current, busy } = chat;
  const answering = model();
  const inChat = views.current === "chat";
  byId("title").textContent = inChat ? current.title || t("untitled") : t(views.current);
  document.title = `${views.title}${current.title && inChat ? `${current.title} · ` : ""}NanoChat`;
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
  drawModelButton(model(), serverModel()?.device, Boolean(chat.current.beside));
  views.drawPill();
}

function pickModel() {
  chooseModel(chat.current, serverModel(), (name, beside) => {
    chat.current.model = name;
    chat.current.beside = beside;
    if (conversations.get(chat.current.id)) kept(conversations.save(chat.current));
    drawModel();
    drawChat();
    transcript.modelChanged();
  });
}

// Chat, training or runs.

function showChat() {
  views.chosen = true;
  if (views.current === "chat") return;
  views.show("chat");
  history.replaceState(null, "", chat.current.messages.length ? `#${chat.current.id}` : location.pathname);
}

function viewChanged() {
  drawChat();
  drawNotice();
  if (views.current === "chat") transcript.back();
}

// A button of the sidebar: the second press leads back to the conversation.
function toggle(name) {
  if (views.current === name && location.hash.split("/").length <= 2) {
    showChat();
    focusMessage();
  } else {
    views.go(`#/${name}`);
  }
  showSidebar(false);
}

// The server's state, looked at again and again while the page is visible.

let timer;
async function look() {
  clearTimeout(timer);
  let failed = null;
  try {
    const next = await api.status();
    // Until a person chooses a view, it is the chat if there is a model, else the training view; a watched run is not interrupted.
    const watching = views.current === "training" && next.training?.alive;
    const wanted = next.model ? "chat" : "training";
    status = next;
    if (!views.chosen && !watching && views.current !== wanted) views.show(wanted);
    await views.update(next);
  } catch (error) {
    failed = error;
  }
  offline = failed?.kind === "network";
  keyless = failed?.kind === "key";
  if (keyless) askKey();
  drawNotice();
  drawModel();
  const drawn = JSON.stringify([ready(), model(), offline, views.title]);
  if (drawn !== look.drawn) {
    drawChat();
    transcript.modelChanged();
  }
  look.drawn = drawn;
  clearTimeout(timer);
  const wait = failed || !model() || status.training?.alive || status.launch?.alive ? LIVE : CALM;
  if (!document.hidden && !keyless) timer = setTimeout(look, wait);
}

function draw() {
  translate();
  drawTheme();
  drawSettings();
  drawHelp();
  drawModel();
  views.redraw();
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

function setUp() {
  for (const node of document.querySelectorAll("[data-icon]")) node.prepend(icon(node.dataset.icon));
  const clicks = {
    "new-chat": () => newChat(),
    "open-training": () => toggle("training"),
    "open-runs": () => toggle("runs"),
    "training-pill": () => views.go("#/training"),
    model: pickModel,
    "open-settings": () => {
      settingsOf(chat.current, keepSettings);
      drawSettings();
      byId("settings").showModal();
    },
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
  setUpDialogs(() => {
    if (chat.current.messages.at(-1)?.error?.kind === "key") chat.again();
    look();
  });
  setUpFiles(() => chat.current, drawChat);
  byId("search").addEventListener("input", drawChat);
  message.addEventListener("input", grow);
  setUpKeys({ busy: () => chat.busy, stop: () => chat.stop(), newChat: () => newChat(), submit, editLast: () => transcript.editLast() });
  document.addEventListener("visibilitychange", () => !document.hidden && look());
  window.addEventListener("pagehide", () => chat.keep());
  window.addEventListener("hashchange", () => openHash());
  conversations.onOtherTab((id) => {
    if (id === chat.current.id && !chat.busy && conversations.get(id)) chat.open(conversations.get(id));
    else drawChat();
  });
}

function openHash(focus = true) {
  if (views.follow(location.hash, focus)) return;
  const found = conversations.get(location.hash.slice(1));
  if (found || (focus && !location.hash)) showChat();
  if (found && found !== chat.current) chat.open(found);
}

conversations.load();
loadSettings();
setUpTheme();
setUpSidebar();
setUp();
draw();
openHash(false);
focusMessage();
look();
