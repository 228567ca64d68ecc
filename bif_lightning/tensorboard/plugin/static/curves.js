/** Which curves a chart of trajectories holds, and what they are called. */

import { labelName } from "./axes.js";
import { counted, shortened } from "./format.js";
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
  if (isPair(pin)) return `${shortened(train.id[rows[0]], 30)} → ${shortened(query.id[columns[0]], 30)}`;
  return `mean of ${counted(rows.length)} train × ${counted(columns.length)} queries`;
}

/**
 * @param {import("./signs.js").Quantity} quantity
 * @param {import("./trajectory.js").Trajectory[]} curves
 */
export function sentence(quantity, curves) {
  const side = quantity.helps > 0 ? "Above 0" : "Below 0";
  const what = quantity.observable
    ? `the train example ${quantity.good} ${quantity.observable}`
    : "the train example helps the query";
  const upper = curves.some((curve) => curve.error_kind === "upper bound");
  return (
    `${side}, ${what}. Band: ${curves[0].band}, over all steps at once.` +
    (upper ? " For a block it is an upper bound, as errors of pairs may go together." : "")
  );
}
