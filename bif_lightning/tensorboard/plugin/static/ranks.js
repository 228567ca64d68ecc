/** How alike two matrices rank the train examples: one number, its spread over the queries, and the least alike. */

import { Latest } from "./api.js";
import { Chart } from "./chart.js";
import { lineColour } from "./colours.js";
import { el, put } from "./dom.js";
import { identity } from "./example.js";
import { counted, isKnown, number } from "./format.js";

/** @typedef {import("./state.js").State} State */

const BINS = 20;
const LEAST = 6;

/** Lower half of the comparison. */
export class RanksView {
  /** @param {import("./page.js").Context} context */
  constructor(context) {
    this.context = context;
    this.histogram = new Chart({ height: 150, label: "Histogram of queries by rank correlation" });
    this.least = el("ol", { class: "least", "data-name": "least" });
    this.element = el(
      "div",
      { class: "two-charts" },
      el(
        "figure",
        { class: "measure" },
        el(
          "figcaption",
          {},
          el("span", { class: "measure-title" }, "Queries by rank correlation"),
          el("span", { class: "fine" }, "1: both rank the train examples alike"),
        ),
        this.histogram.element,
      ),
      el("div", {}, el("h3", { class: "measure-title" }, "Queries with the lowest rank correlation"), this.least),
    );
    this.latest = new Latest();
  }

  /**
   * @param {State} state
   * @param {{run: import("./api.js").Run}} shown
   * @param {Record<string, any>} parameters of the comparison
   */
  update(state, shown, parameters) {
    const { api, book } = this.context;
    void this.latest.take(
      Promise.all([api.json("compare_ranks", parameters), book.samples(shown.run, "query", state.matrix)]),
      ([ranks, samples]) => this.#show(ranks, samples),
      () => {
        put(this.least);
        this.element.hidden = true;
      },
    );
  }

  /**
   * @param {{query: number[], rank_correlation: (number | null)[]}} ranks
   * @param {import("./api.js").Samples} samples
   */
  #show(ranks, samples) {
    this.element.hidden = false;
    const known = ranks.query
      .map((row, place) => ({ row, value: ranks.rank_correlation[place] }))
      .filter((one) => isKnown(one.value))
      .sort((a, b) => Number(a.value) - Number(b.value));
    this.histogram.show(
      histogram(
        known.map((one) => Number(one.value)),
        this.context.dark,
      ),
    );
    const show = (/** @type {number} */ query) => this.context.store.set({ view: "matrix", side: "query", query });
    put(
      this.least,
      known
        .slice(0, LEAST)
        .map(({ row, value }) =>
          el(
            "li",
            {},
            el(
              "button",
              { type: "button", class: "text-button", title: "Show its cards", on: { click: () => show(row) } },
              identity(samples, row),
            ),
            el("span", { class: "tabular" }, number(value, 2)),
          ),
        ),
    );
  }
}

/**
 * @param {Headers} headers of a comparison
 * @param {{train: import("./axes.js").Axis, query: import("./axes.js").Axis}} axes
 * @param {import("./api.js").Run} run
 * @param {{train: number, query: number}} leftOut examples of one id that are not the same
 */
export function ranksSentence(headers, axes, run, leftOut) {
  const correlation = Number(headers.get("X-Rank-Correlation") ?? NaN);
  const [n, q] = [axes.train.order.length, axes.query.order.length];
  const isPart = n < run.num_train || (q < run.num_query && !axes.query.samples.own_columns);
  const common = isPart
    ? ` The comparison uses the ${counted(n)} train examples and ${counted(q)} queries that both have.${differing(leftOut)}`
    : "";
  if (!Number.isFinite(correlation)) return el("p", {}, `No rank correlation: too few values.${common}`);
  return el(
    "p",
    {},
    el("strong", {}, `Median rank correlation ${number(correlation, 2)}`),
    ` over queries, between the two rankings of the train examples; 1 is the same ranking, 0 an unrelated one.${common}`,
  );
}

/** @param {{train: number, query: number}} leftOut */
function differing({ train, query }) {
  const parts = [
    train ? `${counted(train)} train examples` : "",
    query ? `${counted(query)} queries` : "",
  ].filter(Boolean);
  return parts.length ? ` ${parts.join(" and ")} of the same id have other labels or texts, and are left out.` : "";
}

/**
 * @param {number[]} values
 * @param {boolean} dark
 * @returns {import("./chart.js").Drawing}
 */

function histogram(values, dark) {
  const counts = new Array(BINS).fill(0);
  for (const value of values) counts[Math.min(Math.floor(((value + 1) / 2) * BINS), BINS - 1)] += 1;
  return {
    steps: counts.map((_, bin) => -1 + (2 * (bin + 0.5)) / BINS),
    curves: [{ name: "queries", colour: lineColour(0, dark), value: counts }],
    shown: null,
    zero: true,
    even: false,
    label: "rank correlation",
    dark,
    bars: true,
  };
}
