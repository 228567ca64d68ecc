/** The matrix view: banner, what the colours mean, the heatmap with its controls, and the table beside it. */

import { Latest } from "./api.js";
import { announce, MatrixTable } from "./a11y.js";
import { labelledBy, Legend } from "./legend.js";
import { windowWithin } from "./axes.js";
import { el, put } from "./dom.js";
import { roundUp } from "./format.js";
import { Heatmap } from "./heatmap.js";
import { Hover } from "./hover.js";
import { icon } from "./icons.js";
import { isClearOnly, toggles, zoomButtons } from "./matrix_controls.js";
import { orderControls } from "./orders.js";
import { isPair, MOST_ROWS } from "./pins.js";
import { zoomed } from "./pointer.js";
import { meaning, quantityOf } from "./signs.js";
import { askEarly, sourceOf } from "./source.js";
import { verdictBanner } from "./verdict.js";
import { saveMenu } from "./export.js";

/** @typedef {import("./page.js").Context} Context */
/** @typedef {{run: import("./api.js").Run, step: import("./api.js").Step}} Shown */
/** @typedef {import("./state.js").State} State */
/** @typedef {import("./state.js").Window} Window */

/** Milliseconds after which a slow answer no longer holds up the next question. */
const PATIENCE = 1000;

/** Controller of the left half of the page. */
export class MatrixView {
  /** @param {Context} context */
  constructor(context) {
    this.context = context;
    const { store } = context;
    this.heatmap = new Heatmap("Heatmap of influence. Shift and arrow keys move the cursor, Enter chooses a cell.", {
      zoom: (window) => this.zoomTo(window),
      choose: (cell) => this.#choose(cell),
      block: (window) => this.#block(window),
      point: (cell, event) => this.#point(cell, event),
    });
    this.hover = new Hover(context);
    this.legend = new Legend();
    this.table = new MatrixTable();
    this.title = el("h2", { class: "panel-title" });
    this.banner = el("div", { class: "banner-box" });
    this.meaning = el("p", { class: "meaning" });
    this.controls = el("div", { class: "controls" });
    this.status = el("div", { class: "notice", role: "alert", hidden: true });
    this.tools = el("div", { class: "stage-tools" });
    this.stage = el("div", { class: "stage" }, this.heatmap.element, this.tools, this.status);
    this.element = el(
      "section",
      { class: "panel matrix-panel", "aria-label": "Matrix" },
      el("div", { class: "panel-head" }, this.title, saveMenu(context, this.#exports())),
      this.banner,
      this.meaning,
      this.controls,
      this.stage,
      this.legend.element,
      this.table.element,
    );
    /** @type {Window[]} */
    this.past = [];
    this.latest = new Latest();
    /** @type {import("./source.js").Source | null} */
    this.source = null;
    this.busy = false;
    /** @type {State | null} */
    this.wanted = null;
    /** @type {Promise<void>} settles when what the state asks for is painted */
    this.painted = Promise.resolve();
    /** @type {PointerEvent | null} where the pointer rests on the heatmap */
    this.pointer = null;
    /** @type {boolean | undefined} whether the controls are those of a picture of means */
    this.pooled = undefined;
    store.listen((_, changed) => {
      if (changed.has("run") || changed.has("grouped")) this.past = [];
    });
  }

  /** @param {State} state */
  update(state) {
    const shown = this.context.book.shown(state);
    if (!shown) return;
    const quantity = quantityOf(state.matrix);
    put(this.title, `${capital(quantity.name)} at step ${shown.step.step.toLocaleString("en")}`);
    put(this.banner, verdictBanner(shown.step));
    const words = meaning(quantity);
    const palette = paletteOf(quantity);
    put(this.meaning, colourKey(`${palette}-above`, words.good), colourKey(`${palette}-below`, words.bad));
    this.#controls(state, shown);
    // What the box says is of the picture before.
    if (this.#isOther(state, shown)) this.hover.hide();
    this.wanted = state;
    if (!this.busy) this.painted = this.#paintWanted();
  }

  /**
   * Whether another picture than the one that stands is asked for.
   * @param {State} state
   * @param {Shown} shown
   */
  #isOther(state, { step }) {
    const { run, step: painted, matrix } = this.element.dataset;
    return run !== state.run || painted !== String(step.step) || matrix !== state.matrix;
  }

  /** Of the states that come while a picture is on its way, only the last is asked for: a slider is moved fast. */
  async #paintWanted() {
    this.busy = true;
    while (this.wanted) {
      const state = this.wanted;
      this.wanted = null;
      await Promise.race([this.#take(state), new Promise((resolve) => setTimeout(resolve, PATIENCE))]);
    }
    this.busy = false;
  }

  /** @param {State} state */
  async #take(state) {
    const { api, book } = this.context;
    const shown = book.shown(state);
    if (!shown) return;
    askEarly(api, state, shown, this.heatmap.room);
    await this.latest.take(
      sourceOf(api, book, state, shown).then((source) => this.#load(state, source)),
      ({ source, pictures }) => this.#paint(state, source, pictures),
      (error) => this.#refuse(error),
    );
  }

  /**
   * @param {State} state
   * @param {import("./source.js").Source} source
   */
  async #load(state, source) {
    const window = windowOf(state, source);
    const whole = wholeOf(source);
    if (window.join() !== whole.join() && this.source && this.heatmap.frame) {
      // What is there already is stretched over the new window until the sharper picture comes.
      this.heatmap.show({ ...this.heatmap.frame, window: fits(window, this.heatmap.frame) });
    }
    const room = this.heatmap.room;
    const pictures = [source.picture(window, room)];
    if (window.join() !== whole.join()) pictures.unshift(source.picture(whole, room));
    return { source, pictures: await Promise.all(pictures) };
  }

  /**
   * @param {State} state
   * @param {import("./source.js").Source} source
   * @param {import("./api.js").Picture[]} pictures
   */
  #paint(state, source, pictures) {
    this.source = source;
    this.status.hidden = true;
    const shown = /** @type {Shown} */ (this.context.book.shown(state));
    const quantity = quantityOf(state.matrix);
    const scale = roundUp(pictures[0].scale);
    const clear = isClearOnly(state, shown.step);
    const frame = {
      titles: source.titles,
      train: source.train,
      query: source.query,
      window: windowOf(state, source),
      palette: paletteOf(quantity),
      scale,
      dark: this.context.dark,
      clear,
      own: source.own,
      chosen: state.chosen ? source.cellOf(state.chosen) : null,
    };
    this.heatmap.show(frame, pictures);
    const look = { scale, dark: this.context.dark, clear, own: source.own, labelled: labelledBy(source) };
    this.legend.show(quantity, look, /** @type {import("./api.js").Picture} */ (pictures.at(-1)));
    this.table.show(source, windowOf(state, source), quantity, state.table);
    if (this.pooled !== this.heatmap.picture?.pooled) this.#controls(state, shown);
    this.#pointAgain();
    Object.assign(this.element.dataset, {
      run: state.run,
      step: String(shown.step.step),
      matrix: state.matrix,
      window: windowOf(state, source).join(),
      rows: source.train.by,
      columns: source.query.by,
    });
  }

  /** The view is left: the pointer is on nothing of it any more, though nobody has moved it away. */
  leave() {
    this.pointer = null;
    this.heatmap.cursor = null;
    this.hover.hide();
  }

  /** What the pointer or the cursor is on is told anew, since another picture has come under it. */
  #pointAgain() {
    const { cursor, frame } = this.heatmap;
    if (this.pointer) this.heatmap.pointAgain(this.pointer);
    else if (cursor && frame && cursor.train < frame.window[1] && cursor.query < frame.window[3])
      this.#point(cursor, null);
  }

