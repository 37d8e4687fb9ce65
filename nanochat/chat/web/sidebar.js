// The list of conversations: open, rename, delete.

import * as conversations from "./conversations.js";
import { byId, el, iconButton } from "./dom.js";
import { day, t } from "./i18n.js";

const SEARCH_FROM = 8; // conversations: fewer need no search

const list = byId("conversations");
const narrow = window.matchMedia("(max-width: 52rem)"); // as in style.css

/** Draw the list, by days. `on` does what is asked for: open(conversation), rename(conversation, title), remove(conversation). */
export function drawConversations(current, on) {
  if (list.querySelector("input")) return; // a title is being written
  const words = byId("search").value;
  const found = conversations.search(words);
  byId("search").hidden = conversations.all().length < SEARCH_FROM && !words;
  const state = JSON.stringify([words, current.id, document.documentElement.lang, dayOf(Date.now()), found.map(({ id, title, updated }) => [id, title, updated])]);
  if (list.dataset.state === state) return; // a thousand of them are not drawn anew for nothing
  list.dataset.state = state;
  const items = [];
  let day = "";
  for (const conversation of found) {
    if (dayOf(conversation.updated) !== day) {
      day = dayOf(conversation.updated);
      items.push(el("li", { class: "day" }, day));
    }
    items.push(item(conversation, conversation.id === current.id, on));
  }
  list.replaceChildren(...(items.length ? items : [el("li", { class: "empty" }, t(words ? "none_found" : "no_conversations"))]));
}

const DAY = 86_400_000; // milliseconds

function dayOf(when) {
  const start = (time) => new Date(time).setHours(0, 0, 0, 0);
  const ago = Math.round((start(Date.now()) - start(when)) / DAY);
  return ago <= 0 ? t("today") : ago === 1 ? t("yesterday") : day(when);
}

function item(conversation, open, on) {
  const title = conversation.title || t("untitled");
  const button = el("button", { type: "button", class: "row", title, onclick: () => on.open(conversation) }, el("span", { dir: "auto" }, title));
  if (open) button.setAttribute("aria-current", "page");
  const rename = iconButton("edit", `${t("rename")}: ${title}`, () => startRenaming(row, conversation, on), { class: "icon rename" });
  const remove = iconButton("trash", `${t("delete")}: ${title}`, () => on.remove(conversation), { class: "icon delete" });
  const row = el("li", { class: open ? "open" : "" }, button, rename, remove);
  return row;
}

/** Move the focus from a conversation that is about to go to the one that takes its place, or to the button above the list. */
export function focusAfter(id) {
  const index = conversations.all().findIndex((conversation) => conversation.id === id);
  return () => {
    const rows = list.querySelectorAll("li > .row");
    (rows[Math.min(index, rows.length - 1)] ?? byId("new-chat")).focus();
  };
}

function startRenaming(row, conversation, on) {
  const input = el("input", { "aria-label": t("title_label"), dir: "auto", maxlength: 120 });
  input.value = conversation.title;
  let done = false;
  const end = (keep) => {
    if (done) return;
    done = true;
    input.remove();
    list.dataset.state = "";
    on.rename(conversation, keep && input.value.trim() ? input.value.trim() : conversation.title);
    list.querySelector("[aria-current]")?.focus();
  };
  input.addEventListener("keydown", (event) => {
    if (event.isComposing || event.keyCode === 229) return;
    if (event.key === "Enter" || event.key === "Escape") {
      event.preventDefault();
      event.stopPropagation();
      end(event.key === "Enter");
    }
  });
  input.addEventListener("blur", () => end(true));
  row.replaceChildren(input);
  input.focus();
  input.select();
}

/** On a phone the sidebar is a drawer: what is closed cannot be reached by keyboard either. */
export function showSidebar(open) {
  document.body.classList.toggle("drawer", open && narrow.matches);
  byId("sidebar").inert = narrow.matches && !open;
  document.querySelector("main").inert = narrow.matches && open;
  if (narrow.matches) byId(open ? "close-sidebar" : "open-sidebar").focus({ preventScroll: true });
}

/** Let the sidebar follow the window's width, its buttons and Escape. */
export function setUpSidebar() {
  const closed = () => {
    document.body.classList.remove("drawer");
    byId("sidebar").inert = narrow.matches;
    document.querySelector("main").inert = false;
  };
  narrow.addEventListener("change", closed);
  byId("open-sidebar").addEventListener("click", () => showSidebar(true));
  byId("close-sidebar").addEventListener("click", () => showSidebar(false));
  byId("backdrop").addEventListener("click", () => showSidebar(false));
  byId("sidebar").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && document.body.classList.contains("drawer")) {
      event.stopPropagation();
      showSidebar(false);
    }
  });
  closed();
}
