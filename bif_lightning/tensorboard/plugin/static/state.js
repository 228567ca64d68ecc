/**
 * What is shown: one plain object, kept in one store, and its form in a link.
 *
 * @typedef {[number, number, number, number]} Window positions r0, r1, c0, c1 in the chosen order, r1 and c1 excluded
 * @typedef {import("./pins.js").Pin} Pin
 * @typedef {object} State
 * @property {string} view "ranking", "matrix", "trust" or "compare"
 * @property {string} run
 * @property {number | null} step null: the newest, also when it is written later
 * @property {string} matrix "correlation", "influence", "conditioned", or those of an observable, "margin:influence"
 * @property {number | null} at step that the clustering and the strength are taken from; kept, so that rows stay put
 * @property {string} trainBy order of the rows
 * @property {string} trainColumn which query or which of the user's columns orders them
 * @property {string} queryBy order of the columns
 * @property {string} queryColumn which train example or which of the user's columns orders them
 * @property {Window | null} window null: everything
 * @property {boolean} grouped class by class means
 * @property {boolean | null} clear entries within 1.96 standard errors of zero are greyed; null: of a noisy snapshot
 * @property {string} scaling of the colours: "matrix" for one scale, "column" for one of each query
 * @property {boolean} table whether the window stands below as numbers
 * @property {Pin | null} chosen
 * @property {Pin[]} pins
 * @property {number | null} query row whose cards are shown
 * @property {number | null} train row whose cards are shown
 * @property {string} side "query" or "train": whose cards are shown
 * @property {string} over what cards are ranked by: "training", or a quantity of the step that is shown; "" where the page
 *   decides, as `bif_lightning.top` does
 * @property {number | null} since earlier step that ranks are compared with
 * @property {string} otherRun
 * @property {number | null} otherStep
 * @property {string} rankQueries words that choose the queries of the ranking (filter.js)
 * @property {string} rankFilter words that choose its train examples
 * @property {string} rankSort its order: key of a column, with a minus for the largest first
 * @property {boolean} rankSure whether only significant effects are shown
 * @property {number} rankPage from 0
 * @property {import("./selections.js").Selection[]} selections
 * @property {string} onlyTrain selection to which the rows of the matrix are restricted; "" for all
 * @property {string} onlyQuery that of its columns
 * @property {string} spacing of the steps in charts: "even" or "scale"; "" where the page decides
 */

import { fromWord, toWord } from "./pins.js";
import { fromWords, toWords } from "./selections.js";

/**
 * @template T
 * @typedef {{key: string, start: T, read: (word: string) => T | undefined, write: (value: T) => string}} Field
 */

/**
 * @param {string} key
 * @param {string} start
 * @returns {Field<any>}
 */
const text = (key, start) => ({ key, start, read: (word) => word, write: (value) => value });

/**
 * @param {string} key
 * @returns {Field<any>}
 */
const whole = (key) => ({
  key,
  start: null,
  read: (word) => (/^\d{1,15}$/.test(word) ? Number(word) : undefined),
  write: String,
});

/**
 * @param {string} key
 * @returns {Field<any>}
 */
const flag = (key) => ({ key, start: false, read: (word) => word === "1", write: () => "1" });

/** @type {Record<keyof State, Field<any>>} */
const FIELDS = {
  view: oneOf("view", ["ranking", "matrix", "trust", "compare"]),
  run: text("run", ""),
  step: whole("step"),
  matrix: text("matrix", "correlation"),
  at: whole("at"),
  trainBy: text("rows", ""),
  trainColumn: text("rows_by", ""),
  queryBy: text("columns", ""),
  queryColumn: text("columns_by", ""),
  window: { key: "window", start: null, read: windowOf, write: (value) => value.join(",") },
  grouped: flag("classes"),
  clear: {
    key: "clear",
    start: null,
    read: (word) => (word === "1" || word === "0" ? word === "1" : undefined),
    write: (value) => (value ? "1" : "0"),
  },
  scaling: oneOf("scaling", ["matrix", "column"]),
  table: flag("table"),
  chosen: { key: "chosen", start: null, read: (word) => fromWord(word) ?? undefined, write: toWord },
  pins: { key: "pins", start: [], read: pinsOf, write: (value) => value.map(toWord).join(";") },
  query: whole("query"),
  train: whole("train"),
  side: oneOf("cards", ["query", "train"]),
  over: oneOf("over", ["", "training", "influence", "correlation", "conditioned"]),
  since: whole("since"),
  otherRun: text("other_run", ""),
  otherStep: whole("other_step"),
  rankQueries: text("of", ""),
  rankFilter: text("filter", ""),
  rankSort: text("sort", "effect"),
  rankSure: flag("significant"),
  rankPage: { ...whole("page"), start: 0 },
  selections: { key: "selections", start: [], read: fromWords, write: toWords },
  onlyTrain: text("only_rows", ""),
  onlyQuery: text("only_columns", ""),
  spacing: oneOf("spacing", ["", "even", "scale"]),
};

