/**
 * The Influence tab as a whole. The server joins this module and all that it imports into one.
 *
 * One store holds what is shown (state.js); every view draws from it and writes to it, and none knows another.
 *
 * @typedef {object} Context what every view gets
 * @property {Api} api
 * @property {Store} store
 * @property {Book} book
 * @property {boolean} dark
 * @property {(step: number) => void} goTo show that step
 * @property {() => Promise<void>} painted settles when the picture of the present state stands
 * @property {() => Record<string, any>} orders parameters of the orders that are shown
 */

import { announce, announcers } from "./a11y.js";
import { Api } from "./api.js";
import { Bar, matricesOf } from "./bar.js";
import { Book, orderParameters } from "./book.js";
import { CardsView } from "./cards.js";
import { CompareView } from "./compare.js";
import { el, put } from "./dom.js";
import { isShown, listenLink, listenReload, listenTheme, readLink, takeKeys, writeLink } from "./host.js";
import { Help, listenKeys } from "./keyboard.js";
import { MatrixView } from "./matrix.js";
import { isClearOnly, ZOOM } from "./matrix_controls.js";
import { PairView } from "./pair.js";
import { isWithin } from "./pins.js";
import { RankingView } from "./ranking.js";
import { Slider } from "./slider.js";
import { fromLink, Store, toLink } from "./state.js";
import { TrajectoryView } from "./trajectory.js";
import { TrustView } from "./trust.js";

const POLL = 5000;
const VIEWS = ["ranking", "matrix", "trust", "compare"];

/** The page as a whole. */
class Page {
  /** @param {Api} api */
  constructor(api) {
    /** @type {Context} */
    this.context = {
      api,
      store: new Store(fromLink(readLink())),
      book: new Book(api),
      dark: false,
      goTo: (step) => this.#goTo(step),
      painted: () => this.matrix.painted,
      orders: () => this.#orders(),
    };
    const { context } = this;
    this.slider = new Slider(context);
    this.ranking = new RankingView(context);
    this.matrix = new MatrixView(context);
    this.trajectory = new TrajectoryView(context);
    this.pair = new PairView(context);
    this.cards = new CardsView(context);
    this.trust = new TrustView(context);
    this.compare = new CompareView(context);
    this.shortcuts = this.#shortcuts();
    this.help = new Help(this.shortcuts);
    this.bar = new Bar(context, () => this.help.open());
    this.body = el("main", { class: "body" });
    this.sides = el("div", { class: "side" }, this.trajectory.element, this.pair.element, this.cards.element);
    this.both = el("div", { class: "halves" }, this.matrix.element, this.sides);
    this.notes = el("div", { class: "notes-box" });
  }

  async start() {
    document.documentElement.lang = "en";
    document.title = "Influence";
    document.head.append(el("meta", { name: "viewport", content: "width=device-width, initial-scale=1" }));
    put(
      document.body,
      this.bar.element,
      this.slider.element,
      this.notes,
      this.body,
      this.help.dialog,
      ...announcers(),
      this.matrix.hover.element,
    );
    listenTheme((dark) => this.#theme(dark));
    listenKeys(this.shortcuts, () => this.#escape());
    takeKeys();
    listenReload(() => void this.refresh());
    listenLink((link) => this.#fromOutside(link));
    this.context.store.listen(() => this.#changed());
    await this.refresh();
    setInterval(() => isShown() && void this.refresh(), POLL);
  }

  /** Ask for the runs again; draw anew where something came. */
  async refresh() {
    const { book, store } = this.context;
    const before = book.shown(store.state)?.step.token;
    try {
      const isNew = await book.refresh();
      this.offline?.remove();
      if (isNew) {
        this.#settle();
        this.update();
        const now = book.shown(store.state)?.step;
        if (before && now && now.token !== before) announce(`A new snapshot: step ${now.step}.`);
      }
    } catch (error) {
      this.offline?.remove();
      this.offline = el("p", { class: "offline", role: "alert" }, /** @type {Error} */ (error).message);
      this.notes.after(this.offline);
    }
  }

  /**
   * Choose what nobody has chosen: the run that was written last, and the step whose clustering orders all others. A run
   * that was chosen and is gone stays chosen: another one would be another experiment under the same link.
   */
  #settle() {
    const { book, store } = this.context;
    const { state } = store;
    const run = state.run ? book.run(state.run) : book.newest();
    if (!run?.steps.length) return;
    const fresh = run.run !== state.run;
    const matrices = matricesOf(run);
    const held = (/** @type {import("./pins.js").Pin} */ pin) => isWithin(pin, run);
    store.set({
      run: run.run,
      at: !fresh && run.steps.some((one) => one.step === state.at) ? state.at : run.steps[run.steps.length - 1].step,
      matrix: matrices.includes(state.matrix) ? state.matrix : matrices[0],
      query: state.query === null ? 0 : Math.min(state.query, run.num_query - 1),
      train: state.train === null ? null : Math.min(state.train, run.num_train - 1),
      chosen: state.chosen && held(state.chosen) ? state.chosen : null,
      pins: state.pins.filter(held),
    });
  }

  #changed() {
    const { store, book } = this.context;
    const run = book.run(store.state.run);
    if (run?.steps.length && store.state.at === null) {
      this.#settle();
      return;
    }
    writeLink(toLink(store.state));
    this.update();
  }

  update() {
    const { store, book } = this.context;
    const { state } = store;
    this.bar.update(state);
    put(this.notes, problems(book, state));
    if (!book.shown(state)) {
      this.slider.element.hidden = true;
      this.matrix.leave();
      put(this.body, state.run ? gone(state.run) : empty(book));
      return;
    }
    this.slider.element.hidden = false;
    this.slider.update(state);
    const view =
      {
        ranking: this.ranking.element,
        matrix: this.both,
        trust: this.trust.element,
        compare: this.compare.element,
      }[state.view] ?? this.both;
    if (this.body.firstElementChild !== view) put(this.body, view);
    if (view !== this.both) this.matrix.leave();
    if (state.view === "ranking") this.ranking.update(state);
    else if (state.view === "trust") this.trust.update(state);
    else if (state.view === "compare") this.compare.update(state);
    else this.#updateMatrix(state);
    document.body.dataset.view = state.view;
  }

  /**
   * The picture first, as it is what one waits for; while the slider moves on, the rest is not asked for at all.
   * @param {import("./state.js").State} state
   */
  #updateMatrix(state) {
    this.matrix.update(state);
    void this.matrix.painted.then(() => {
      const { store } = this.context;
      if (store.state !== state) return;
      [this.trajectory, this.pair, this.cards].forEach((part) => part.update(state));
    });
  }

  /** @param {boolean} dark */
  #theme(dark) {
    this.context.dark = dark;
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    this.update();
  }

