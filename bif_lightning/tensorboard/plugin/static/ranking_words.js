/** What a ranking says of itself in sentences. */

import { el } from "./dom.js";
import { counted, isKnown } from "./format.js";
import { icon } from "./icons.js";

/** @typedef {import("./ranking.js").Loaded} Loaded */

/** Benjamini-Hochberg: of those that are called significant, at most this share is false on average. */
export const FALSE_SHARE = 0.05;

/**
 * @param {import("./signs.js").Quantity} quantity
 * @param {Record<string, any>} about
 * @param {number} step
 */
export function meaningOf({ name, good, bad, observable }, { over, steps, error, why, queries, of_queries: all }, step) {
  const at = (/** @type {number} */ one) => one.toLocaleString("en");
  const when =
    over === "training"
      ? `over the whole training: the sum over ${steps.length} snapshots, steps ${at(steps[0])} to ${at(steps[steps.length - 1])}, in standard deviations (sd) of each query's column`
      : `at step ${at(step)}`;
  const what = observable ? "columns" : "queries";
  const of = queries === all ? `all ${counted(all)} ${what}` : `${counted(queries)} of ${counted(all)} ${what}`;
  const quantity = over === "training" ? "effect" : name;
  return `${why ? `${why.replace(/\.$/, "")}. ` : ""}Mean ${quantity} on ${of}, ${when}. Above 0, more weight on the example ${good}; below 0 it ${bad}. ${error}; it holds noise of the estimate alone, not its bias.`;
}

/**
 * @param {Loaded} loaded
 * @param {import("./signs.js").Quantity} quantity
 */
export function summaryOf({ ranking, rows, train }, quantity) {
  let [bad, good] = [0, 0];
  ranking.q_value.forEach((q, row) => {
    if (q <= FALSE_SHARE && ranking.effect[row] < 0) bad += 1;
    else if (q <= FALSE_SHARE && ranking.effect[row] > 0) good += 1;
  });
  if (!ranking.effect.some((effect) => isKnown(effect) && effect !== 0)) {
    const what = quantity.observable || "the loss of each of these queries";
    return `Undefined: ${what} is the same at every draw, so no train example has an effect.`;
  }
  const all = counted(train.id.length);
  const verbs = quantity.observable ? ["raise", "lower"] : ["hurt", "help"];
  const shown = rows.length === train.id.length ? "" : ` Shown are ${counted(rows.length)}.`;
  return `Of ${all} train examples ${counted(bad)} ${verbs[0]} and ${counted(good)} ${verbs[1]} significantly (q ≤ ${FALSE_SHARE}: at most ${100 * FALSE_SHARE} % of these are false on average).${shown}`;
}

/**
 * How many of the snapshots that are summed failed a check.
 * @param {import("./api.js").Run} run
 */
export function doubtful({ steps }) {
  const failed = steps.filter(({ verdict }) => verdict && verdict !== "good");
  if (!failed.length) return null;
  const kinds = [...new Set(failed.map(({ verdict }) => verdict))].join(", ");
  const words = `${failed.length} of ${steps.length} snapshots failed a check (${kinds}): Trust says why.`;
  return el("div", { class: "banner bad", role: "note" }, icon("warn"), el("p", {}, el("strong", {}, "Read with care. "), words));
}

/** @param {Loaded} loaded */
export function nothing({ state }) {
  const why = state.rankSure ? "No train example passes the filter and is significant." : "No train example passes the filter.";
  return el("p", { class: "hint" }, why);
}
