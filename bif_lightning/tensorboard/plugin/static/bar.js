/** The bar at the top: run, matrix, the three views, the link and the help. */

import { button, choice, el, put, segments } from "./dom.js";
import { copyLink } from "./export.js";
import { addressOf } from "./host.js";
import { icon } from "./icons.js";
import { purposeOf, quantityOf } from "./signs.js";
import { toLink } from "./state.js";

/** @typedef {import("./page.js").Context} Context */
/** @typedef {import("./state.js").State} State */

const VIEWS = [
  { value: "matrix", text: "Matrix", title: "Who influences whom (1)" },
  { value: "trust", text: "Trust", title: "Whether it can be trusted (2)" },
  { value: "compare", text: "Compare", title: "Two steps or two runs side by side (3)" },
];

/** Header of the page. */
export class Bar {
  /**
   * @param {Context} context
   * @param {() => void} help
   */
  constructor(context, help) {
    this.context = context;
    this.help = help;
    this.element = el("header", { class: "bar" });
    this.drawn = "";
  }

  /** @param {State} state */
  update(state) {
    const { book, store } = this.context;
    const run = book.run(state.run);
    // Lists are made anew only when they differ: one that is open stays open while new dumps arrive.
    const drawn = JSON.stringify([book.runs.map((one) => one.run), state.run, state.matrix, state.view, run?.matrices]);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    put(
      this.element,
      run ? this.#run(state) : null,
      run ? this.#matrix(state, run) : null,
      el("span", { class: "grow" }),
      run
        ? segments({
            label: "View",
            name: "view",
            options: VIEWS,
            value: state.view,
            change: (view) => store.set({ view }),
          })
        : null,
      button({
        label: "Copy a link to this view",
        icon: icon("link"),
        name: "link",
        click: () => void copyLink(this.#address()),
      }),
      button({ label: "Help and keys (?)", icon: icon("help"), name: "help", click: this.help }),
    );
  }

  /** @param {State} state */
  #run(state) {
    return choice({
      label: "Run",
      name: "run",
      options: this.context.book.runs
        .filter((one) => one.steps.length)
        .map((one) => ({ value: one.run, text: one.run })),
      value: state.run,
      change: (run) =>
        this.context.store.set({
          run,
          step: null,
          at: null,
          window: null,
          chosen: null,
          pins: [],
          query: null,
          train: null,
          since: null,
        }),
    });
  }

  /**
   * @param {State} state
   * @param {import("./api.js").Run} run
   */
  #matrix(state, run) {
    // Columns of one observable are none of another.
    const columns = { query: 0, chosen: null, pins: [], window: null };
    const change = (/** @type {string} */ matrix) =>
      this.context.store.set({
        matrix,
        ...(quantityOf(matrix).observable === quantityOf(state.matrix).observable ? {} : columns),
      });
    const all = matricesOf(run);
    if (all.length > 3) {
      const options = all.map((matrix) => ({ value: matrix, text: quantityOf(matrix).name }));
      return choice({ label: "Matrix", name: "matrix", options, value: state.matrix, change });
    }
    const options = all.map((matrix) => ({
      value: matrix,
      text: quantityOf(matrix).name,
      title: `${quantityOf(matrix).formula}. ${purposeOf(matrix)}`,
    }));
    return segments({ label: "Matrix", name: "matrix", options, value: state.matrix, change });
  }

  /** The step that is shown is named, also where the page follows the newest. */
  #address() {
    const { store, book } = this.context;
    const shown = book.shown(store.state);
    return addressOf(toLink({ ...store.state, step: shown ? shown.step.step : null }));
  }
}

/**
 * All matrices of a run: those of the loss, then those of each observable.
 * @param {import("./api.js").Run} run
 * @returns {string[]}
 */
export function matricesOf({ matrices, observables }) {
  const own = matrices.filter((matrix) => !matrix.includes(":"));
  return [...own, ...observables.flatMap((observable) => own.map((matrix) => `${observable}:${matrix}`))];
}
