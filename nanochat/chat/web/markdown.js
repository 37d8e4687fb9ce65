// Markdown as DOM nodes, made with createElement and text alone: no HTML is ever parsed, so none in a text can act.
//
// Headings, paragraphs, lists, quotes, tables, rules, code; bold, italic, struck, links to http(s). Images are not loaded.
// CALL marks the position of a calculator call in the source; the caller supplies its node.

import { el } from "./dom.js";
import { t } from "./i18n.js";

export const CALL = "\uE000"; // of the private use area; the caller removes it from the text itself

const DEPTH = 8; // of nesting; what is deeper stays text
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*)$/;
const RULE = /^ {0,3}(?:(?:-\s*){3,}|(?:\*\s*){3,}|(?:_\s*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])( +)(?=\S)/;
const TASK = /^\[([ xX])\] +(?=\S)/;
const DIVIDER = /^ *\|?(?: *:?-+:? *\|)* *:?-+:? *\|? *$/;

/** Keeps a container equal to a growing source. Blocks that did not change keep their nodes, and so the reader's selection. */
export class Markdown {
  /** `code(text)` makes the button of a code block; `call(index)` the node of the index-th calculator call. */
  constructor(container, code, call) {
    this.container = container;
    this.make = { code, call, calls: 0 };
    this.shown = []; // {source, calls, node}
  }

  update(source) {
    const blocks = split(source.split(/\r\n?|\n/));
    let same = 0;
    while (same < Math.min(blocks.length, this.shown.length) && this.shown[same].source === blocks[same].source) same++;
    for (const old of this.shown.splice(same)) old.node.remove();
    for (const block of blocks.slice(same)) {
      this.make.calls = this.shown.at(-1)?.calls ?? 0;
      const node = render(block, this.make, 0);
      this.container.append(node);
      this.shown.push({ source: block.source, calls: this.make.calls, node });
    }
  }
}

// Lines as blocks {kind, lines, source}; source tells whether a block has changed.
function split(lines) {
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (!lines[at].trim()) {
      at++;
      continue;
    }
    const [kind, end] = blockAt(lines, at);
    const own = lines.slice(at, end);
    blocks.push({ kind, lines: own, source: own.join("\n") });
    at = end;
  }
  return blocks;
}

// The kind of the block that begins at a line, and where it ends.
function blockAt(lines, at) {
  const until = (stop) => {
    let end = at + 1;
    while (end < lines.length && !stop(lines[end], end)) end++;
    return end;
  };
  const line = lines[at];
  const fence = FENCE.exec(line)?.[1];
  if (fence) {
    const closes = (other) => other.trim().startsWith(fence) && new Set(other.trim()).size === 1;
    return ["code", Math.min(until(closes) + 1, lines.length)];
  }
  if (HEADING.test(line)) return ["heading", at + 1];
  if (RULE.test(line)) return ["rule", at + 1];
  if (QUOTE.test(line)) return ["quote", until((other) => !QUOTE.test(other))];
  if (ITEM.test(line)) {
    const same = (other) => !startsItem(other, line) || isOrdered(other) === isOrdered(line); // else it begins a list of its own
    const belongs = (other) => (ITEM.test(other) && same(other)) || /^ {2,}\S/.test(other);
    const ends = (other, end) => !belongs(other) && (!same(other) || !lines[end - 1].trim() || [FENCE, HEADING, RULE].some((mark) => mark.test(other)));
    return ["list", until((other, end) => (other.trim() ? ends(other, end) : !belongs(lines[end + 1] ?? "")))];
  }
  if (startsTable(lines, at)) return ["table", until((other) => !other.includes("|"))];
  const interrupts = (other, end) => !other.trim() || [FENCE, HEADING, RULE, QUOTE, ITEM].some((mark) => mark.test(other)) || startsTable(lines, end);
  return ["paragraph", until(interrupts)];
}

// Whether a line is an item of the list that `first` begins, or of one beside it, and not of one within.
function startsItem(line, first) {
  const found = ITEM.exec(line);
  return Boolean(found) && found[1].length <= ITEM.exec(first)[1].length + 1;
}

const isOrdered = (line) => /\d/.test(ITEM.exec(line)[2]);

const startsTable = (lines, at) => lines[at].includes("|") && (lines[at + 1] ?? "").includes("-") && DIVIDER.test(lines[at + 1]);

