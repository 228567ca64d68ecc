/** Cards: which train examples help and hurt a query most, or which queries a train example helps and hurts most. */

import { Latest } from "./api.js";
import { tokenOfAll } from "./book.js";
import { card } from "./card.js";
import { choice, el, put, segments } from "./dom.js";
import { identity, thumbnail } from "./example.js";
import { gridOf, shortened } from "./format.js";
import { Picker } from "./picker.js";
import { OVER_TRAINING, partsOf, quantityOf } from "./signs.js";
import { saveMenu } from "./export.js";
import { pair } from "./pins.js";

/** @typedef {import("./page.js").Context} Context */
/** @typedef {import("./state.js").State} State */
/**
 * @typedef {object} Entry
 * @property {number} row
 * @property {number} value
 * @property {number | null} standard_error
 * @property {boolean} [clear]
 * @property {number} rank
 * @property {number | null} rank_since
 * @property {number | null} value_since
 * @property {{value: number, standard_error: number | null, rank: number | null}} [snapshot] the single step
 */

const MANY = 5;
/** Snapshots from which on a run is ranked over the whole training. */
const LEAST_SNAPSHOTS = 5;

/** The panel with the two columns of cards. */
export class CardsView {
  /** @param {Context} context */
  constructor(context) {
    this.context = context;
    this.pickers = {
      query: new Picker({ label: "Query", name: "pick-query", choose: (query) => this.#pick({ query }) }),
      train: new Picker({ label: "Train example", name: "pick-train", choose: (train) => this.#pick({ train }) }),
    };
    this.head = el("div", { class: "controls" });
    this.pick = el("div", { class: "pick" });
    this.subject = el("div", { class: "subject" });
    this.words = el("p", { class: "meaning" });
    this.columns = el("div", { class: "card-columns", "data-name": "cards" });
    this.element = el(
      "section",
      { class: "panel", "aria-label": "Helps and hurts" },
      el(
        "div",
        { class: "panel-head" },
        el("h2", { class: "panel-title" }, "Helps and hurts most"),
        saveMenu(context, { name: "cards", image: null, table: () => this.#csv() }),
      ),
      this.head,
      this.pick,
      this.subject,
      this.words,
      this.columns,
    );
    this.latest = new Latest();
    /** What a curve and a pair were shown of without a click. */
    this.offered = "";
  }

  /** @param {State} state */
  update(state) {
    const shown = this.context.book.shown(state);
    // Cards are of single examples: beside classes they would be of another query than the cell that is clicked.
    this.element.hidden = state.grouped;
    if (!shown || state.grouped) {
      this.latest.drop();
      return;
    }
    this.#head(state, shown.run);
    void this.latest.take(
      this.#load(state, shown),
      (loaded) => this.#show({ state, run: shown.run, ...loaded }),
      (error) => put(this.columns, el("p", { class: "error" }, error.message)),
    );
  }

  /**
   * @param {State} state
   * @param {{run: import("./api.js").Run, step: import("./api.js").Step}} shown
   */
  async #load(state, { run, step }) {
    const { api, book } = this.context;
    const side = /** @type {"query" | "train"} */ (state.side);
    const [train, query] = await Promise.all([book.samples(run, "train"), book.samples(run, "query", state.matrix)]);
    const row = Math.min(state[side] ?? 0, (side === "query" ? query : train).id.length - 1);
    const asked = { run: run.run, step: step.step, [side]: row, k: MANY, token: step.token, ...rankingOf(state, run) };
    const top = await api.json("top", asked);
    return { side, row, top, train, query, step: step.step };
  }

  /** @param {{query?: number, train?: number}} rows */
  #pick(rows) {
    const { store } = this.context;
    const { train, query } = { ...store.state, ...rows };
    store.set({ ...rows, ...(train !== null && query !== null ? { chosen: pair(train, query) } : {}) });
  }

  /**
   * @param {State} state
   * @param {import("./api.js").Run} run
   */
  #head(state, run) {
    const { store } = this.context;
    const since = sinceOf(state, run);
    const steps = run.steps.map(({ step }) => ({ value: String(step), text: `step ${step.toLocaleString("en")}` }));
    put(
      this.head,
      segments({
        label: "Cards for",
        name: "side",
        options: [
          { value: "query", text: "A query", title: "Train examples that help and hurt one query most" },
          { value: "train", text: "A train example", title: "Queries that one train example helps and hurts most" },
        ],
        value: state.side,
        change: (side) => store.set({ side }),
      }),
      segments({
        label: "Ranked by",
        name: "over",
        options: rankingOptions(state, run),
        value: rankedBy(state, run),
        change: (over) => store.set({ over }),
      }),
      rankedBy(state, run) === "training"
        ? null
        : choice({
            label: "Ranks since",
            name: "since",
            options: [{ value: "", text: "not compared" }, ...steps],
            value: since === undefined ? "" : String(since),
            change: (value) => store.set({ since: value === "" ? null : Number(value) }),
          }),
    );
  }

  /**
   * @param {{state: State, run: import("./api.js").Run, side: "query" | "train", row: number, top: any, step: number,
   *   train: import("./api.js").Samples, query: import("./api.js").Samples}} of
   */
  #show({ state, run, side, row, top, step, train, query }) {
    const { unit } = quantityOf(state.matrix);
    const quantity = top.over === "training" ? OVER_TRAINING : quantityOf(top.matrix);
    /** @type {Record<string, Entry[]>} */
    const lists = { helps: top.helps ?? top.lowers, hurts: top.hurts ?? top.raises };
    const [own, other] = side === "query" ? [query, train] : [train, query];
    const picker = this.pickers[side];
    picker.show(own, row);
    if (this.pick.lastElementChild !== picker.element) {
      put(
        this.pick,
        el("span", { class: "choice-label" }, side === "query" ? "Query" : "Train example"),
        picker.element,
      );
    }
    const text = own.text_head?.[row];
    const all = [...lists.helps, ...lists.hurts];
    const grid = gridOf(
      all.map((one) => one.value),
      all.map((one) => one.standard_error),
    );
    put(
      this.subject,
      thumbnail(this.context.api, run, side, row, own),
      el(
        "div",
        { class: "subject-words" },
        el("div", { class: "subject-name" }, identity(own, row)),
        text ? el("p", { class: "subject-text" }, shortened(text, 160)) : null,
      ),
    );
    put(
      this.words,
      el("span", { "data-name": "ranked-by" }, top.over_text),
      ` ${meaningOf(side, quantity)} `,
      side === "query" ? top.stability_text : null,
    );
    const most = Math.max(
      ...all.map((one) => Math.abs(one.value) + (one.standard_error ?? 0)),
      1e-30,
    );
    const column = (/** @type {"helps" | "hurts"} */ kind, /** @type {string} */ title) =>
      el(
        "div",
        { class: `card-column ${kind}` },
        el("h3", {}, title),
        lists[kind].length
          ? el(
              "ol",
              { class: "cards" },
              lists[kind].map((one) =>
                card({
                  context: this.context,
                  one,
                  state,
                  run,
                  step,
                  side,
                  row,
                  other,
                  words: grid.both(one.value, one.standard_error, quantity.unit),
                  unit,
                  most,
                  kind,
                }),
              ),
            )
          : el("p", { class: "hint" }, all.length ? "none" : (top.none_text ?? "none")),
      );
    const words = quantity.observable ? ["Lower it most", "Raise it most"] : ["Helps most", "Hurts most"];
    put(this.columns, column("helps", words[0]), column("hurts", words[1]));
    if (side === "query") this.#offer(lists.helps[0] ?? lists.hurts[0], row, `${run.run} ${quantity.observable}`);
    this.columns.dataset.of = `${side} ${row} ${step}`;
    this.columns.dataset.over = top.over;
  }

  /**
   * The first view of a run, and of an observable, shows a curve and a pair without a click.
   * @param {Entry | undefined} best
   * @param {number} query
   * @param {string} of run and observable
   */
  #offer(best, query, of) {
    const { store, painted } = this.context;
    if (this.offered === of) return;
    this.offered = of;
    if (!best) return;
    // After the picture, which is waited for; reading a curve takes all dumps.
    void painted().then(() => {
      if (store.state.chosen === null) store.set({ chosen: pair(best.row, query), train: best.row });
    });
  }

  /** Rank by the whole training, or by the effect at the step that is shown. */
  turn() {
    const { book, store } = this.context;
    const run = book.run(store.state.run);
    const side = store.state.view === "ranking" ? "query" : store.state.side;
    if (run && canBeOverTraining(store.state, run, side))
      store.set({ over: rankedBy(store.state, run, side) === "training" ? "influence" : "training" });
  }

  #csv() {
    const { book, store } = this.context;
    const { state } = store;
    const side = state.side;
    const run = book.run(state.run);
    const by = run ? rankingOf(state, run) : {};
    return { what: "top", [side]: (side === "query" ? state.query : state.train) ?? 0, k: 50, ...by };
  }
}

