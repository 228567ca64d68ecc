/** What a ranking gives to take away: a table that says what it is, and a list of ids. */

import { labelText } from "./axes.js";

/** A spreadsheet takes these for the beginning of a formula. */
const FORMULA = /^[ \n]*[=+\-@\t\r]|^\n/;

/**
 * @param {unknown} value
 * @returns {string}
 */
function cell(value) {
  if (value === null || value === undefined || (typeof value === "number" && !Number.isFinite(value))) return "";
  if (typeof value === "number") return String(value);
  const text = String(value);
  const safe = FORMULA.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

/**
 * The rows of a ranking in their order, each with what it is of.
 * @param {{rows: number[], ranks: ArrayLike<number>, columns: Record<string, Float32Array>,
 *   samples: import("./api.js").Samples, about: Record<string, string | number>}} of `about` stands in every row: run,
 *   quantity, steps, units, queries, filter
 * @returns {string}
 */
export function csvOf({ rows, ranks, columns, samples, about }) {
  const own = Object.keys(samples.columns ?? {});
  const head = ["rank", "train", "index", "id", "label", ...Object.keys(columns), ...own, ...Object.keys(about)];
  const constants = Object.values(about);
  const lines = rows.map((row) => [
    ranks[row],
    row,
    samples.index[row],
    samples.id[row],
    labelText(samples, row),
    ...Object.values(columns).map((values) => values[row]),
    ...own.map((name) => samples.columns[name][row]),
    ...constants,
  ]);
  return [head, ...lines].map((line) => `${line.map(cell).join(",")}\r\n`).join("");
}

/**
 * Ids, one a line.
 * @param {number[]} rows
 * @param {import("./api.js").Samples} samples
 * @returns {string}
 * @throws {Error} an id has a line break
 */
export function idsOf(rows, samples) {
  const ids = rows.map((row) => samples.id[row]);
  if (ids.some((id) => /[\r\n]/.test(id))) throw new Error("an id has a line break, so a list of one a line would be wrong; save the CSV");
  return ids.map((id) => `${id}\n`).join("");
}
