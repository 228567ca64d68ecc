/** The ranking: which train examples hurt, and which help, all queries or chosen ones. The view that opens first. */

import { announce } from "./a11y.js";
import { Latest } from "./api.js";
import { tokenOfAll } from "./book.js";
import { rankedBy, rankingOptions } from "./cards.js";
import { button, el, put, segments } from "./dom.js";
import { fileNameOf, saveButtons, saveText } from "./export.js";
import { chosenBy, maskOf } from "./filter.js";
import { counted } from "./format.js";
import { csvOf, idsOf } from "./ranking_files.js";
import { MOST_ROWS } from "./pins.js";
import { ranksOf, sorted } from "./ranking_order.js";
import { drawCurves, tableOf } from "./ranking_table.js";
import { doubtful, FALSE_SHARE, meaningOf, nothing, summaryOf } from "./ranking_words.js";
import { finder, lasting, SelectionsBar, selectionsOf } from "./selections.js";
import { OVER_TRAINING, partsOf, quantityOf } from "./signs.js";
import { verdictBanner } from "./verdict.js";
import { WordsField } from "./words_field.js";

/** @typedef {import("./page.js").Context} Context */
/** @typedef {import("./state.js").State} State */
/** @typedef {import("./api.js").Samples} Samples */
/** @typedef {import("./ranking_table.js").Ranking} Ranking */
/**
 * @typedef {object} Loaded
 * @property {State} state
 * @property {import("./api.js").Run} run
 * @property {import("./api.js").Step} step
 * @property {Ranking} ranking
 * @property {Record<string, any>} about
 * @property {Int32Array} ranks 1 = the most harmful
 * @property {Samples} train
 * @property {Samples} query
 * @property {number[]} rows that pass the filter, in the order of the table
 * @property {string} trouble why the filter means nothing; "" where it does
 * @property {Record<string, any>} asked
 */

const PAGE = 50;
/** Of train examples, in one answer of the server. */
const ROWS = 1 << 16;
const POLL = 400;
/** What may stand in the filter and changes with the queries, the quantity or the step. */
const PASSING = ["effect", "q", "hurt", "loss"];