/**
 * What a ranking can be by.
 * @param {State} state
 * @param {import("./api.js").Run} run
 * @param {string} [side] of what it is
 */
export function rankingOptions(state, run, side = state.side) {
  const whole = { value: "training", text: "Whole training", title: "By the effect summed over all snapshots (w)" };
  const kinds = kindsOf(run).map((kind) => ({
    value: kind,
    text: capital(quantityOf(kind).name),
    title: `By the ${quantityOf(kind).name} at the step that is shown${kind === "influence" ? " (w)" : ""}`,
  }));
  return canBeOverTraining(state, run, side) ? [whole, ...kinds] : kinds;
}

/**
 * @param {State} state
 * @param {import("./api.js").Run} run
 * @returns {number | undefined}
 */
function sinceOf(state, run) {
  return run.steps.some(({ step }) => step === state.since) ? /** @type {number} */ (state.since) : undefined;
}

/**
 * Whether a ranking over the whole training can be asked for: it is of the loss of a query.
 * @param {State} state
 * @param {import("./api.js").Run} run
 * @param {string} side
 */
function canBeOverTraining(state, run, side) {
  return side === "query" && !state.matrix.includes(":") && run.steps.length >= LEAST_SNAPSHOTS;
}

/**
 * The quantities of a run.
 * @param {import("./api.js").Run} run
 * @returns {string[]} that which ranks best first
 */
