/** Can it be trusted: the measures of every snapshot over training, and what lies behind the one that is shown. */

import { Latest } from "./api.js";
import { tokenOfAll } from "./book.js";
import { Chart, isEven } from "./chart.js";
import { lineColour } from "./colours.js";
import { el, put } from "./dom.js";
import { CLEAR, isKnown, measure, number } from "./format.js";
import { saveMenu } from "./export.js";
import { behind, isIndependent } from "./snapshot.js";
import { goodBanner, verdictBanner } from "./verdict.js";

/** @typedef {import("./page.js").Context} Context */
/** @typedef {import("./state.js").State} State */
/** @typedef {Record<string, any>} Trust */

/**
 * One small chart: key in the answer, title, what it says, error key, values that its axis always holds (so that what
 * is next to nothing looks so).
 * @type {{key: string, title: string, says: string, error?: string, holds?: number[], unit?: string, factor?: number,
 *   chains?: boolean}[]} `chains`: of what moves from draw to draw, which independent draws do not
 */
const MEASURES = [
  {
    key: "llc",
    title: "Learning coefficient (LLC)",
    says: "How much the loss rises around the snapshot, a measure of complexity. Below 0, the draws found lower loss.",
    error: "llc_standard_error",
    unit: "nat",
    holds: [0],
  },
  {
    key: "rhat",
    title: "R-hat of the loss",
    says: "Near 1: the chains agree on the mean loss. It does not test the influence itself.",
    holds: [1, 1.1],
    chains: true,
  },
  {
    key: "ess",
    title: "Effective sample size (ESS)",
    says: "Number of independent draws with the same error of the mean loss.",
    holds: [0],
    chains: true,
  },
  {
    key: "score_agreement",
    title: "Score agreement",
    says: "Rank correlation of the effects found by two halves of the draws (of Subspace: of the examples behind its curvature). Both halves share any bias.",
    holds: [0, 1],
  },
  {
    key: "group_agreement",
    title: "Group agreement",
    says: "Correlation between the same halves: their agreement on sums over groups of train examples.",
    holds: [0, 1],
  },
  {
    key: "noise_ratio",
    title: "Noise ratio",
    says: "Above 1, minibatch noise exceeds the injected noise, and the chains are too hot.",
    holds: [0],
    chains: true,
  },
  {
    key: "llc_ratio",
    title: "LLC ratio",
    says: "1: the loss rises as its curvature predicts. Far above 1, the draws left the neighbourhood.",
    holds: [0],
  },
  {
    key: "drift",
    title: "Drift",
    says: "Mean loss of the second half of the draws minus the first, in standard errors. Beyond ±3, the chains had not converged.",
    holds: [0],
    chains: true,
  },
  {
    key: "control_agreement",
    title: "Agreement with no data",
    says: "Rank correlation of the effects with those of draws from the localization prior, which use no data.",
    holds: [0, 1],
  },
  {
    key: "effective_dimension",
    title: "Effective dimension",
    says: "Number of weight directions determined by the data.",
    holds: [0],
  },
  {
    key: "divergences",
    title: "Diverged chains",
    says: "Number of chains that diverged; they are left out.",
    holds: [0],
    chains: true,
  },
  { key: "snapshot_loss", title: "Train loss at the snapshot", says: "Mean over the train examples.", unit: "nat" },
  { key: "seconds", title: "Cost of the snapshot", says: "Wall time.", unit: "s", holds: [0] },
  { key: "extra_bytes", title: "Extra memory", says: "In addition to the model.", unit: "MB", factor: 1e-6, holds: [0] },
];

