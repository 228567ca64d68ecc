/** Time: a slider over the snapshots with a mark of each verdict, and a button that plays them. */

import { placeOf } from "./book.js";
import { button, el, put } from "./dom.js";
import { icon } from "./icons.js";
import { verdictMark, verdictWords } from "./verdict.js";

/** @typedef {import("./page.js").Context} Context */
/** @typedef {import("./state.js").State} State */

const PAUSE = 550;
const SLOW = 1100;
const MOST_TICKS = 400;

/** The bar above the views. */
export class Slider {
  /** @param {Context} context */
  constructor(context) {
    this.context = context;
    this.range = el("input", {
      type: "range",
      min: "0",
      max: "0",
      step: "1",
      value: "0",
      "aria-label": "Training step",
      "data-name": "slider",
      on: { input: () => this.#moved() },
    });
    this.ticks = el("div", { class: "ticks", "aria-hidden": "true" });
    this.label = el("output", { class: "step-label" });
    this.about = el("span", { class: "step-about" });
    this.play = el("div", { class: "play" });
    this.element = el(
      "div",
      { class: "time", role: "region", "aria-label": "Training step" },
      this.play,
      el("div", { class: "track" }, this.range, this.ticks),
      el("div", { class: "step" }, this.label, this.about),
    );
    /** @type {import("./api.js").Step[] | null} those that have ticks */
    this.steps = null;
    this.playing = false;
    this.timer = 0;
    this.#button();
  }

  /** @param {State} state */
  update(state) {
    const shown = this.context.book.shown(state);
    if (!shown) return;
    const { run, step, place } = shown;
    this.range.max = String(run.steps.length - 1);
    this.range.value = String(place);
    this.range.setAttribute("aria-valuetext", `step ${step.step}, ${step.verdict ?? "not judged"}`);
    put(this.label, `step ${step.step.toLocaleString("en")}`);
    const newest = state.step === null ? " · newest" : "";
    const epoch = step.epoch === null ? "" : `epoch ${step.epoch} · `;
    put(this.about, verdictMark(step.verdict), `${epoch}${verdictWords(step.verdict)}${newest}`);
    this.about.title = step.verdict_text ?? "";
    const every = Math.ceil(run.steps.length / MOST_TICKS);
    // Of few snapshots each has its tick, wherever the slider stands.
    if (every > 1 || this.steps !== run.steps) this.#ticks(run.steps, place, every);
    this.steps = run.steps;
  }

  /**
   * @param {import("./api.js").Step[]} steps
   * @param {number} place
   * @param {number} every
   */
  #ticks(steps, place, every) {
    const last = Math.max(steps.length - 1, 1);
    put(
      this.ticks,
      steps
        .map((step, at) => ({ step, at }))
        .filter(({ at }) => at % every === 0 || at === place)
        .map(({ step, at }) => verdictMark(step.verdict, { left: `${(100 * at) / last}%` })),
    );
  }

  #moved() {
    const shown = this.context.book.shown(this.context.store.state);
    if (!shown) return;
    this.stop();
    const place = Number(this.range.value);
    // The right end means the newest, so that dumps which are still to come are followed.
    this.context.store.set({ step: place === shown.run.steps.length - 1 ? null : shown.run.steps[place].step });
  }

  /** @param {number} by how many snapshots forward */
  move(by) {
    const { store, book } = this.context;
    const run = book.run(store.state.run);
    if (!run?.steps.length) return;
    const last = run.steps.length - 1;
    const place = Math.min(Math.max(placeOf(run, store.state.step) + by, 0), last);
    store.set({ step: place === last ? null : run.steps[place].step });
  }

  toggle() {
    if (this.playing) this.stop();
    else this.start();
  }

  start() {
    const { store, book } = this.context;
    const shown = book.shown(store.state);
    if (!shown || shown.run.steps.length < 2) return;
    this.playing = true;
    this.#button();
    if (shown.place === shown.run.steps.length - 1) store.set({ step: shown.run.steps[0].step });
    this.#later();
  }

  stop() {
    this.playing = false;
    clearTimeout(this.timer);
    this.#button();
  }

  #later() {
    const slow = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    clearTimeout(this.timer);
    // The next step comes when this one is painted: a slow disk slows the film down and drops nothing.
    this.timer = window.setTimeout(() => void this.context.painted().then(() => this.#next()), slow ? SLOW : PAUSE);
  }

  #next() {
    if (!this.playing) return;
    this.move(1);
    const { store, book } = this.context;
    const shown = book.shown(store.state);
    if (!shown || shown.place === shown.run.steps.length - 1) this.stop();
    else this.#later();
  }

  #button() {
    put(
      this.play,
      button({
        label: this.playing ? "Pause (space)" : "Play through training (space)",
        icon: icon(this.playing ? "pause" : "play"),
        name: "play",
        pressed: this.playing,
        click: () => this.toggle(),
      }),
    );
  }
}
