/** The chosen pair: both examples in full, their losses, and every matrix's value with its error. */

import { Latest } from "./api.js";
import { el, put } from "./dom.js";
import { identity, thumbnail } from "./example.js";
import { isClear, measure, number } from "./format.js";
import { isPair } from "./pins.js";
import { quantityOf, verdictOn } from "./signs.js";
import { hasTokens, TokenView } from "./tokens.js";

/** @typedef {import("./page.js").Context} Context */
/** @typedef {import("./state.js").State} State */
/** @typedef {import("./api.js").Run} Run */

/** The panel; hidden while no single pair is chosen. */
export class PairView {
  /** @param {Context} context */
  constructor(context) {
    this.context = context;
    this.body = el("div", { class: "pair", "data-name": "pair" });
    this.tokens = new TokenView(context);
    this.element = el(
      "section",
      { class: "panel", "aria-label": "The chosen pair", hidden: true },
      el("div", { class: "panel-head" }, el("h2", { class: "panel-title" }, "The chosen pair")),
      this.body,
      this.tokens.element,
    );
    this.latest = new Latest();
  }

  /** @param {State} state */
  update(state) {
    const shown = this.context.book.shown(state);
    this.element.hidden = !shown || !isPair(state.chosen);
    if (!shown || !isPair(state.chosen)) {
      this.latest.drop();
      return;
    }
    const { run, step } = shown;
    const [train, query] = [state.chosen.train[0], state.chosen.query[0]];
    const { api, book } = this.context;
    void this.latest.take(
      Promise.all([
        api.json("cell", { run: run.run, step: step.step, matrix: state.matrix, train, query, token: step.token }),
        book.samples(run, "train"),
        book.samples(run, "query", state.matrix),
        this.#text(run, "train", train, state.matrix),
        this.#text(run, "query", query, state.matrix),
      ]),
      ([cell, trainSamples, querySamples, trainText, queryText]) => {
        const texts = hasTokens(run, state.matrix) ? [null, null] : [trainText, queryText];
        put(
          this.body,
          this.#example(run, "train", train, trainSamples, texts[0], cell.train_loss, cell.train_std),
          this.#example(run, "query", query, querySamples, texts[1], cell.query_loss, cell.query_std),
          values(cell.values, state.matrix),
        );
        this.body.dataset.of = `${train} ${query} ${step.step}`;
      },
      (error) => put(this.body, el("p", { class: "error" }, error.message)),
    );
    this.tokens.update(state, shown, train, query);
  }

  /**
   * @param {Run} run
   * @param {"train" | "query"} side
   * @param {number} row
   * @param {string} matrix
   * @returns {Promise<string | null>}
   */
  async #text(run, side, row, matrix) {
    if (!run.has[`${side}_text`] || (side === "query" && quantityOf(matrix).observable)) return null;
    const answer = await this.context.api.json("text", { run: run.run, side, row, token: run.samples_token });
    return answer.text;
  }

  /**
   * @param {Run} run
   * @param {"train" | "query"} side
   * @param {number} row
   * @param {import("./api.js").Samples} samples
   * @param {string | null} text
   * @param {number} loss
   * @param {number} spread
   */
  #example(run, side, row, samples, text, loss, spread) {
    const columns = Object.entries(samples.columns ?? {}).map(([name, all]) => [name, all[row]]);
    return el(
      "div",
      { class: "pair-one" },
      el("span", { class: "overline" }, side === "train" ? "train example" : "query"),
      el(
        "div",
        { class: "pair-who" },
        thumbnail(this.context.api, run, side, row, samples),
        el("div", { class: "pair-name" }, identity(samples, row)),
      ),
      text ? el("p", { class: "pair-text", tabindex: "0" }, text) : null,
      el(
        "p",
        {
          class: "fine",
          title: "Mean and standard deviation of the loss over the draws",
        },
        loss === undefined ? null : `loss ${number(loss)} nat, standard deviation ${number(spread, 2)}`,
      ),
      columns.length
        ? el(
            "p",
            { class: "fine" },
            columns
              .map(([name, value]) => `${name}: ${typeof value === "number" ? number(value, 5) : value}`)
              .join(" · "),
          )
        : null,
    );
  }
}

/**
 * @param {Record<string, {value: number, standard_error: number | null}>} all
 * @param {string} shown matrix
 */
function values(all, shown) {
  const { observable } = quantityOf(shown);
  const rows = Object.entries(all).map(([key, { value, standard_error }]) => {
    const matrix = observable && !key.includes(":") ? `${observable}:${key}` : key;
    const quantity = quantityOf(matrix);
    const kind = !isClear(value, standard_error) ? "open" : value > 0 ? "helps" : "hurts";
    return el(
      "tr",
      { class: matrix === shown ? "shown" : null },
      el("th", { scope: "row" }, quantity.name),
      el("td", { class: "tabular" }, measure(value, standard_error, quantity.unit)),
      el("td", { class: `says ${kind}` }, verdictOn(quantity, value ?? NaN, standard_error)),
    );
  });
  return el("table", { class: "pair-values" }, el("tbody", {}, rows));
}