/** The view of its own tab. */
export class RankingView {
  /** @param {Context} context */
  constructor(context) {
    this.context = context;
    this.queries = new WordsField("Queries", "of", (words) => this.context.store.set({ rankQueries: words, rankPage: 0 }));
    this.filter = new WordsField("Train examples", "filter", (words) =>
      this.context.store.set({ rankFilter: words, rankPage: 0 }),
    );
    const use = (/** @type {keyof State} */ field) => (/** @type {string} */ words) =>
      this.context.store.set({ [field]: words, rankPage: 0 });
    this.kept = {
      query: new SelectionsBar(context, "query", {
        words: (state) => state.rankQueries,
        use: use("rankQueries"),
        lasting: () => this.#lastingQueries(),
      }),
      train: new SelectionsBar(context, "train", {
        words: (state) => state.rankFilter,
        use: use("rankFilter"),
        lasting: () => this.#lastingRows(),
      }),
    };
    this.by = el("div", { class: "controls" });
    this.banner = el("div", { class: "banner-box" });
    this.words = el("p", { class: "meaning" });
    this.summary = el("p", { class: "summary", role: "status", "data-name": "ranking-summary" });
    this.tools = el("div", { class: "controls" });
    this.box = el("div", {
      class: "ranking-box",
      role: "region",
      tabindex: "0",
      "aria-label": "Train examples by their effect",
      "data-name": "ranking",
    });
    this.progress = el("p", { class: "hint", "data-name": "progress" });
    this.pages = el("div", { class: "controls", "data-name": "pages" });
    this.element = el(
      "section",
      { class: "panel ranking-panel", "aria-label": "Ranking" },
      el(
        "div",
        { class: "panel-head" },
        el("h2", { class: "panel-title" }, "Which train examples hurt the queries?"),
        saveButtons("ranking", [
          { name: "csv", text: "CSV", label: "Save these train examples as a table (CSV)", click: () => this.#saveCsv() },
          { name: "ids", text: "IDs", label: "Save the ids of these train examples, one a line", click: () => this.#saveIds() },
        ]),
      ),
      el("div", { class: "controls" }, this.queries.element, this.by, this.kept.query.element),
      el("div", { class: "controls" }, this.filter.element, this.tools, this.kept.train.element),
      this.banner,
      this.words,
      this.summary,
      this.progress,
      this.box,
      this.pages,
    );
    this.latest = new Latest();
    /** @type {Loaded | null} */
    this.loaded = null;
    /** @type {Set<number>} train examples chosen by hand, and of which run */
    this.picked = new Set();
    this.pickedOf = "";
    this.drawn = 0;
  }

  /** @param {State} state */
  update(state) {
    const shown = this.context.book.shown(state);
    if (!shown) return;
    if (this.pickedOf !== state.run) this.picked.clear();
    this.pickedOf = state.run;
    this.#head(state, shown.run);
    void this.latest.take(
      this.#load(state, shown),
      (loaded) => this.#show(loaded),
      (error) => {
        this.loaded = null;
        put(this.box, el("p", { class: "error", role: "alert" }, error.message));
        put(this.pages);
        this.summary.textContent = "";
        delete this.element.dataset.of;
      },
    );
  }

  /**
   * @param {State} state
   * @param {{run: import("./api.js").Run, step: import("./api.js").Step}} shown
   * @returns {Promise<Loaded>}
   */
  async #load(state, { run, step }) {
    const { api, book } = this.context;
    const matrix = matrixOf(state, run);
    const [train, query] = await Promise.all([book.samples(run, "train"), book.samples(run, "query", matrix)]);
    const known = { samples: query, numbers: {}, selections: selectionsOf(state, "query"), inTexts: finder(api, run, "query") };
    this.queries.know(known, query.own_columns ? "all values" : `all ${counted(query.id.length)}`);
    const chosen = await chosenBy(state.rankQueries, known);
    if (!chosen.includes(1)) throw new Error("No query is chosen; change the words that choose them.");
    const queries = maskOf(chosen);
    const over = rankedBy(state, run, "query") === "training" ? "training" : "step";
    const token = over === "training" ? `${step.token}-${tokenOfAll(run)}` : step.token;
    const asked = { run: run.run, matrix, over, queries: queries || undefined };
    const { ranking, about } = await this.#columns({ ...asked, step: step.step, token });
    const ranks = ranksOf(ranking.effect);
    // Where the sums cannot be had, the step alone ranks.
    const shown = { ...asked, over: about.over };
    const loaded = { state, run, step, ranking, about, ranks, train, query, rows: [], trouble: "", asked: shown };
    return { ...loaded, ...(await this.#rows(loaded)) };
  }

  /**
   * The columns of all train examples, page by page of the server.
   * @param {Record<string, any>} asked
   * @returns {Promise<{ranking: Ranking, about: Record<string, any>}>}
   */
  async #columns(asked) {
    const { api } = this.context;
    const first = await api.binary("ranking", { ...asked, r0: 0 });
    const total = Number(first.headers.get("X-Rows"));
    const rest = await Promise.all(
      Array.from({ length: Math.max(Math.ceil(total / ROWS) - 1, 0) }, (_, page) =>
        api.binary("ranking", { ...asked, r0: (page + 1) * ROWS }),
      ),
    );
    const names = ["effect", "standard_error", "q_value", "share_hurt", "loss"];
    const columns = names.map(() => new Float32Array(total));
    [first, ...rest].forEach(({ buffer }, page) => {
      const part = new Float32Array(buffer);
      const size = part.length / names.length;
      columns.forEach((column, at) => column.set(part.subarray(at * size, (at + 1) * size), page * ROWS));
    });
    const ranking = /** @type {any} */ (Object.fromEntries(names.map((name, at) => [name, columns[at]])));
    return { ranking, about: JSON.parse(first.headers.get("X-About") ?? "{}") };
  }

  /**
   * Those that pass the filter, sorted.
   * @param {Loaded} of
   * @returns {Promise<{rows: number[], trouble: string}>}
   */
  async #rows({ state, run, ranking, train }) {
    const numbers = { effect: ranking.effect, q: ranking.q_value, hurt: ranking.share_hurt, loss: ranking.loss };
    const known = { samples: train, numbers, selections: selectionsOf(state, "train"), inTexts: finder(this.context.api, run, "train") };
    this.filter.know(known, `all ${counted(train.id.length)}`);
    let chosen;
    try {
      chosen = await chosenBy(state.rankFilter, known);
    } catch (error) {
      return { rows: [], trouble: /** @type {Error} */ (error).message };
    }
    const rows = train.id
      .map((_, row) => row)
      .filter((row) => chosen[row] && (!state.rankSure || ranking.q_value[row] <= FALSE_SHARE));
    return { rows: sorted(rows, state.rankSort, ranking, train), trouble: "" };
  }

  /**
   * @param {State} state
   * @param {import("./api.js").Run} run
   */
  #head(state, run) {
    const { store } = this.context;
    this.queries.show(state.rankQueries);
    this.filter.show(state.rankFilter);
    this.kept.query.show(state);
    this.kept.train.show(state);
    put(
      this.by,
      segments({
        label: "Ranked by",
        name: "rank-over",
        options: rankingOptions(state, run, "query"),
        value: rankedBy(state, run, "query"),
        change: (over) => store.set({ over, rankPage: 0 }),
      }),
    );
    put(
      this.tools,
      button({
        label: `Only those with q ≤ ${FALSE_SHARE}: of these, at most ${100 * FALSE_SHARE} % are false on average (Benjamini-Hochberg)`,
        text: "Significant only",
        name: "rank-sure",
        pressed: state.rankSure,
        click: () => store.set({ rankSure: !state.rankSure, rankPage: 0 }),
      }),
      button({
        label: "Mean over these train examples and queries over training, in the matrix view",
        text: "Curve of these",
        name: "rank-curve",
        click: () => void this.#curve(),
      }),
    );
  }

