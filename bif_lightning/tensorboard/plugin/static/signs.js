/**
 * The three quantities as they are shown: effects, of which one above 0 helps, and the sentences that say so. Dumps and
 * tables hold the influence −Cov, whose sign is the other one.
 *
 * @typedef {object} Quantity
 * @property {string} matrix as the server names it
 * @property {string} name in running text
 * @property {string} formula
 * @property {string} stored how it is called in dumps and tables
 * @property {string} unit "" for pure numbers
 * @property {string} observable "" for the loss
 * @property {string} good what a value above 0 does, "helps"
 * @property {string} bad "hurts"
 */

import { isClear, isKnown } from "./format.js";

const KINDS = {
  correlation: { name: "correlation", formula: "Corr(train loss, φ)", unit: "", stored: "correlation" },
  influence: { name: "effect", formula: "Cov(train loss, φ)", unit: "nat²", stored: "−influence" },
  conditioned: {
    name: "conditioned effect",
    formula: "Cov(train loss, φ | train losses)",
    unit: "nat²",
    stored: "−conditioned influence",
  },
};

/** What each is for, in a sentence. */
const PURPOSES = {
  correlation: "It has no unit, so it can be compared over training.",
  influence: "It scales with the curvature of the loss: use it to rank at one step.",
  conditioned: "The effect after a Kalman update of the draws on the train losses: use it to rank.",
};

/**
 * @param {string} matrix "correlation", or "margin:correlation" of an observable
 * @returns {Quantity}
 */
export function quantityOf(matrix) {
  const [observable, kind] = partsOf(matrix);
  const of = /** @type {any} */ (KINDS)[kind] ?? KINDS.correlation;
  return {
    matrix,
    observable,
    name: observable ? `${of.name} ${of.unit ? "on" : "with"} ${observable}` : of.name,
    formula: of.formula.replace("φ", observable || "query loss"),
    stored: of.stored,
    unit: observable && of.unit ? "" : of.unit,
    good: observable ? "lowers" : "helps",
    bad: observable ? "raises" : "hurts",
  };
}

/**
 * @param {string} matrix
 * @returns {[string, string]} the observable, "" for the loss, and the quantity
 */
export function partsOf(matrix) {
  const at = matrix.lastIndexOf(":");
  return [matrix.slice(0, Math.max(at, 0)), matrix.slice(at + 1)];
}

/** The effect over the whole training, whatever matrix is shown. */
export const OVER_TRAINING = { ...quantityOf("influence"), name: "effect over the whole training", unit: "sd" };

/**
 * @param {string} matrix
 * @returns {string} what it is good for
 */
export function purposeOf(matrix) {
  return /** @type {any} */ (PURPOSES)[partsOf(matrix)[1]] ?? "";
}

/**
 * Names of the two colours. Of an observable nobody knows whether lower is better, so it has colours of its own.
 * @param {Quantity} quantity
 * @returns {[string, string]} of values above and below 0
 */
export function colourNames({ observable }) {
  return observable ? ["Purple", "Green"] : ["Blue", "Orange"];
}

/**
 * What the two colours mean: text, then parts that name a colour.
 * @param {Quantity} quantity
 * @returns {{good: string, bad: string, sign: string}}
 */
export function meaning(quantity) {
  const [above, below] = colourNames(quantity);
  const what = quantity.observable || "this query's loss";
  const ends = quantity.observable ? ["", ""] : [": it helps", ": it hurts"];
  const stored = quantity.stored === quantity.name ? "" : ` (${quantity.stored} of the dump)`;
  return {
    good: `${above}, above 0: more weight on this train example lowers ${what}${ends[0]}.`,
    bad: `${below}, below 0: it raises ${what}${ends[1]}.`,
    sign: `${quantity.name} = ${quantity.formula}${stored}; above 0 (${above.toLowerCase()}) ${quantity.good}, below 0 (${below.toLowerCase()}) ${quantity.bad}.`,
  };
}

/**
 * What one value says, in words.
 * @param {Quantity} quantity
 * @param {number | null} value
 * @param {number | null} error standard error
 */
export function verdictOn(quantity, value, error) {
  if (!isKnown(value)) {
    return quantity.observable
      ? `undefined: ${quantity.observable}, or the train loss, is the same at every draw`
      : "undefined: one of the two losses is the same at every draw";
  }
  if (value === 0) return "no effect";
  const word = value > 0 ? quantity.good : quantity.bad;
  if (!isKnown(error)) return `${word}; its error is unknown`;
  return isClear(value, error) ? word : `within its error of zero (${word}, if at all)`;
}

/**
 * What the colours of a difference mean.
 * @param {Quantity} quantity
 * @param {string} left name of what the other is taken from
 */
export function comparison(quantity, left) {
  const more = quantity.observable
    ? `the train example lowers ${quantity.observable} more`
    : "the train example helps the query more";
  return (
    `${meaning(quantity).good} In the difference, ${colourNames(quantity)[0].toLowerCase()}: at ${left}, ${more}. ` +
    "Rows and columns have the same order in all three matrices."
  );
}
