/**
 * The three quantities, how their sign reads, and the sentences that say so.
 *
 * @typedef {object} Quantity
 * @property {string} matrix as the server names it
 * @property {string} name in running text
 * @property {string} formula
 * @property {string} unit "" for pure numbers
 * @property {1 | -1} helps the sign by which more weight on the train example lowers the loss of the query
 * @property {string} observable "" for the loss
 * @property {string} good what a value of that sign does, "helps"
 * @property {string} bad "hurts"
 */

import { isClear } from "./format.js";

const KINDS = {
  correlation: { name: "correlation", formula: "+Corr(train loss, φ)", unit: "", helps: 1 },
  influence: { name: "influence", formula: "−Cov(train loss, φ)", unit: "nat²", helps: -1 },
  conditioned: {
    name: "conditioned influence",
    formula: "−Cov(train loss, φ | train losses)",
    unit: "nat²",
    helps: -1,
  },
};

/** What each is for, in a sentence. */
const PURPOSES = {
  correlation: "Has no unit, so it can be compared over training.",
  influence: "Scales with the curvature of the loss: rank with it at one step.",
  conditioned: "Influence after the draws were corrected by the train losses: the one to rank by.",
};

/**
 * @param {string} matrix "correlation", or "margin:correlation" of an observable
 * @returns {Quantity}
 */
export function quantityOf(matrix) {
  const [observable, kind] = matrix.includes(":") ? matrix.split(/:(?=[^:]*$)/) : ["", matrix];
  const of = /** @type {any} */ (KINDS)[kind] ?? KINDS.correlation;
  const what = observable || "query loss";
  return {
    matrix,
    observable,
    name: observable ? `${of.name} with ${observable}` : of.name,
    formula: of.formula.replace("φ", what),
    unit: observable && of.unit ? "" : of.unit,
    helps: of.helps,
    good: observable ? "lowers" : "helps",
    bad: observable ? "raises" : "hurts",
  };
}

/**
 * @param {string} matrix
 * @returns {string} what it is good for
 */
export function purposeOf(matrix) {
  return /** @type {any} */ (PURPOSES)[matrix.split(":").at(-1) ?? ""] ?? "";
}

/**
 * What the two colours mean: text, then parts that name a colour.
 * @param {Quantity} quantity
 * @returns {{good: string, bad: string, sign: string}}
 */
export function meaning(quantity) {
  const [good, bad] = quantity.helps > 0 ? ["> 0", "< 0"] : ["< 0", "> 0"];
  const what = quantity.observable ? quantity.observable : "this query's loss";
  const ends = quantity.observable ? ["", ""] : [": it helps", ": it hurts"];
  return {
    good: `Blue: more weight on this train example lowers ${what}${ends[0]}.`,
    bad: `Orange: it raises ${what}${ends[1]}.`,
    sign: `${quantity.name} = ${quantity.formula}; blue is ${good}, orange ${bad}.`,
  };
}

/**
 * What one value says, in words.
 * @param {Quantity} quantity
 * @param {number} value
 * @param {number | null} error standard error
 */
export function verdictOn(quantity, value, error) {
  if (!Number.isFinite(value)) return "undefined: one of the two losses never varied";
  const word = value * quantity.helps > 0 ? quantity.good : quantity.bad;
  if (error === null || !Number.isFinite(error)) return `${word}; its error is unknown`;
  return isClear(value, error) ? word : `within its error of zero (${word}, if at all)`;
}

/**
 * What the colours of a difference mean.
 * @param {Quantity} quantity
 */
export function comparison(quantity) {
  const more = quantity.observable
    ? `the train example lowers ${quantity.observable} more`
    : "the train example helps the query more";
  return (
    `${meaning(quantity).good} In the difference, blue: on the left ${more} than on the right. ` +
    "Rows and columns keep one order in all three."
  );
}