  /** @param {string} link */
  #fromOutside(link) {
    this.context.store.set(fromLink(link));
    this.#settle();
  }

  /** @param {number} step */
  #goTo(step) {
    const { store, book } = this.context;
    const steps = book.run(store.state.run)?.steps ?? [];
    store.set({ step: steps.at(-1)?.step === step ? null : step });
  }

  #orders() {
    const { store, book } = this.context;
    const run = book.run(store.state.run);
    return run ? orderParameters(run, store.state) : {};
  }

  #turnClear() {
    const { store, book } = this.context;
    const shown = book.shown(store.state);
    if (shown) store.set({ clear: !isClearOnly(store.state, shown.step) });
  }

  #escape() {
    if (this.help.dialog.open) this.help.dialog.close();
    else if (!this.matrix.back()) this.context.store.set({ chosen: null });
  }

  /** @returns {import("./keyboard.js").Shortcut[]} */
  #shortcuts() {
    const { store } = this.context;
    const { matrix, slider } = this;
    const turn = (/** @type {"grouped" | "table"} */ name) => () => store.set({ [name]: !store.state[name] });
    return [
      {
        keys: ["ArrowLeft", "ArrowRight"],
        text: "one snapshot back or forward",
        act: (key) => slider.move(key === "ArrowLeft" ? -1 : 1),
      },
      { keys: [" "], text: "play or pause", act: () => slider.toggle() },
      { keys: ["+", "="], text: "zoom in", act: () => matrix.zoomBy(ZOOM) },
      { keys: ["-", "_"], text: "zoom out", act: () => matrix.zoomBy(1 / ZOOM) },
      { keys: ["0"], text: "show all", act: () => matrix.zoomTo(null) },
      { keys: ["p"], text: "pin the chosen curve", act: () => this.trajectory.pin() },
      { keys: ["c"], text: "class by class", act: turn("grouped") },
      { keys: ["g"], text: "grey out what is not significant", act: () => this.#turnClear() },
      { keys: ["t"], text: "this view as a table of numbers", act: turn("table") },
      {
        keys: ["w"],
        text: "cards by the whole training, or by this step",
        act: () => this.cards.turn(),
      },
      {
        keys: ["1", "2", "3", "4"],
        text: "Ranking, Matrix, Trust, Compare",
        act: (key) => store.set({ view: VIEWS[Number(key) - 1] }),
      },
      { keys: ["?"], text: "this page", act: () => this.help.open() },
    ];
  }
}

/**
 * @param {Book} book
 * @param {import("./state.js").State} state
 */
function problems(book, state) {
  const run = book.run(state.run);
  const lines = [...book.notes, ...(run?.problems ?? []).map(({ file, why }) => `${file} is skipped: ${why}`)];
  if (!lines.length) return [];
  const [first, ...rest] = lines;
  return [
    el(
      "details",
      { class: "problems" },
      el("summary", {}, rest.length ? `${first} (and ${rest.length} more)` : first),
      el(
        "ul",
        {},
        rest.map((line) => el("li", {}, line)),
      ),
    ),
  ];
}

/** @param {string} run that is not there */
function gone(run) {
  return el(
    "section",
    { class: "panel empty", role: "alert" },
    el("h2", { class: "panel-title" }, "This run is gone"),
    el(
      "p",
      {},
      "There are no dumps of ",
      el("code", {}, run),
      " under the log folder: they were removed, or have another name. The page checks every few seconds and shows them " +
        "when they come. Another run can be chosen above.",
    ),
  );
}

/** @param {Book} book */
function empty(book) {
  return el(
    "section",
    { class: "panel empty" },
    el("h2", { class: "panel-title" }, book.loaded ? "No influence has been written yet" : "Loading…"),
    book.loaded
      ? el(
          "p",
          {},
          "Snapshots appear here as soon as a training run with ",
          el("code", {}, "BIFCallback(train, query)"),
          " writes its first dump under the log folder of this TensorBoard. The page checks every few seconds.",
        )
      : null,
  );
}

/** @param {Promise<Response>} runs answer to the first question, which was asked already */
export function render(runs) {
  return new Page(new Api({ runs })).start();
}
