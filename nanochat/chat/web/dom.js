// Building the page's nodes. Text only ever becomes text: nothing here, or anywhere in the page, parses HTML.

// 24 x 24, drawn with strokes.
const ICONS = {
  plus: "M12 5v14M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
  menu: "M4 7h16M4 12h16M4 17h16",
  chart: "M4 4v16h16M7 9c3 0 3 7 6 7s3-3 7-3",
  sliders: "M4 7h9M17 7h3M4 17h3M11 17h9M15 5v4M9 15v4",
  globe: "M12 3a9 9 0 1 0 0 18a9 9 0 1 0 0-18M3 12h18M12 3c3 3 3.5 6 3.5 9s-.5 6-3.5 9c-3-3-3.5-6-3.5-9s.5-6 3.5-9",
  keyboard: "M4 7h16a1 1 0 0 1 1 1v8a1 1 0 0 1-1 1H4a1 1 0 0 1-1-1V8a1 1 0 0 1 1-1M7 10.5h.01M12 10.5h.01M17 10.5h.01M8 14h8",
  light: "M12 8a4 4 0 1 0 0 8a4 4 0 1 0 0-8M12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6L19 19M5 19l1.4-1.4M17.6 6.4L19 5",
  dark: "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5",
  auto: "M12 3a9 9 0 1 0 0 18a9 9 0 1 0 0-18M12 3v18M12 8l6.5-1M12 12h9M12 16l6.5 1",
  down: "M12 5v14M6 13l6 6l6-6",
  send: "M12 19V5M6 11l6-6l6 6",
  stop: "M8 8h8v8H8z",
  copy: "M9 9h10v11H9zM5 15V4h10",
  check: "M5 13l4 4L19 7",
  edit: "M4 20h4L19 9l-4-4L4 16zM13 7l4 4",
  again: "M20 6v5h-5M20 11a8 8 0 1 0-1.5 5.5",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  calculator: "M6 3h12v18H6zM9 7h6M9 12h.01M12 12h.01M15 12h.01M9 16h.01M12 16h.01M15 16h.01",
  runs: "M4 6h16M4 12h16M4 18h10",
  back: "M20 12H5M11 6l-6 6l6 6",
  compare: "M4 20V9M10 20V4M16 20v-8M21 20H3",
  bell: "M6 17h12l-2-3v-4a4 4 0 0 0-8 0v4zM10 20h4",
  left: "M14 6l-6 6l6 6",
  right: "M10 6l6 6l-6 6",
  tokens: "M4 6h6v5H4zM13 6h7v5h-7zM4 14h9v5H4zM16 14h4v5h-4z",
  warning: "M12 4L2.5 20h19zM12 10v4M12 17h.01",
};

/** The element with this id. */
export const byId = (id) => document.getElementById(id);

/** A new element. Properties are attributes, or listeners where their name begins with "on"; strings among the children are text. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** A new SVG element; numbers and strings as attributes. */
export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** An icon, hidden from screen readers, because its button has the label. */
export function icon(name) {
  return svg("svg", { viewBox: "0 0 24 24", class: "glyph", "aria-hidden": "true" }, svg("path", { d: ICONS[name] }));
}

/** A small button that is only an icon, with its name for screen readers and as a tooltip. */
export function iconButton(name, label, onclick, properties = {}) {
  return el("button", { type: "button", class: "icon", "aria-label": label, title: label, onclick, ...properties }, icon(name));
}

/** Copy text to the clipboard. Works on plain http too, where browsers hide the clipboard's API. Returns whether it did. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const before = document.activeElement;
    const area = el("textarea", { class: "unseen" });
    area.value = text;
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    before?.focus();
    return done;
  }
}

/** A copy button that says when it has copied. `text` is asked when it is clicked; `done` says it aloud. */
export function copyButton(label, text, done) {
  const button = iconButton("copy", label, async () => {
    if (!(await copy(text()))) return;
    done();
    button.replaceChildren(icon("check"));
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
  return button;
}