  /** @param {Loaded} loaded */
  #show(loaded) {
    this.loaded = loaded;
    const { state, run, step, ranking, about, ranks, train, rows, trouble } = loaded;
    const quantity = quantityShown(state, run, about);
    put(this.banner, about.over === "training" ? doubtful(run) : verdictBanner(step));
    put(this.words, meaningOf(quantity, about, step.step));
    this.summary.textContent = trouble || summaryOf(loaded, quantity);
    const pages = Math.max(Math.ceil(rows.length / PAGE), 1);
    const page = Math.min(state.rankPage, pages - 1);
    const shown = rows.slice(page * PAGE, (page + 1) * PAGE);
    const { table, curves } = tableOf({
      context: this.context,
      run,
      rows: shown,
      ranks,
      ranking,
      samples: train,
      quantity,
      sort: state.rankSort,
      picked: this.picked,
      sortBy: (sort) => this.context.store.set({ rankSort: sort, rankPage: 0 }),
      pick: (some, on) => this.#pick(some, on),
      show: (row) => this.context.store.set({ view: "matrix", side: "train", train: row }),
    });
    put(this.box, trouble ? el("p", { class: "error", role: "alert" }, trouble) : shown.length ? table : nothing(loaded));
    this.#pages(page, pages, rows.length);
    this.element.dataset.of = `${state.run} ${step.step}`;
    this.element.dataset.over = about.over;
    this.element.dataset.rows = String(rows.length);
    this.drawn += 1;
    this.progress.textContent = "";
    if (run.steps.length > 1 && shown.length) void this.#curves(loaded, shown, curves, this.drawn);
  }

  /**
   * Effects over training of the rows of this page: what is computed at once, then what comes later.
   * @param {Loaded} loaded
   * @param {number[]} rows
   * @param {Map<number, HTMLElement>} cells
   * @param {number} drawn
   */
  async #curves({ run, step, asked, ranking }, rows, cells, drawn) {
    const { api } = this.context;
    for (;;) {
      let answer;
      try {
        answer = await api.json("ranking_steps", { ...asked, rows: rows.join(",") });
      } catch (error) {
        if (drawn === this.drawn) announce(`The effects over training are missing: ${/** @type {Error} */ (error).message}`, true);
        return;
      }
      if (drawn !== this.drawn) return;
      drawCurves(cells, rows, answer, step.step);
      this.progress.textContent = answer.missing
        ? `Effects over training: ${counted(answer.missing)} of ${counted(run.steps.length)} snapshots are still to be read.`
        : "";
      if (!answer.missing || !ranking.effect.length || !run.steps.length) return;
      await new Promise((resolve) => setTimeout(resolve, POLL));
      if (drawn !== this.drawn) return;
    }
  }

  /**
   * @param {number} page
   * @param {number} pages
   * @param {number} count
   */
  #pages(page, pages, count) {
    const { store } = this.context;
    const turn = (/** @type {number} */ to) => () => {
      store.set({ rankPage: to });
      this.element.scrollIntoView({ block: "start" });
    };
    const one = (/** @type {string} */ text, /** @type {string} */ name, /** @type {number} */ to) => {
      const made = button({ label: text, text, name, click: turn(Math.min(Math.max(to, 0), pages - 1)) });
      made.disabled = to < 0 || to >= pages;
      return made;
    };
    const [first, last] = [page * PAGE + 1, Math.min((page + 1) * PAGE, count)];
    put(
      this.pages,
      pages > 1
        ? [
            one("Previous", "page-back", page - 1),
            el("span", { class: "tabular" }, `${counted(first)} to ${counted(last)} of ${counted(count)}`),
            one("Next", "page-next", page + 1),
          ]
        : [],
      this.picked.size
        ? [
            el("span", { class: "grow" }),
            el("span", {}, `${counted(this.picked.size)} chosen: CSV and IDs save these`),
            button({ label: "Choose none", text: "Choose none", name: "pick-none", click: () => this.#pick([...this.picked], false) }),
          ]
        : [],
    );
  }

  /**
   * @param {number[]} rows
   * @param {boolean} on
   */
  #pick(rows, on) {
    for (const row of rows) if (on) this.picked.add(row);
    else this.picked.delete(row);
    if (this.loaded) this.#show(this.loaded);
  }

  /** Rows to save: those that are chosen by hand, else all that pass the filter, in the order of the table. */
  #toSave() {
    const { loaded, picked } = this;
    if (!loaded || loaded.trouble) return [];
    if (!picked.size) return loaded.rows;
    return sorted([...picked], loaded.state.rankSort, loaded.ranking, loaded.train);
  }

  #lastingQueries() {
    const { rankQueries } = this.context.store.state;
    if (!rankQueries || !this.loaded) throw new Error("Choose some queries first.");
    return rankQueries;
  }

  #lastingRows() {
    const { loaded, picked } = this;
    if (!loaded || loaded.trouble || (!loaded.state.rankFilter && !loaded.state.rankSure && !picked.size))
      throw new Error("Choose some train examples first.");
    return lasting(loaded.state.rankFilter, PASSING, this.#toSave(), loaded.state.rankSure || picked.size > 0);
  }

  /** The mean over the train examples that are shown, or chosen, and over the queries, as a curve over training. */
  async #curve() {
    const { loaded } = this;
    const rows = this.#toSave();
    if (!loaded || !rows.length) return;
    const { state, run, query } = loaded;
    const known = { samples: query, numbers: {}, selections: selectionsOf(state, "query"), inTexts: finder(this.context.api, run, "query") };
    const chosen = await chosenBy(state.rankQueries, known);
    const queries = query.id.map((_, row) => row).filter((row) => chosen[row]);
    if (rows.length > MOST_ROWS || queries.length > MOST_ROWS) {
      announce(`A curve is of at most ${counted(MOST_ROWS)} train examples and queries; choose fewer.`, true);
      return;
    }
    const train = [...rows].sort((a, b) => a - b);
    this.context.store.set({ view: "matrix", grouped: false, chosen: { train, query: queries } });
  }

  #saveCsv() {
    const rows = this.#toSave();
    const { loaded } = this;
    if (!loaded || !rows.length) {
      announce("There is nothing to save yet.", true);
      return;
    }
    const { state, run, step, about, ranks, ranking, train } = loaded;
    const quantity = quantityShown(state, run, about);
    const { steps } = about;
    const text = csvOf({
      rows,
      ranks,
      columns: /** @type {any} */ (ranking),
      samples: train,
      about: {
        run: run.run,
        quantity: about.over === "training" ? "integrated" : matrixOf(state, run),
        units: quantity.unit || "1",
        sign: `above 0 ${quantity.good}`,
        error: about.measured ? "measured" : "bound",
        steps: steps.length > 1 ? `${steps[0]}-${steps[steps.length - 1]}` : steps[0],
        loss_at_step: step.step,
        queries: state.rankQueries || "all",
        num_queries: about.queries,
        filter: [state.rankFilter, state.rankSure ? `q<=${FALSE_SHARE}` : "", this.picked.size ? "chosen by hand" : ""].filter(Boolean).join(" ") || "none",
      },
    });
    saveText(text, fileNameOf(this.context, "ranking", "csv"), "text/csv");
  }

  #saveIds() {
    const rows = this.#toSave();
    if (!this.loaded || !rows.length) {
      announce("There is nothing to save yet.", true);
      return;
    }
    try {
      saveText(idsOf(rows, this.loaded.train), fileNameOf(this.context, "ids", "txt"), "text/plain");
    } catch (error) {
      announce(`Nothing was saved: ${/** @type {Error} */ (error).message}.`, true);
    }
  }
}

/**
 * The matrix of a step that ranks, and beside which a ranking over the training is.
 * @param {State} state
 * @param {import("./api.js").Run} run
 */
function matrixOf(state, run) {
  const by = rankedBy(state, run, "query");
  const [observable] = partsOf(state.matrix);
  if (by === "training") return "influence";
  return observable ? `${observable}:${by}` : by;
}

/**
 * @param {State} state
 * @param {import("./api.js").Run} run
 * @param {Record<string, any>} about
 */
function quantityShown(state, run, about) {
  return about.over === "training" ? OVER_TRAINING : quantityOf(matrixOf(state, run));
}