function kindsOf({ matrices }) {
  return ["influence", "correlation", "conditioned"].filter((kind) => matrices.includes(kind));
}

/**
 * What ranks: as asked, else what `bif_lightning.top` takes by default, whatever matrix is shown.
 * @param {State} state
 * @param {import("./api.js").Run} run
 * @param {string} [side] of what the ranking is
 * @returns {string} "training", or a quantity
 */
export function rankedBy(state, run, side = state.side) {
  const kinds = kindsOf(run);
  if (kinds.includes(state.over)) return state.over;
  return canBeOverTraining(state, run, side) ? "training" : kinds[0];
}

/**
 * The parameters that say what ranks.
 * @param {State} state
 * @param {import("./api.js").Run} run
 * @returns {{matrix: string, over?: string, token?: string, since?: number}}
 */
function rankingOf(state, run) {
  const by = rankedBy(state, run);
  const [observable] = partsOf(state.matrix);
  // A ranking over the whole training changes with every dump, and has the matrix that is shown beside it.
  if (by === "training") return { matrix: state.matrix, over: "training", token: tokenOfAll(run) };
  return { matrix: observable ? `${observable}:${by}` : by, since: sinceOf(state, run) };
}

/** @param {string} text */
function capital(text) {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/**
 * @param {"query" | "train"} side
 * @param {import("./signs.js").Quantity} quantity
 */
function meaningOf(side, { observable }) {
  const who = side === "query" ? "more weight on these train examples" : "more weight on this train example";
  const loss = side === "query" ? "this query's loss" : "the loss of these queries";
  return `Left: ${who} lowers ${observable || loss}. Right: raises it. Whiskers: one standard error.`;
}