/** @type {(keyof State)[]} */
const NAMES = /** @type {any} */ (Object.keys(FIELDS));

/** What only a link to the matrix has. */
const OF_MATRIX = ["window", "chosen", "classes", "table", "rows", "columns"];

/** Links longer than this are cut by some programs; pins beyond it stay on the page only. */
const LONGEST = 6000;

/**
 * @param {string} key
 * @param {string[]} words the first is where the page begins
 * @returns {Field<any>}
 */
function oneOf(key, words) {
  return {
    key,
    start: words[0],
    read: (word) => (words.includes(word) ? word : undefined),
    write: (value) => value,
  };
}

/** @param {string} word */
function windowOf(word) {
  const numbers = word.split(",").map(Number);
  const [r0, r1, c0, c1] = numbers;
  const whole = numbers.length === 4 && numbers.every((one) => Number.isInteger(one) && one >= 0);
  return whole && r0 < r1 && c0 < c1 ? /** @type {Window} */ (numbers) : undefined;
}

/** @param {string} word */
function pinsOf(word) {
  return word
    .split(";")
    .slice(0, 7)
    .map(fromWord)
    .filter((pin) => pin !== null);
}

/** @returns {State} */
export function initial() {
  return /** @type {any} */ (Object.fromEntries(NAMES.map((name) => [name, FIELDS[name].start])));
}

/**
 * The state as a query string; what stands as it begins is left out.
 * @param {State} state
 */
export function toLink(state) {
  const words = new URLSearchParams();
  for (const name of NAMES) {
    const { key, start, write } = FIELDS[name];
    const value = state[name];
    if (value === start || value === null || (Array.isArray(value) && !value.length)) continue;
    const word = write(value);
    if (word.length < LONGEST) words.set(key, word);
  }
  return words.toString();
}

/**
 * @param {string} link from `toLink`; what is not understood is left out
 * @returns {State}
 */
export function fromLink(link) {
  const words = new URLSearchParams(link);
  const state = initial();
  for (const name of NAMES) {
    const word = words.get(FIELDS[name].key);
    const value = word === null ? undefined : FIELDS[name].read(word);
    if (value !== undefined) /** @type {any} */ (state)[name] = value;
  }
  // Links of the time before the ranking left out that they show the matrix, and so do their windows and pairs.
  if (!words.has("view") && OF_MATRIX.some((key) => words.has(key))) state.view = "matrix";
  return state;
}

/** One state, and those who want to know when it changes. */
export class Store {
  /** @param {State} state */
  constructor(state) {
    this.state = state;
    /** @type {((state: State, changed: Set<string>) => void)[]} */
    this.listeners = [];
  }

  /** @param {(state: State, changed: Set<string>) => void} listener is told the names of what changed */
  listen(listener) {
    this.listeners.push(listener);
  }

  /** @param {Partial<State>} patch */
  set(patch) {
    const before = this.state;
    const changed = Object.entries(patch).filter(([name, value]) => !same(/** @type {any} */ (before)[name], value));
    if (!changed.length) return;
    this.state = { ...before, ...Object.fromEntries(changed) };
    const names = new Set(changed.map(([name]) => name));
    for (const listener of this.listeners) listener(this.state, names);
  }
}

/**
 * @param {unknown} a
 * @param {unknown} b
 */
function same(a, b) {
  return a === b || (typeof a === "object" && JSON.stringify(a) === JSON.stringify(b));
}
