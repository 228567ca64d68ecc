/** Cards: which train examples help and hurt a query most, or which queries a train example helps and hurts most. */

import { Latest } from "./api.js";
import { card } from "./card.js";
import { choice, el, put, segments } from "./dom.js";
import { identity, thumbnail } from "./example.js";
import { shortened } from "./format.js";
import { Picker } from "./picker.js";
import { quantityOf } from "./signs.js";
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
 */

const MANY = 5;

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
    this.offered = false;
  }

  /** @param {State} state */
  update(state) {
    const shown = this.context.book.shown(state);
    if (!shown) return;
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
    const top = await api.json("top", {
      run: run.run,
      step: step.step,
      matrix: state.matrix,
      [side]: row,
      k: MANY,
      since: sinceOf(state, run),
      token: step.token,
    });
    return { side, row, top, train, query };
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
        label: "Whose cards",
        name: "side",
        options: [
          { value: "query", text: "Of a query", title: "Train examples that help and hurt one query most" },
          { value: "train", text: "Of a train example", title: "Queries that one train example helps and hurts most" },
        ],
        value: state.side,
        change: (side) => store.set({ side }),
      }),
      choice({
        label: "Ranks since",
        name: "since",
        options: [{ value: "", text: "not compared" }, ...steps],
        value: since === undefined ? "" : String(since),
        change: (value) => store.set({ since: value === "" ? null : Number(value) }),
      }),
    );
  }

  /**
   * @param {{state: State, run: import("./api.js").Run, side: "query" | "train", row: number, top: any,
   *   train: import("./api.js").Samples, query: import("./api.js").Samples}} of
   */
  #show({ state, run, side, row, top, train, query }) {
    const quantity = quantityOf(state.matrix);
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
    put(this.words, meaningOf(side, quantity), " ", side === "query" ? top.stability_text : null);
    const most = Math.max(
      ...[...lists.helps, ...lists.hurts].map((one) => Math.abs(one.value) + (one.standard_error ?? 0)),
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
                card({ context: this.context, one, state, run, side, row, other, quantity, most, kind }),
              ),
            )
          : el("p", { class: "hint" }, "none"),
      );
    const words = quantity.observable ? ["Lower it most", "Raise it most"] : ["Helps most", "Hurts most"];
    put(this.columns, column("helps", words[0]), column("hurts", words[1]));
    if (side === "query") this.#offer(lists.helps[0], row);
    this.columns.dataset.of = `${side} ${row} ${this.context.book.shown(state)?.step.step}`;
  }

  /**
   * The first view shows a curve and a pair without a click.
   * @param {Entry | undefined} best
   * @param {number} query
   */
  #offer(best, query) {
    const { store, painted } = this.context;
    if (this.offered) return;
    this.offered = true;
    if (!best) return;
    // After the picture, which is waited for; reading a curve takes all dumps.
    void painted().then(() => {
      if (store.state.chosen === null) store.set({ chosen: pair(best.row, query), train: best.row });
    });
  }

  #csv() {
    const { state } = this.context.store;
    const side = state.side;
    return { what: "top", [side]: (side === "query" ? state.query : state.train) ?? 0, k: 50, since: state.since };
  }
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
 * @param {"query" | "train"} side
 * @param {import("./signs.js").Quantity} quantity
 */
function meaningOf(side, { observable }) {
  const who = side === "query" ? "more weight on these train examples" : "more weight on this train example";
  const loss = side === "query" ? "this query's loss" : "the loss of these queries";
  return `Left: ${who} lowers ${observable || loss}. Right: it raises it. Whiskers: one standard error.`;
}
