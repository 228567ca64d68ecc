/**
 * What a curve is of: one pair, a block of rows and columns, or a block of two classes.
 * @typedef {{train: number[], query: number[]}} Rows rows of the dump on each side
 * @typedef {{trainClass: number, queryClass: number}} Classes
 * @typedef {Rows | Classes} Pin
 */

/** The server answers for at most so many rows of a side. */
export const MOST_ROWS = 4096;

/**
 * @param {Pin | null} pin
 * @returns {pin is Rows}
 */
export function isPair(pin) {
  return pin !== null && "train" in pin && pin.train.length === 1 && pin.query.length === 1;
}

/**
 * @param {number} train row
 * @param {number} query row
 * @returns {Rows}
 */
export function pair(train, query) {
  return { train: [train], query: [query] };
}

/**
 * Whether a run has the rows of a pin; classes are looked for when they are read.
 * @param {Pin} pin
 * @param {{num_train: number}} run
 */
export function isWithin(pin, run) {
  return "trainClass" in pin || Math.max(...pin.train) < run.num_train;
}

/**
 * As a word for a link: "5x3", "0-4,9x3" or "class2x7".
 * @param {Pin} pin
 */
export function toWord(pin) {
  if ("trainClass" in pin) return `class${pin.trainClass}x${pin.queryClass}`;
  return `${ranges(pin.train)}x${ranges(pin.query)}`;
}

/**
 * @param {string} word from `toWord`
 * @returns {Pin | null} null where it is none
 */
export function fromWord(word) {
  const classes = /^class(\d+)x(\d+)$/.exec(word);
  if (classes) return { trainClass: Number(classes[1]), queryClass: Number(classes[2]) };
  const [train, query] = word.split("x").map(rowsOf);
  return train?.length && query?.length ? { train, query } : null;
}

/**
 * The parameters by which the server knows it.
 * @param {Pin} pin
 * @returns {Record<string, string | number>}
 */
export function toParameters(pin) {
  if ("trainClass" in pin) return { train_class: pin.trainClass, query_class: pin.queryClass };
  return { train: pin.train.join(","), query: pin.query.join(",") };
}

/** @param {number[]} rows */
export function ranges(rows) {
  const sorted = [...rows].sort((a, b) => a - b);
  /** @type {[number, number][]} */
  const found = [];
  for (const row of sorted) {
    const last = found.at(-1);
    if (last && row === last[1] + 1) last[1] = row;
    else found.push([row, row]);
  }
  return found.map(([from, to]) => (from === to ? `${from}` : `${from}-${to}`)).join(",");
}

/**
 * @param {string} word
 * @returns {number[] | null}
 */
export function rowsOf(word) {
  /** @type {number[]} */
  const rows = [];
  for (const part of word.split(",")) {
    const found = /^(\d{1,9})(?:-(\d{1,9}))?$/.exec(part);
    if (!found) return null;
    const from = Number(found[1]);
    const to = Number(found[2] ?? found[1]);
    if (to < from || rows.length + to - from >= MOST_ROWS) return null;
    for (let row = from; row <= to; row += 1) rows.push(row);
  }
  return rows;
}
