/** The order of a ranking: by any of its columns, and the rank of each train example. */

import { isKnown } from "./format.js";

/** @typedef {import("./ranking_table.js").Ranking} Ranking */

/**
 * @param {Float32Array} effect
 * @returns {Int32Array} 1 = the most harmful; unknown effects come last
 */
export function ranksOf(effect) {
  const rows = Array.from(effect, (_, row) => row).sort((a, b) => order(effect[a], effect[b]) || a - b);
  const ranks = new Int32Array(effect.length);
  rows.forEach((row, place) => {
    ranks[row] = place + 1;
  });
  return ranks;
}

/**
 * @param {number} a
 * @param {number} b
 */
function order(a, b) {
  if (isKnown(a) && isKnown(b)) return a - b;
  return isKnown(a) ? -1 : isKnown(b) ? 1 : 0;
}

const COLLATOR = new Intl.Collator("en", { numeric: true });

/**
 * @param {number[]} rows
 * @param {string} sort a column's key, with a minus for the largest first
 * @param {Ranking} ranking
 * @param {import("./api.js").Samples} train
 */
export function sorted(rows, sort, ranking, train) {
  const down = sort.startsWith("-");
  const key = down ? sort.slice(1) : sort;
  const own = key.startsWith("own:") ? train.columns?.[key.slice(4)] : undefined;
  const label = train.label?.map((one) => (one < 0 ? NaN : one)) ?? [];
  const columns = /** @type {Record<string, ArrayLike<any>>} */ ({
    id: train.id,
    label,
    effect: ranking.effect,
    q: ranking.q_value,
    hurt: ranking.share_hurt,
    loss: ranking.loss,
  });
  const values = own ?? columns[key] ?? ranking.effect;
  const way = down ? -1 : 1;
  const compare =
    typeof values[0] === "string"
      ? (/** @type {number} */ a, /** @type {number} */ b) => way * COLLATOR.compare(values[a], values[b])
      : (/** @type {number} */ a, /** @type {number} */ b) =>
          isKnown(values[a]) && isKnown(values[b]) ? way * (values[a] - values[b]) : order(values[a], values[b]);
  return rows.sort((a, b) => compare(a, b) || a - b);
}
