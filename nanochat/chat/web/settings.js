// How answers are sampled, and the page's colours; both are kept in the browser.

import { byId, el, icon } from "./dom.js";
import { t } from "./i18n.js";

const KEY = "nanochat.settings";
const THEME = "nanochat.theme";
const THEMES = ["auto", "light", "dark"];

const DEFAULTS = { temperature: 0.8, top_p: 1, top_k: 50, max_tokens: 512, seed: null, system: "", probabilities: false };
// Field -> what it may be: [lowest, highest, step].
const NUMBERS = {
  temperature: [0, 2, 0.1],
  top_p: [0.01, 1, 0.01],
  top_k: [0, 1000, 1],
  max_tokens: [1, 8192, 1],
  seed: [0, 2147483647, 1],
};
const SLIDERS = ["temperature", "top_p"];

let values = { ...DEFAULTS };
let scope = { conversation: null, save: () => {} }; // the open conversation, which may have settings of its own

/** The conversation whose settings the dialog shows, and how it is kept. */
export function settingsOf(conversation, save) {
  scope = { conversation, save };
}

const own = () => scope.conversation?.settings; // what of them differs in the open conversation
const current = () => ({ ...values, ...own() });

function fits(name, value) {
  if (name === "system" || name === "probabilities") return typeof value === typeof DEFAULTS[name];
  const [low, high, step] = NUMBERS[name];
  if (value === null) return DEFAULTS[name] === null;
  return typeof value === "number" && value >= low && value <= high && (step < 1 || Number.isInteger(value));
}

function remember(key, value) {
  try {
    localStorage.setItem(key, value);
  } catch {
    // It holds until the page is closed.
  }
}

function remembered(key) {
  try {
    return localStorage.getItem(key);
  } catch {
    return null;
  }
}

function put(name, value) {
  if (own()) {
    own()[name] = value;
    scope.save(scope.conversation);
    return;
  }
  values[name] = value;
  remember(KEY, JSON.stringify(values));
}

/** A conversation's settings as a request's fields, `system` and `probabilities`. Null values are left out. */
export function settings(conversation) {
  const found = Object.entries(conversation?.settings ?? {}).filter(([name, value]) => name in DEFAULTS && fits(name, value));
  return Object.fromEntries(Object.entries({ ...values, ...Object.fromEntries(found) }).filter(([, value]) => value !== null));
}

/** Read what is kept; a value that cannot be is the default again. */
export function loadSettings() {
  let found = {};
  try {
    found = JSON.parse(remembered(KEY)) ?? {};
  } catch {
    // Not ours.
  }
  for (const name of Object.keys(DEFAULTS)) if (name in found && fits(name, found[name])) values[name] = found[name];
}

/** Draw the dialog's fields. */
export function drawSettings() {
  byId("settings-fields").replaceChildren(ownField(), ...Object.keys(NUMBERS).map(numberField), systemField(), probabilitiesField());
}

/** Take all settings back. */
export function resetSettings() {
  if (own()) {
    scope.conversation.settings = {};
    scope.save(scope.conversation);
  } else {
    values = { ...DEFAULTS };
    remember(KEY, JSON.stringify(values));
  }
  drawSettings();
}

function field(name, control, ...more) {
  const hint = el("p", { id: `${name}-hint`, class: "hint" }, t(`${name}_hint`));
  control.id = `set-${name}`;
  control.setAttribute("aria-describedby", `${name}-hint`);
  return el("div", { class: "field" }, el("label", { for: control.id }, t(name)), ...more, control, hint);
}

function numberField(name) {
  const [low, high, step] = NUMBERS[name];
  const slider = SLIDERS.includes(name);
  const control = el("input", { type: slider ? "range" : "number", min: low, max: high, step, inputmode: "decimal" });
  control.value = current()[name] ?? "";
  const shown = el("output", { for: `set-${name}` }, slider ? String(current()[name]) : "");
  control.addEventListener("input", () => {
    const value = control.value === "" ? DEFAULTS[name] : Number(control.value);
    const valid = control.validity.valid && fits(name, value);
    control.setAttribute("aria-invalid", String(!valid));
    shown.textContent = slider ? control.value : valid ? "" : t("invalid", low, high);
    if (valid) put(name, value);
  });
  return field(name, control, shown);
}

function checkbox(name, checked, change) {
  const control = el("input", { type: "checkbox", id: `set-${name}`, "aria-describedby": `${name}-hint` });
  control.checked = checked;
  control.addEventListener("change", () => change(control.checked));
  const hint = el("p", { id: `${name}-hint`, class: "hint" }, t(`${name}_hint`));
  return el("div", { class: "field" }, el("label", { class: "check", for: control.id }, control, t(name)), hint);
}

// Whether the open conversation has settings of its own.
function ownField() {
  return checkbox("own_settings", Boolean(own()), (checked) => {
    if (checked) scope.conversation.settings = { ...values };
    else delete scope.conversation.settings;
    scope.save(scope.conversation);
    drawSettings();
    byId("set-own_settings").focus();
  });
}

const probabilitiesField = () => checkbox("probabilities", current().probabilities, (checked) => put("probabilities", checked));

function systemField() {
  const control = el("textarea", { rows: 3, maxlength: 4000 });
  control.value = current().system;
  control.addEventListener("input", () => put("system", control.value));
  return field("system", control);
}

/** Show the colours that were chosen, and let the button choose the next. */
export function setUpTheme() {
  const button = byId("theme");
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length];
    remember(THEME, next);
    document.documentElement.dataset.theme = next;
    drawTheme();
  });
  document.documentElement.dataset.theme = THEMES.includes(remembered(THEME)) ? remembered(THEME) : "auto";
}

const theme = () => document.documentElement.dataset.theme;

/** Draw the button of the colours. */
export function drawTheme() {
  const button = byId("theme");
  button.replaceChildren(icon(theme()));
  button.title = t("theme", theme());
  button.setAttribute("aria-label", button.title);
}
