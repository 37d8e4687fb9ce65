// Curves over steps: numbered axes that reach to the planned end, and the values below the pointer or the arrow keys.

import { el, svg } from "./dom.js";
import { number, t } from "./i18n.js";

const WIDEST = { training: 640, runs: 920 }; // in pixels, by view
const HEIGHT = 260;
const LEFT = 52; // for the axis' numbers
const RIGHT = 12;
const BOTTOM = 40;
const TOP = 12;

/** As wide as the view that is open, so that letters stay as large on a phone. */
export function plotWidth() {
  const widest = document.getElementById("runs").hidden ? WIDEST.training : WIDEST.runs;
  return Math.max(240, Math.min(widest, document.querySelector("main").clientWidth - 72));
}

/** Points averaged over their neighbours, the newest weighing most; `weight` from 0 (not at all) to below 1. */
export function smoothed(points, weight) {
  let mean = 0;
  let share = 0;
  return points.map(([x, y]) => {
    mean = weight * mean + (1 - weight) * y;
    share = weight * share + (1 - weight);
    return [x, mean / share];
  });
}

/**
 * A figure of `series` [{name, kind, points: [[x, y], ...], dots}], `kind` being a class. `end` is the last step of the axis. `borders`
 * [{x, name}] are the stages' beginnings. `label` is for screen readers. null if there are fewer than two points.
 */
export function chart({ width, series, end, borders = [], digits = 3, label, step = t("step") }) {
  const points = series.flatMap((one) => one.points);
  if (points.length < 2) return null;
  const values = points.map(([, y]) => y);
  const [low, high, tick] = ticks(Math.min(...values), Math.max(...values));
  const last = Math.max(end ?? 0, ...points.map(([x]) => x), 1);
  const x = (value) => LEFT + ((width - LEFT - RIGHT) * value) / last;
  const y = (value) => TOP + ((HEIGHT - TOP - BOTTOM) * (high - value)) / (high - low);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, class: "plot", role: "img", "aria-label": label });
  drawAxes(drawing, { width, low, high, tick, last, x, y });
  for (const { x: from, name } of borders) {
    if (from > 0) drawing.append(svg("line", { x1: x(from), x2: x(from), y1: TOP, y2: HEIGHT - BOTTOM, class: "border" }));
    if (name) drawing.append(svg("text", { x: Math.min(x(from) + 4, width - 70), y: HEIGHT - 6, class: "x" }, name));
  }
  for (const { kind, points: own, dots } of series) {
    const path = own.map(([at, value]) => `${x(at).toFixed(1)},${y(value).toFixed(1)}`).join(" ");
    if (!dots) drawing.append(svg("polyline", { points: path, class: `curve ${kind}` }));
    else for (const [at, value] of own) drawing.append(svg("circle", { cx: x(at), cy: y(value), r: 3.5, class: `dot ${kind}` }));
  }
  const reading = el("output", { class: "reading" }, t("reading_hint"));
  reader(drawing, { series, x, y, last, width, digits, reading, step });
  return el("div", { class: "chart" }, reading, drawing);
}

function drawAxes(drawing, { width, low, high, tick, last, x, y }) {
  const digits = tick < 0.1 ? 2 : tick < 1 ? 1 : 0;
  for (let value = low; value <= high + tick / 2; value += tick) {
    drawing.append(svg("line", { x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value), class: "grid" }));
    drawing.append(svg("text", { x: LEFT - 8, y: y(value) + 4, class: "y" }, shortened(value, digits)));
  }
  const [, , apart] = ticks(0, last, width < 400 ? 3 : 5);
  for (let value = 0; value <= last; value += apart) {
    drawing.append(svg("text", { x: x(value), y: HEIGHT - BOTTOM + 16, class: "step" }, shortened(value, 0)));
  }
}

// The values below the pointer; with the focus on the drawing, of the point that the arrow keys choose.
function reader(drawing, { series, x, y, last, width, digits, reading, step }) {
  const line = svg("line", { y1: TOP, y2: HEIGHT - BOTTOM, class: "cursor", visibility: "hidden" });
  const dots = series.map(({ kind }) => svg("circle", { r: 4, class: `now ${kind}`, visibility: "hidden" }));
  drawing.append(line, ...dots);
  const all = [...new Set(series.flatMap(({ points }) => points.map(([at]) => at)))].sort((a, b) => a - b);
  let chosen = all.length - 1;
  const show = (at) => {
    line.setAttribute("x1", x(at));
    line.setAttribute("x2", x(at));
    line.setAttribute("visibility", "visible");
    const said = series.map(({ name, points }, index) => {
      const [near, value] = points.reduce((best, point) => (Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best), points[0] ?? [at, NaN]);
      const seen = Number.isFinite(value) && Math.abs(near - at) <= last / 40;
      dots[index].setAttribute("visibility", seen ? "visible" : "hidden");
      if (seen) {
        dots[index].setAttribute("cx", x(near));
        dots[index].setAttribute("cy", y(value));
      }
      return seen ? `${name} ${number(value, digits)}` : "";
    });
    reading.textContent = [`${step} ${number(at)}`, ...said.filter(Boolean)].join(" · ");
  };
  const nearest = (at) => all.reduce((best, one, index) => (Math.abs(one - at) < Math.abs(all[best] - at) ? index : best), 0);
  const pointed = (event) => {
    const box = drawing.getBoundingClientRect();
    const at = ((((event.clientX - box.left) / box.width) * width - LEFT) / (width - LEFT - RIGHT)) * last;
    chosen = nearest(at);
    show(all[chosen]);
  };
  drawing.addEventListener("pointermove", pointed);
  drawing.addEventListener("pointerdown", pointed);
  drawing.setAttribute("tabindex", 0);
  drawing.addEventListener("focus", () => show(all[chosen]));
  drawing.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -all.length, End: all.length }[event.key];
    if (!by) return;
    event.preventDefault();
    chosen = Math.min(Math.max(chosen + by, 0), all.length - 1);
    show(all[chosen]);
  });
}

const shortened = (value, digits) =>
  Math.abs(value) >= 1e6 ? `${number(value / 1e6, value % 1e6 ? 1 : 0)}M` : Math.abs(value) >= 1e4 ? `${number(value / 1e3)}K` : number(value, digits);

// Round numbers around a range: [lowest, highest, distance].
function ticks(low, high, count = 4) {
  const rough = Math.max(high - low, 1e-6, Math.abs(high) * 1e-3) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const tick = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const [bottom, top] = [Math.floor(low / tick + 1e-9) * tick, Math.ceil(high / tick - 1e-9) * tick];
  return top > bottom ? [bottom, top, tick] : [bottom - tick, top + tick, tick]; // every value is the same
}
