// The views of the page, conversation, training or runs, and their addresses.

import * as api from "./api.js";
import { byId } from "./dom.js";
import { toastText } from "./notices.js";
import { drawRuns, openRuns } from "./runs.js";
import { drawTraining, percent, summaryOf } from "./training.js";
import { t } from "./i18n.js";

const NAMES = ["chat", "training", "runs"];

export class Views {
  /** `on` does what is asked for: changed(), chat(model), announce(text), look(). */
  constructor(on) {
    this.on = on;
    this.current = "chat";
    this.chosen = false; // by a person
    this.ended = null; // the response of /api/runs/NAME for the newest run
    this.status = null;
    this.notified = new Set();
  }

  /** Show a view. */
  show(name) {
    const before = this.current;
    this.current = name;
    for (const one of NAMES) {
      byId(one).hidden = one !== name;
      const button = byId(`open-${one}`);
      button?.toggleAttribute("data-open", one === name);
      if (one === name) button?.setAttribute("aria-current", "page");
      else button?.removeAttribute("aria-current");
    }
    if (name === "training") this.draw();
    this.on.changed(before);
  }

  /** Follow an address of the page: #/training, #/runs, #/runs/NAME, #/compare/A/B. Returns whether it is one. */
  follow(hash, focus = true) {
    const [, name, ...rest] = hash.split("/");
    if (!hash.startsWith("#/") || !["training", "runs", "compare"].includes(name)) return false;
    this.chosen = true;
    this.show(name === "training" ? "training" : "runs");
    if (name !== "training") openRuns(name === "runs" ? rest.slice(0, 1).map(decodeURIComponent) : rest.map(decodeURIComponent), this.#runsOn());
    if (focus) byId(this.current).focus({ preventScroll: true });
    return true;
  }

  /** Go to an address of the page. */
  go(hash) {
    if (location.hash === hash) this.follow(hash);
    else location.hash = hash;
  }

  /** Show a new state from the server. */
  async update(status) {
    const before = this.status?.training;
    this.status = status;
    if (before?.alive && before.run !== status.training?.run) await this.#ended(before.run);
    if (!status.training && status.last && (this.ended?.run.name !== status.last || !this.ended.report.finished)) await this.#load(status.last);
    this.draw();
  }

  /** Draw the training view again. */
  draw() {
    drawTraining(this.status, this.ended, document.documentElement.lang, this.#trainingOn());
  }

  /** Draw everything once more, in another language. */
  redraw() {
    this.draw();
    if (this.current === "runs") drawRuns(this.#runsOn());
  }

  /** The button with the progress of training. */
  drawPill() {
    const training = this.status?.training;
    byId("training-pill").hidden = !training?.alive;
    if (training?.alive) byId("training-pill").textContent = t("pill", percent(training));
  }

  /** The prefix of the page's title, with the progress of training. */
  get title() {
    const training = this.status?.training;
    return training?.alive ? `${percent(training)}% · ` : "";
  }

  async #load(name) {
    try {
      this.ended = await api.run(name);
    } catch {
      this.ended = null;
    }
  }

  // A run has ended while the page was open.
  async #ended(name) {
    await this.#load(name);
    if (!this.ended?.report.finished) return;
    const text = summaryOf(this.ended);
    this.on.announce(text);
    if (this.current !== "training") toastText(text, t("show"), () => this.go("#/training"));
    if (this.notified.has(name)) new Notification(t("ended", name), { body: text, icon: "/web/icon.svg" });
  }

  #trainingOn() {
    const name = this.status?.training?.run;
    return {
      announce: this.on.announce,
      chat: this.on.chat,
      report: (run) => this.go(`#/runs/${encodeURIComponent(run)}`),
      compare: () => this.go("#/runs"),
      redraw: () => this.draw(),
      look: () => {
        this.chosen = true; // a button of this view was pressed: the page stays here
        return this.on.look();
      },
      canNotify: () => "Notification" in window && window.isSecureContext && Notification.permission !== "denied" && !this.notified.has(name),
      notify: async () => {
        if ((await Notification.requestPermission()) === "granted") {
          this.notified.add(name);
          this.on.announce(t("notify_on"));
        }
        this.draw();
      },
    };
  }

  #runsOn() {
    return { go: (hash) => this.go(hash), chat: this.on.chat, announce: this.on.announce };
  }
}