/** The view of its own tab. */
export class TrustView {
  /** @param {Context} context */
  constructor(context) {
    this.context = context;
    this.banner = el("div", { class: "banner-box" });
    this.grid = el("div", { class: "measures", "data-name": "measures" });
    this.behind = el("div", { class: "behind", "data-name": "behind" });
    /** @type {Map<string, {chart: Chart, box: HTMLElement, value: HTMLElement}>} */
    this.charts = new Map();
    this.element = el(
      "section",
      { class: "trust", "aria-label": "Trust" },
      el(
        "section",
        { class: "panel" },
        el(
          "div",
          { class: "panel-head" },
          el("h2", { class: "panel-title" }, "Is it reliable?"),
          saveMenu(context, { name: "trust", image: () => this.#image(), table: () => ({ what: "trust" }) }),
        ),
        this.banner,
        el(
          "p",
          { class: "meaning" },
          "Standard errors measure how much a value varies with the sampling noise, but not its bias. These measures detect bias. Dashed: the threshold of the verdict. Click a chart to go to that step.",
        ),
        this.grid,
      ),
      this.behind,
    );
    this.latest = new Latest();
    this.latestBehind = new Latest();
    /** @type {{title: string, chart: Chart}[]} */
    this.pictured = [];
  }

  /** @param {State} state */
  update(state) {
    const shown = this.context.book.shown(state);
    if (!shown) return;
    const { run, step } = shown;
    put(this.banner, verdictBanner(step) ?? goodBanner(step.verdict_text));
    void this.latest.take(
      this.context.api.json("trust", { run: run.run, token: tokenOfAll(run) }),
      (trust) => this.#show(state, trust, step.step, isIndependent(run)),
      (error) => put(this.grid, el("p", { class: "error" }, error.message)),
    );
    void this.latestBehind.take(
      this.context.api.json("chains", { run: run.run, step: step.step, token: step.token }),
      (chains) => {
        put(this.behind, behind(chains, step, this.context.dark, isIndependent(run)));
        this.behind.dataset.of = String(step.step);
      },
      (error) => put(this.behind, el("p", { class: "error" }, error.message)),
    );
  }

  /**
   * @param {State} state
   * @param {Trust} trust
   * @param {number} step
   * @param {boolean} independent draws
   */
  #show(state, trust, step, independent) {
    const shown = trust.steps.indexOf(step);
    const metrics = Object.entries(trust.metrics ?? {}).map(([key, values]) => ({
      key: `metric ${key}`,
      title: key,
      says: "Logged by the training run.",
      values,
    }));
    const measures = MEASURES.filter(({ chains }) => !(chains && independent)).map((one) => ({
      ...one,
      values: scaled(trust[one.key], one.factor),
    }));
    const known = [...measures, ...metrics].filter(({ values }) => values?.some(isKnown));
    this.pictured = [];
    const boxes = known.map((one) => this.#small(/** @type {any} */ (one), trust, state, shown));
    if (boxes.length !== this.grid.children.length || boxes.some((box, place) => box !== this.grid.children[place]))
      put(this.grid, boxes);
    this.grid.dataset.of = String(step);
  }

  /**
   * @param {typeof MEASURES[number] & {values: (number | null)[]}} one
   * @param {Trust} trust
   * @param {State} state
   * @param {number} shown
   */
  #small(one, trust, state, shown) {
    let made = this.charts.get(one.key);
    if (!made) {
      const chart = new Chart({
        height: 118,
        label: `${one.title} over training`,
        choose: (step) => this.context.goTo(step),
      });
      const value = el("span", { class: "measure-value tabular" });
      const box = el(
        "figure",
        { class: "measure", title: one.says },
        el("figcaption", {}, el("span", { class: "measure-title" }, one.title), value),
        chart.element,
        el("p", { class: "fine" }, one.says),
      );
      made = { chart, box, value };
      this.charts.set(one.key, made);
    }
    const errors = one.error ? trust[one.error] : null;
    const edge = (/** @type {number} */ way) =>
      errors &&
      one.values.map((value, at) => (isKnown(value) && isKnown(errors[at]) ? value + way * CLEAR * errors[at] : null));
    const drawing = {
      steps: trust.steps,
      curves: [
        {
          name: one.title,
          colour: lineColour(0, this.context.dark),
          value: one.values,
          low: edge(-1) ?? undefined,
          high: edge(1) ?? undefined,
        },
      ],
      shown: shown < 0 ? null : shown,
      levels: levelsOf(one, trust.thresholds ?? {}),
      zero: one.holds?.includes(0) ?? false,
      holds: one.holds,
      even: isEven(trust.steps, state.spacing),
      label: "training step",
      dark: this.context.dark,
    };
    made.chart.show(drawing);
    this.pictured.push({ title: one.unit ? `${one.title}, ${one.unit}` : one.title, chart: made.chart });
    const value = shown < 0 ? null : one.values[shown];
    put(
      made.value,
      errors && shown >= 0
        ? measure(value, errors[shown], one.unit)
        : isKnown(value)
          ? `${number(value)}${one.unit ? ` ${one.unit}` : ""}`
          : "unknown",
    );
    return made.box;
  }

  #image() {
    const tiles = this.pictured.flatMap(({ title, chart }) => chart.tiles(title));
    const { run } = this.context.store.state;
    return tiles.length ? { title: `${run}: trust over training`, note: "", tiles, dark: this.context.dark } : null;
  }
}

/**
 * @param {typeof MEASURES[number]} one
 * @param {Record<string, {least?: number, most?: number}>} thresholds
 */
function levelsOf(one, thresholds) {
  const { least, most } = thresholds[one.key] ?? {};
  return [
    isKnown(most) ? { at: most, text: "at most" } : null,
    isKnown(least) ? { at: least, text: "at least" } : null,
  ].filter((level) => level !== null);
}

/**
 * @param {(number | null)[] | undefined} values
 * @param {number} [factor]
 */
function scaled(values, factor = 1) {
  return values?.map((value) => (isKnown(value) ? factor * value : null));
}