function render({ kind, lines, source }, make, depth) {
  const direction = depth ? {} : { dir: "auto" }; // within a list or a quote it is theirs, with their mark's side
  if (depth >= DEPTH) return el("p", {}, source);
  const inside = (inner) => split(inner).map((block) => render(block, make, depth + 1));
  switch (kind) {
    case "code":
      return codeBlock(lines, make);
    case "heading": {
      const [, marks, text] = HEADING.exec(lines[0]);
      return el(`h${Math.min(marks.length + 3, 6)}`, direction, ...inline(text.replace(/\s#+\s*$/, ""), make));
    }
    case "rule":
      return el("hr");
    case "quote":
      return el("blockquote", { dir: "auto" }, ...inside(lines.map((line) => line.replace(QUOTE, ""))));
    case "list":
      return list(lines, inside);
    case "table":
      return table(lines, make);
    default:
      return el("p", direction, ...inline(lines.join("\n"), make));
  }
}

function codeBlock(lines, make) {
  const [, fence, language] = FENCE.exec(lines[0]);
  const closed = lines.length > 1 && lines.at(-1).trim().startsWith(fence);
  const text = lines.slice(1, closed ? -1 : undefined).join("\n");
  const button = make.code(() => text.replaceAll(CALL, ""));
  // A call inside of code is shown above it.
  const calls = Array.from(text.matchAll(new RegExp(CALL, "g")), () => make.call(make.calls++));
  const body = el("pre", { tabindex: 0 }, el("code", {}, text.replaceAll(CALL, "")));
  return el("div", { class: "code" }, ...calls, el("header", {}, el("span", {}, language), button), body);
}

function list(lines, inside) {
  const [, , mark] = ITEM.exec(lines[0]);
  const items = [];
  let margin = 0;
  for (const line of lines) {
    if (startsItem(line, lines[0])) {
      margin = ITEM.exec(line)[0].length;
      items.push([line.slice(margin)]);
    } else {
      items.at(-1).push(line.slice(Math.min(margin, line.length - line.trimStart().length)));
    }
  }
  const nodes = items.map((item) => listItem(item, inside));
  return isOrdered(lines[0]) ? el("ol", { start: parseInt(mark, 10) }, ...nodes) : el("ul", {}, ...nodes);
}

function listItem(lines, inside) {
  const box = TASK.exec(lines[0]);
  if (!box) return el("li", { dir: "auto" }, ...inside(lines));
  const done = box[1] !== " ";
  const mark = el("input", { type: "checkbox", disabled: true, checked: done, "aria-label": t(done ? "task_done" : "task_open") });
  return el("li", { class: "task", dir: "auto" }, mark, el("div", {}, ...inside([lines[0].slice(box[0].length), ...lines.slice(1)])));
}

function table(lines, make) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|");
  const sides = cells(lines[1] ?? "").map((cell) => /^\s*(:?)-+(:?)\s*$/.exec(cell) ?? []);
  const classes = sides.map(([, left, right]) => (right ? (left ? "centre" : "right") : undefined));
  const cell = (tag, text, column) => el(tag, { class: classes[column], dir: "auto" }, ...inline(text.trim(), make));
  const row = (line, tag) => el("tr", {}, ...cells(line).map((text, column) => cell(tag, text, column)));
  const body = lines.slice(2).map((line) => row(line, "td"));
  return el("div", { class: "wide-table", tabindex: 0 }, el("table", {}, el("thead", {}, row(lines[0], "th")), el("tbody", {}, ...body)));
}

const MARKS = [
  ["**", "strong"],
  ["__", "strong"],
  ["~~", "del"],
  ["*", "em"],
  ["_", "em"],
];
const WORD = /[\p{L}\p{N}]/u;

// A text within a block as nodes. `missing` remembers which marks do not come again, so that no text takes long.
function inline(text, make, depth = 0) {
  const nodes = [];
  const missing = new Set();
  let plain = "";
  const put = (node) => {
    if (plain) nodes.push(plain);
    plain = "";
    nodes.push(node);
  };
  const find = (mark, from) => {
    if (missing.has(mark)) return -1;
    const found = text.indexOf(mark, from);
    if (found < 0) missing.add(mark);
    return found;
  };
  for (let at = 0; at < text.length; ) {
    const char = text[at];
    const special = spanAt(text, at, find, depth);
    if (char === CALL) put(make.call(make.calls++));
    else if (char === "\n") put(el("br"));
    else if (char === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")) plain += text[++at];
    else if (special) {
      const { tag, attributes, inner, raw, end } = special;
      put(el(tag, attributes, ...(raw ? [inner] : inline(inner, make, depth + 1))));
      at = end;
      continue;
    } else plain += char;
    at++;
  }
  if (plain) nodes.push(plain);
  return nodes;
}

// The span that begins at a place: {tag, attributes, inner, raw (inner is text), end}, or null.
function spanAt(text, at, find, depth) {
  const char = text[at];
  if (char === "`") {
    const ticks = /^`+/.exec(text.slice(at, at + 20))[0];
    const close = find(ticks, at + ticks.length);
    if (close > at + ticks.length) return { tag: "code", inner: text.slice(at + ticks.length, close).trim(), raw: true, end: close + ticks.length };
  }
  if (depth >= DEPTH) return null;
  if (char === "[" || (char === "!" && text[at + 1] === "[")) return linkAt(text, char === "!" ? at + 1 : at, find);
  if (char === "h" && !WORD.test(text[at - 1] ?? "")) {
    const url = /^https?:\/\/[^\s<>"'`\uE000]{1,2000}/.exec(text.slice(at, at + 2010))?.[0].replace(/[.,;:!?)\]}*_]+$/, "");
    if (url && isLink(url)) return { tag: "a", attributes: anchor(url), inner: url, raw: true, end: at + url.length };
  }
  for (const [mark, tag] of MARKS) {
    const start = at + mark.length;
    if (!text.startsWith(mark, at) || /\s/.test(text[start] ?? " ")) continue;
    if (mark[0] === "_" && WORD.test(text[at - 1] ?? "")) continue; // snake_case
    const close = find(mark, start + 1);
    if (close < 0 || /\s/.test(text[close - 1]) || (mark[0] === "_" && WORD.test(text[close + mark.length] ?? ""))) continue;
    return { tag, inner: text.slice(start, close), end: close + mark.length };
  }
  return null;
}

function linkAt(text, at, find) {
  const middle = find("](", at);
  const close = middle < 0 ? -1 : find(")", middle);
  if (close < 0) return null;
  const label = text.slice(at + 1, middle);
  const url = text.slice(middle + 2, close).trim();
  if (!label || /[\n[]/.test(label) || !isLink(url)) return null;
  return { tag: "a", attributes: anchor(url), inner: label, end: close + 1 };
}

const anchor = (url) => ({ href: url, target: "_blank", rel: "noopener noreferrer nofollow" });

function isLink(url) {
  try {
    return /^https?:\/\/\S+$/.test(url) && ["http:", "https:"].includes(new URL(url).protocol);
  } catch {
    return false;
  }
}
