/** Which curves a chart of trajectories holds, and what they are called. */

import { labelName } from "./axes.js";
import { counted, shortenedInside } from "./format.js";
import { isPair, toWord } from "./pins.js";

/** @typedef {import("./state.js").State} State */
/** @typedef {import("./pins.js").Pin} Pin */

/**
 * @param {State} state
 * @returns {Pin[]} pinned ones first, so that they keep their colours
 */
export function pinsOf({ chosen, pins }) {
  const words = pins.map(toWord);
  return chosen && !words.includes(toWord(chosen)) ? [...pins, chosen] : pins;
}

/**
 * @param {Pin} pin
 * @param {import("./api.js").Samples} train
 * @param {import("./api.js").Samples} query
 */
export function nameOf(pin, train, query) {
  if ("trainClass" in pin) {
    return `class ${labelName(pin.trainClass, train.label_names)} → class ${labelName(pin.queryClass, query.label_names)}`;
  }
  const { train: rows, query: columns } = pin;
  if (isPair(pin)) return `${called("train", train.id[rows[0]])} → ${called("query", query.id[columns[0]])}`;
  return `mean of ${counted(rows.length)} train × ${counted(columns.length)} queries`;
}

/**
 * An id that is a number alone does not say of which side it is.
 * @param {string} side
 * @param {string | undefined} id
 */
function called(side, id = "") {
  return /^\d+$/.test(id) ? `${side} ${id}` : shortenedInside(id, 30);
}

/**
 * @param {import("./signs.js").Quantity} quantity
 * @param {import("./trajectory.js").Trajectory[]} curves
 */
export function sentence(quantity, curves) {
  const what = quantity.observable
    ? `the train example ${quantity.good} ${quantity.observable}`
    : "the train example helps the query";
  const upper = curves.some((curve) => curve.error_kind === "upper bound");
  return (
    `Above 0, ${what}. Band: ${curves[0].band}, over all steps at once; numbers below: ± one standard error.` +
    (upper ? " For a block it is an upper bound, since errors of pairs may be correlated." : "")
  );
}
