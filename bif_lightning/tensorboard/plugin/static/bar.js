/** The bar at the top: run, quantity, the views, the link and the help. */

import { button, choice, el, put, segments } from "./dom.js";
import { copyLink } from "./export.js";
import { addressOf } from "./host.js";
import { icon } from "./icons.js";
import { Picker } from "./picker.js";
import { partsOf, purposeOf, quantityOf } from "./signs.js";
import { toLink } from "./state.js";

/** @typedef {import("./page.js").Context} Context */
/** @typedef {import("./state.js").State} State */
/** @typedef {import("./api.js").Run} Run */

const VIEWS = [
  { value: "ranking", text: "Ranking", title: "Train examples by their effect on all or chosen queries (1)" },
  { value: "matrix", text: "Matrix", title: "Influence of train examples on queries (2)" },
  { value: "trust", text: "Trust", title: "Whether the estimate is reliable (3)" },
  { value: "compare", text: "Compare", title: "Two steps or two runs side by side (4)" },
];
/** More runs than these are found by typing. */
const FEW = 12;
/** What belongs to one run only. */
const FRESH = {
  step: null,
  at: null,
  window: null,
  chosen: null,
  pins: [],
  query: null,
  train: null,
  since: null,
  rankQueries: "",
  rankFilter: "",
  rankPage: 0,
  selections: [],
  onlyTrain: "",
  onlyQuery: "",
};

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
    /** @type {string[]} of the runs, as the picker lists them */
    this.names = [];
    this.picker = new Picker({
      label: "Run",
      name: "find-run",
      hint: "find a run by its name",
      choose: (row) => this.#choose(this.names[row]),
    });
  }

  /** @param {State} state */
  update(state) {
    const { book, store } = this.context;
    const run = book.run(state.run);
    const names = book.listed().map((one) => one.run);
    // Lists are made anew only when they differ: one that is open stays open while new dumps arrive.
    const drawn = JSON.stringify([names, state.run, state.matrix, state.view, run?.matrices]);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    put(
      this.element,
      el("h1", { class: "unseen" }, "Influence"),
      names.length ? this.#run(state, names) : null,
      run?.steps.length ? this.#quantity(state, run) : null,
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
        label: "Copy link to this view",
        icon: icon("link"),
        name: "link",
        click: () => void copyLink(this.#address()),
      }),
      button({ label: "Help and keys (?)", icon: icon("help"), name: "help", click: this.help }),
    );
  }

  /**
   * @param {State} state
   * @param {string[]} names of the runs, the newest first
   */
  #run(state, names) {
    this.names = names;
    if (names.length > FEW) {
      const place = names.indexOf(state.run);
      this.picker.show(listOf(names), place < 0 ? null : place);
      return el("div", { class: "choice" }, el("span", { class: "choice-label" }, "Run"), this.picker.element);
    }
    const missing = names.includes(state.run) ? [] : [{ value: state.run, text: `${state.run} (gone)` }];
    return choice({
      label: "Run",
      name: "run",
      options: [...missing, ...names.map((name) => ({ value: name, text: name }))],
      value: state.run,
      change: (run) => this.#choose(run),
    });
  }

  /** @param {string} run */
  #choose(run) {
    if (run !== this.context.store.state.run) this.context.store.set({ run, ...FRESH });
  }

  /**
   * @param {State} state
   * @param {Run} run
   */
  #quantity(state, run) {
    // Columns of one observable are none of another.
    const columns = { query: 0, chosen: null, pins: [], window: null };
    const change = (/** @type {string} */ matrix) =>
      this.context.store.set({
        matrix,
        ...(quantityOf(matrix).observable === quantityOf(state.matrix).observable ? {} : columns),
      });
    if (state.view === "ranking") return this.#observable(state, run, change);
    const all = matricesOf(run);
    if (all.length > 3) {
      const options = all.map((matrix) => ({ value: matrix, text: quantityOf(matrix).name }));
      return choice({ label: "Quantity", name: "matrix", options, value: state.matrix, change });
    }
    const options = all.map((matrix) => ({
      value: matrix,
      text: quantityOf(matrix).name,
      title: `${quantityOf(matrix).formula}. ${purposeOf(matrix)}`,
    }));
    return segments({ label: "Quantity", name: "matrix", options, value: state.matrix, change });
  }

  /**
   * The ranking says itself which quantity it is by; it is on the losses of the queries, or on an observable.
   * @param {State} state
   * @param {Run} run
   * @param {(matrix: string) => void} change
   */
  #observable(state, { observables }, change) {
    if (!observables.length) return null;
    const [observable, kind] = partsOf(state.matrix);
    return choice({
      label: "Effect on",
      name: "observable",
      options: [{ value: "", text: "loss" }, ...observables.map((name) => ({ value: name, text: name }))],
      value: observable,
      change: (name) => change(name ? `${name}:${kind}` : kind),
    });
  }

  /** The step that is shown is named, also where the page follows the newest. */
  #address() {
    const { store, book } = this.context;
    const shown = book.shown(store.state);
    return addressOf(toLink({ ...store.state, step: shown ? shown.step.step : null }));
  }
}

/**
 * Names as what a picker finds in.
 * @param {string[]} id
 * @returns {import("./api.js").Samples}
 */
function listOf(id) {
  return { id, index: id.map((_, row) => row), label: null, label_names: null, columns: {}, text_head: null };
}

/**
 * All matrices of a run: those of the loss, then those of each observable.
 * @param {Run} run
 * @returns {string[]}
 */
export function matricesOf({ matrices, observables }) {
  const own = matrices.filter((matrix) => !matrix.includes(":"));
  return [...own, ...observables.flatMap((observable) => own.map((matrix) => `${observable}:${matrix}`))];
}