  /** @param {Error} error */
  #refuse(error) {
    this.heatmap.clear();
    put(this.status, icon("warn"), el("p", {}, error.message));
    this.status.hidden = false;
  }

  /**
   * @param {State} state
   * @param {Shown} shown
   */
  #controls(state, shown) {
    this.pooled = this.heatmap.picture?.pooled;
    put(
      this.controls,
      ...orderControls(this.context, state, shown.run),
      toggles(this.context.store, state, shown, this.pooled ?? false),
    );
    put(this.tools, zoomButtons(this, state));
  }

  /** @param {Window | null} window null: everything */
  zoomTo(window) {
    const { state } = this.context.store;
    if (!this.source) return;
    const now = windowOf(state, this.source);
    if (window && window.join() === now.join()) return;
    this.past = [...this.past.slice(-49), now];
    const whole = wholeOf(this.source);
    this.context.store.set({ window: window && window.join() !== whole.join() ? window : null });
  }

  /** @param {number} factor below 1 to see less, larger */
  zoomBy(factor) {
    if (this.heatmap.frame) this.zoomTo(zoomed(this.heatmap, factor));
  }

  /** @returns {boolean} whether there was a window to go back to */
  back() {
    const before = this.past.pop();
    if (!before && !this.context.store.state.window) return false;
    const whole = this.source ? wholeOf(this.source).join() : "";
    this.context.store.set({ window: before && before.join() !== whole ? before : null });
    return true;
  }

  /** @param {import("./heatmap.js").Cell} cell */
  #choose(cell) {
    if (!this.source) return;
    const chosen = this.source.pinOf(cell);
    this.context.store.set({ chosen, ...(isPair(chosen) ? { train: chosen.train[0], query: chosen.query[0] } : {}) });
  }

  /** @param {Window} box positions */
  #block([r0, r1, c0, c1]) {
    const { source } = this;
    if (!source || source.classes) return;
    if (r1 - r0 > MOST_ROWS || c1 - c0 > MOST_ROWS) {
      announce(`A block may have at most ${MOST_ROWS} rows and columns; draw a smaller one.`, true);
      return;
    }
    const rows = (/** @type {Int32Array} */ order, /** @type {number} */ from, /** @type {number} */ to) =>
      Array.from(order.subarray(from, to)).sort((a, b) => a - b);
    this.context.store.set({
      chosen: { train: rows(source.train.order, r0, r1), query: rows(source.query.order, c0, c1) },
    });
  }

  /**
   * @param {import("./heatmap.js").Cell | null} cell
   * @param {PointerEvent | null} event
   */
  #point(cell, event) {
    this.pointer = cell ? event : null;
    if (cell && this.source) this.hover.show(cell, event, this.source, this.heatmap);
    else this.hover.hide();
  }

  #exports() {
    return {
      name: "heatmap",
      image: () => this.#image(),
      table: () => this.#csv(),
    };
  }

  #image() {
    const { frame } = this.heatmap;
    const { state } = this.context.store;
    const quantity = quantityOf(state.matrix);
    return (
      frame && {
        title: `${state.run}: ${this.title.textContent ?? ""}`,
        note: `${meaning(quantity).sign} Rows: train examples; columns: queries.`,
        tiles: this.heatmap.tiles("", quantity),
        dark: frame.dark,
      }
    );
  }

  #csv() {
    const { state } = this.context.store;
    const shown = this.context.book.shown(state);
    if (!shown || !this.source) return null;
    const [r0, r1, c0, c1] = windowOf(state, this.source);
    return { what: state.grouped ? "classes" : "window", r0, r1, c0, c1, ...this.source.only };
  }
}

/**
 * @param {import("./source.js").Source} source
 * @returns {Window}
 */
function wholeOf(source) {
  return [0, source.train.order.length, 0, source.query.order.length];
}

/**
 * @param {State} state
 * @param {import("./source.js").Source} source
 * @returns {Window} within the matrix
 */
function windowOf(state, source) {
  return windowWithin(source.classes ? null : state.window, source);
}

/**
 * @param {Window} window
 * @param {import("./heatmap.js").Frame} frame
 * @returns {Window} the window where the frame's axes reach so far, else the frame's own
 */
function fits(window, frame) {
  return window[1] <= frame.train.order.length && window[3] <= frame.query.order.length ? window : frame.window;
}

/**
 * @param {import("./signs.js").Quantity} quantity
 * @returns {import("./colours.js").Palette}
 */
function paletteOf({ observable }) {
  return observable ? "observable" : "loss";
}


/**
 * @param {string} kind class of the colour
 * @param {string} text
 */
function colourKey(kind, text) {
  return el("span", { class: "colour-key" }, el("span", { class: `key ${kind}`, "aria-hidden": "true" }), text);
}

/** @param {string} text */
function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
