/** Two steps, or two runs, side by side: both matrices, their difference, and how alike they rank. */

import { announce } from "./a11y.js";
import { Latest } from "./api.js";
import { orderOf, orderParameters, placeOf, tokenOfAll } from "./book.js";
import { restrictionsOf, within } from "./selections.js";
import { button, choice, el, put } from "./dom.js";
import { measure, roundUp } from "./format.js";
import { Heatmap } from "./heatmap.js";
import { labelledBy, Legend } from "./legend.js";
import { nameAt, windowWithin } from "./axes.js";
import { isClearOnly, significantOnly } from "./matrix_controls.js";
import { pair } from "./pins.js";
import { RanksView, ranksSentence } from "./ranks.js";
import { comparison, meaning, quantityOf } from "./signs.js";
import { saveMenu } from "./export.js";
import { verdictBanner } from "./verdict.js";

/** @typedef {import("./page.js").Context} Context */
/** @typedef {import("./state.js").State} State */
/** @typedef {import("./api.js").Picture} Picture */
/** @typedef {{run: import("./api.js").Run, step: import("./api.js").Step, place: number}} Shown */
/** @typedef {{train: import("./axes.js").Axis, query: import("./axes.js").Axis}} Axes */

const PARTS = /** @type {const} */ (["this", "other", "difference"]);
const LABELS = { this: "the first", other: "the second", difference: "the first minus the second" };
const WAIT = 90;
const SAME = "This is one and the same snapshot: choose another step or run to compare it with.";

/** The view of its own tab. */
export class CompareView {
  /** @param {Context} context */
  constructor(context) {
    this.context = context;
    this.controls = el("div", { class: "controls" });
    this.words = el("p", { class: "meaning" });
    this.banners = el("div", { class: "banner-box" });
    this.maps = PARTS.map((part) => {
      const title = el("h3", { class: "map-title" });
      const heatmap = new Heatmap(
        `Heatmap: ${LABELS[part]}. Shift and arrow keys move the cursor, Enter shows the pair.`,
        {
          point: (cell) => this.#point(cell),
          zoom: (window) => this.context.store.set({ window }),
          choose: (cell) => this.#choose(cell),
        },
        { small: true },
      );
      const legend = new Legend();
      const box = el("figure", { class: "map", "data-part": part }, title, heatmap.element, legend.element);
      return { part, title, heatmap, legend, box };
    });
    this.stage = el(
      "div",
      { class: "maps", "data-name": "maps" },
      this.maps.map((map) => map.box),
    );
    this.readout = el("p", { class: "readout tabular", "data-name": "compare-readout" });
    this.notice = el("p", { class: "error", role: "alert", hidden: true });
    this.sentence = el("div", { class: "ranks", "data-name": "ranks" });
    this.ranks = new RanksView(context);
    this.element = el(
      "section",
      { class: "panel compare", "aria-label": "Compare" },
      el(
        "div",
        { class: "panel-head" },
        el("h2", { class: "panel-title" }, "Compare"),
        saveMenu(context, { name: "comparison", image: () => this.#image(), table: () => this.#csv() }),
      ),
      this.controls,
      this.words,
      this.banners,
      this.notice,
      this.stage,
      this.readout,
      this.sentence,
      this.ranks.element,
    );
    this.latest = new Latest();
    this.latestCell = new Latest();
    this.waiting = 0;
    /** @type {{state: State, shown: Shown, other: Shown, axes: Axes, leftOut: {train: number, query: number}} | null} */
    this.painted = null;
  }

  /** @param {State} state */
  update(state) {
    const { book } = this.context;
    const shown = book.shown(state);
    if (!shown) return;
    const other = otherOf(book, state, shown);
    this.#controls(shown, other);
    put(this.words, comparison(quantityOf(state.matrix), namesOf(shown, other)[0]));
    const both = shown.step === other.step ? [shown] : [shown, other];
    put(this.banners, ...both.map((one) => verdictBanner(one.step, nameOf(one))));
    const parameters = this.#parameters(state, shown, other);
    if (shown.run === other.run && shown.step === other.step) {
      this.latest.drop();
      this.ranks.element.hidden = true;
      this.#refuse(new Error(SAME));
      return;
    }
    void this.latest.take(
      this.#load(state, shown, other, parameters),
      ({ axes, pictures, leftOut }) => this.#show({ state, shown, other, axes, leftOut }, pictures),
      (error) => this.#refuse(error),
    );
    this.ranks.update(state, shown, parameters);
  }

  /**
   * @param {State} state
   * @param {Shown} shown
   * @param {Shown} other
   */
  #parameters(state, shown, other) {
    return {
      run: shown.run.run,
      step: shown.step.step,
      other_run: other.run.run,
      other_step: other.step.step,
      matrix: state.matrix,
      ...orderParameters(shown.run, state),
      other_token: other.step.token,
      token: shown.step.token,
    };
  }

  /**
   * @param {State} state
   * @param {Shown} shown
   * @param {Shown} other
   * @param {Record<string, any>} parameters
   */
  async #load(state, shown, other, parameters) {
    const { api } = this.context;
    const asked = { ...parameters, token: `${tokenOfAll(shown.run)} ${tokenOfAll(other.run)}` };
    const common = shown.run === other.run ? null : await api.json("common", asked);
    const both = {
      train: await this.#common(state, shown, common, "train"),
      query: await this.#common(state, shown, common, "query"),
    };
    const samples = { train: both.train.samples, query: both.query.samples };
    const { train, query, only } = await restrictionsOf(this.context, state, shown.run, samples);
    const axes = {
      train: { ...both.train, order: within(both.train.order, train) },
      query: { ...both.query, order: within(both.query.order, query) },
    };
    if (!axes.train.order.length || !axes.query.order.length) {
      throw new Error("The two have no example of the selection in common; show all rows and columns in the matrix view.");
    }
    const { height, width } = this.maps[0].heatmap.room;
    const [r0, r1, c0, c1] = windowWithin(state.window, axes);
    const window = { r0, r1, c0, c1, height, width };
    const pictures = await Promise.all(PARTS.map((part) => api.picture("compare", { ...parameters, ...only, ...window, part })));
    return { axes, pictures, leftOut: common?.left_out ?? { train: 0, query: 0 } };
  }

  /**
   * The examples of a side that both have, in the order of the matrix view.
   * @param {State} state
   * @param {Shown} shown
   * @param {{train: number[], query: number[]} | null} common rows that both have; null for all
   * @param {"train" | "query"} side
   * @returns {Promise<import("./axes.js").Axis>}
   */
  async #common(state, shown, common, side) {
    const { book } = this.context;
    const [samples, order] = await Promise.all([
      book.samples(shown.run, side, state.matrix),
      book.order(shown.run, state, side),
    ]);
    const { by } = orderOf(shown.run, state, side);
    if (!common) return { order, samples, by };
    const both = new Set(common[side]);
    return { order: order.filter((row) => both.has(row)), samples, by };
  }

  /**
   * @param {{state: State, shown: Shown, other: Shown, axes: Axes, leftOut: {train: number, query: number}}} of
   * @param {Picture[]} pictures
   */
  #show(of, pictures) {
    this.painted = of;
    this.notice.hidden = true;
    this.stage.hidden = false;
    const { dark } = this.context;
    const quantity = quantityOf(of.state.matrix);
    const palette = /** @type {const} */ (quantity.observable ? "observable" : "loss");
    const shared = roundUp(Math.max(pictures[0].scale, pictures[1].scale));
    const names = [nameOf(of.shown), nameOf(of.other), namesOf(of.shown, of.other).join(" minus ")];
    const clear = isClearOnly(of.state, of.shown.step);
    this.#controls(of.shown, of.other, pictures[0].pooled);
    this.maps.forEach(({ title, heatmap, legend }, place) => {
      const picture = pictures[place];
      const scale = place === 2 ? roundUp(picture.scale) : shared;
      const words =
        place === 2 ? { ...quantity, good: `${quantity.good} more`, bad: `${quantity.bad} more` } : quantity;
      put(title, names[place]);
      const frame = {
        titles: { train: "", query: "" },
        ...of.axes,
        window: picture.window,
        palette,
        scale,
        dark,
        clear,
        chosen: null,
      };
      heatmap.show(frame, [picture]);
      // One key to the labels is enough for three maps.
      legend.show(words, { scale, dark, clear, labelled: place ? undefined : labelledBy(of.axes) }, picture);
    });
    put(this.sentence, ranksSentence(pictures[2].headers, of.axes, of.shown.run, of.leftOut));
    put(this.readout, "Point at a cell to see the values of one pair; click it to see it over training.");
    this.stage.dataset.of = `${nameOf(of.shown)} | ${nameOf(of.other)} | ${of.state.matrix}`;
  }

  /** @param {Error} error */
  #refuse(error) {
    put(this.notice, error.message);
    this.notice.hidden = false;
    this.stage.hidden = true;
    this.painted = null;
    put(this.sentence);
    put(this.readout);
  }

  /** @param {import("./heatmap.js").Cell | null} cell the same pair is marked in all three */
  #point(cell) {
    for (const { heatmap } of this.maps) {
      heatmap.cursor = cell;
      heatmap.paint();
    }
    clearTimeout(this.waiting);
    this.latestCell.drop();
    if (cell) this.waiting = window.setTimeout(() => this.#read(cell), WAIT);
  }

  /** @param {import("./heatmap.js").Cell} cell */
  #choose(cell) {
    if (!this.painted) return;
    const { axes } = this.painted;
    const [train, query] = [axes.train.order[cell.train], axes.query.order[cell.query]];
    this.context.store.set({ view: "matrix", grouped: false, chosen: pair(train, query), train, query });
  }

  /** @param {import("./heatmap.js").Cell} cell */
  #read(cell) {
    if (!this.painted) return;
    const { state, axes, shown, other } = this.painted;
    const difference = this.maps[2].heatmap;
    const [left, right] = this.maps.map(({ heatmap }) => {
      const known = heatmap.valueAt(cell);
      return measure(known?.value, known?.error, "");
    });
    const quantity = quantityOf(state.matrix);
    const pooled = difference.picture?.pooled ? "mean around " : "";
    const both = difference.valueAt(cell);
    const names = namesOf(shown, other);
    const who = `${pooled}${nameAt(axes.train, cell.train)} → ${nameAt(axes.query, cell.query)}`;
    const last = `difference ${measure(both?.value, both?.error, quantity.unit)}`;
    put(this.readout, `${who}: ${left} at ${names[0]}, ${right} at ${names[1]}, `, el("strong", {}, last));
    announce(this.readout.textContent ?? "");
  }

  /**
   * @param {Shown} shown
   * @param {Shown} other
   * @param {boolean} [pooled] whether what is painted are means
   */
  #controls(shown, other, pooled = false) {
    const { store, book } = this.context;
    const runs = book.runs.filter((run) => run.steps.length).map((run) => ({ value: run.run, text: run.run }));
    const steps = other.run.steps.map(({ step }) => ({
      value: String(step),
      text: `step ${step.toLocaleString("en")}`,
    }));
    const all = button({ label: "Show all (0)", text: "Show all", click: () => store.set({ window: null }) });
    put(
      this.controls,
      el("span", { class: "choice-label" }, `${nameOf(shown)}, against`),
      choice({
        label: "Other run",
        name: "other-run",
        hidden: true,
        options: runs,
        value: other.run.run,
        change: (otherRun) => store.set({ otherRun, otherStep: null }),
      }),
      choice({
        label: "Other step",
        name: "other-step",
        hidden: true,
        options: steps,
        value: String(other.step.step),
        change: (step) => store.set({ otherStep: Number(step) }),
      }),
      significantOnly(store, isClearOnly(store.state, shown.step), pooled),
      store.state.window ? all : null,
    );
  }

  #image() {
    if (!this.painted) return null;
    const { state } = this.painted;
    const quantity = quantityOf(state.matrix);
    return {
      title: state.run,
      note: meaning(quantity).sign,
      tiles: this.maps.flatMap(({ part, title, heatmap }) => {
        const more = { ...quantity, good: `${quantity.good} more`, bad: `${quantity.bad} more` };
        return heatmap.tiles(title.textContent ?? "", part === "difference" ? more : quantity);
      }),
      dark: this.context.dark,
    };
  }

  #csv() {
    if (!this.painted) return null;
    const { state, shown, other } = this.painted;
    return { ...this.#parameters(state, shown, other), what: "compare_ranks" };
  }
}

/**
 * @param {import("./book.js").Book} book
 * @param {State} state
 * @param {Shown} shown
 * @returns {Shown}
 */
function otherOf(book, state, shown) {
  const chosen = book.run(state.otherRun);
  const run = chosen?.steps.length ? chosen : shown.run;
  // Unasked, a step is compared with the one before it, and a run with the same step of the other.
  const same = run === shown.run ? Math.max(shown.place - 1, 0) : placeOf(run, shown.step.step);
  const place = state.otherStep === null ? same : placeOf(run, state.otherStep);
  return { run, step: run.steps[place], place };
}

/**
 * How two are told apart.
 * @param {Shown} shown
 * @param {Shown} other
 * @returns {[string, string]}
 */
function namesOf(shown, other) {
  const words = (/** @type {Shown} */ of) =>
    shown.run === other.run ? `step ${of.step.step.toLocaleString("en")}` : nameOf(of);
  return [words(shown), words(other)];
}

/** @param {Shown} of */
function nameOf({ run, step }) {
  return `${run.run}, step ${step.step.toLocaleString("en")}`;
}
