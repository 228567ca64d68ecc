/**
 * Words that choose examples: `label:7 source:web loss>0.5 "two words" -cat`. All of them have to hold.
 *
 *   word          in the id, the label or the text
 *   label:7       the class, by name or number; id:, text: what these contain
 *   rows:3,5-9    rows of the dataset
 *   is:NAME       a selection that was named
 *   COLUMN:value  a column of the dataset; numbers also with < > <= >=
 *   -...          what follows does not hold
 *
 * @typedef {{not: boolean, key: string, op: string, value: string}} Term
 * @typedef {object} Known what examples are known by
 * @property {import("./api.js").Samples} samples
 * @property {Record<string, ArrayLike<number>>} numbers further columns, such as the effect
 * @property {Record<string, string>} selections words by the name of each
 * @property {(word: string) => Promise<ArrayLike<number>>} inTexts rows whose whole text contains a word
 */

import { labelText } from "./axes.js";
import { rowsOf } from "./pins.js";

const TERM = /(-?)(?:("[^"]*"|[^\s":<>=]+)(:|<=|>=|<|>))?("[^"]*"|[^\s"]\S*)/g;
/** Of selections within selections. */
const DEEPEST = 8;

/**
 * @param {string} words
 * @returns {Term[]}
 */
export function termsOf(words) {
  return [...words.matchAll(TERM)].map(([, not, key = "", op = "", value]) => ({
    not: not === "-",
    key: bare(key),
    op,
    value: bare(value),
  }));
}

/** @param {string} word */
function bare(word) {
  return word.startsWith('"') ? word.slice(1, word.endsWith('"') && word.length > 1 ? -1 : undefined) : word;
}

/**
 * @param {string} value
 * @returns {string} as a word of a filter
 */
export function quoted(value) {
  return /^[^\s":<>=-][^\s":<>=]*$/.test(value) ? value : `"${value.replaceAll('"', "")}"`;
}

/**
 * Which examples the words choose.
 * @param {string} words
 * @param {Known} known
 * @param {number} [depth]
 * @returns {Promise<Uint8Array>} 1 for each that they choose
 * @throws {Error} whose message says which words mean nothing here
 */
export async function chosenBy(words, known, depth = 0) {
  const size = known.samples.id.length;
  const chosen = new Uint8Array(size).fill(1);
  for (const term of termsOf(words)) {
    const holds = await holdsOf(term, known, depth);
    for (let row = 0; row < size; row += 1) if (Boolean(holds(row)) === term.not) chosen[row] = 0;
  }
  return chosen;
}

/**
 * @param {Term} term
 * @param {Known} known
 * @param {number} depth
 * @returns {Promise<(row: number) => boolean | number>}
 */
async function holdsOf({ key, op, value }, known, depth) {
  const { samples } = known;
  const word = value.toLowerCase();
  const name = key.toLowerCase();
  if (!key) return anywhere(word, await textsWith(known, value), samples);
  if (op === ":") {
    if (name === "label") return withLabel(samples, word);
    if (name === "id") return (row) => samples.id[row].toLowerCase().includes(word);
    if (name === "text") return among(await textsWith(known, value), samples);
    if (name === "rows") return among(listed(value), samples);
    if (name === "is") return selected(value, known, depth);
  }
  const column = columnOf(key, known);
  if (!column) throw new Error(`There is no column ${key}. There are ${keysOf(known).join(", ")}.`);
  if (op === ":" && typeof column[0] === "string") return (row) => String(column[row]).toLowerCase() === word;
  const number = Number(value);
  if (value.trim() === "" || Number.isNaN(number)) throw new Error(`${key}${op}${value}: ${value || "nothing"} is no number.`);
  if (typeof column[0] === "string") throw new Error(`${key} holds texts, which have no order; write ${key}:${value}.`);
  const holds = /** @type {Record<string, (one: number) => boolean>} */ ({
    ":": (one) => one === number,
    "<": (one) => one < number,
    ">": (one) => one > number,
    "<=": (one) => one <= number,
    ">=": (one) => one >= number,
  })[op];
  return (row) => holds(Number(column[row] ?? NaN));
}

/**
 * What may stand before a colon.
 * @param {Known} known
 */
export function keysOf({ samples, numbers, selections }) {
  return [
    ...(samples.label ? ["label"] : []),
    "id",
    ...(samples.text_head ? ["text"] : []),
    "rows",
    ...(Object.keys(selections).length ? ["is"] : []),
    ...Object.keys(numbers),
    ...Object.keys(samples.columns ?? {}).map(quoted),
  ];
}

/**
 * @param {string} key
 * @param {Known} known
 * @returns {ArrayLike<number | string> | undefined}
 */
function columnOf(key, { samples, numbers }) {
  const all = /** @type {Record<string, any>} */ ({ ...numbers, ...samples.columns });
  const name = Object.keys(all).find((one) => one === key) ?? Object.keys(all).find((one) => one.toLowerCase() === key.toLowerCase());
  return name === undefined ? undefined : all[name];
}

/**
 * @param {string} word in lower case
 * @param {ArrayLike<number>} texts rows whose text has it
 * @param {import("./api.js").Samples} samples
 */
function anywhere(word, texts, samples) {
  const inText = among(texts, samples);
  return (/** @type {number} */ row) =>
    inText(row) || samples.id[row].toLowerCase().includes(word) || labelText(samples, row).toLowerCase().includes(word);
}

/**
 * @param {Known} known
 * @param {string} word
 */
async function textsWith({ samples, inTexts }, word) {
  return samples.text_head ? inTexts(word) : [];
}

/**
 * @param {import("./api.js").Samples} samples
 * @param {string} word in lower case
 */
function withLabel(samples, word) {
  const { label } = samples;
  if (!label) throw new Error("These examples have no labels.");
  const names = samples.label_names ?? [];
  const named = names.findIndex((name) => name.toLowerCase() === word);
  const wanted = named >= 0 ? named : Number(word);
  const none = word === "none";
  if (!none && !label.includes(wanted)) throw new Error(`No example has the label ${word}.`);
  return (/** @type {number} */ row) => (none ? label[row] < 0 : label[row] === wanted);
}

/** @param {string} value */
function listed(value) {
  const rows = rowsOf(value);
  if (!rows) throw new Error(`rows:${value} is no list of rows, such as rows:3,5-9.`);
  return rows;
}

/**
 * @param {ArrayLike<number>} rows
 * @param {import("./api.js").Samples} samples
 * @returns {(row: number) => number}
 */
function among(rows, samples) {
  const found = new Uint8Array(samples.id.length);
  for (let place = 0; place < rows.length; place += 1) if (rows[place] < found.length) found[rows[place]] = 1;
  return (row) => found[row];
}

/**
 * @param {string} name
 * @param {Known} known
 * @param {number} depth
 * @returns {Promise<(row: number) => number>}
 */
async function selected(name, known, depth) {
  const words = known.selections[name];
  if (words === undefined) {
    const names = Object.keys(known.selections);
    throw new Error(`No selection is called ${name}${names.length ? `; there are ${names.join(", ")}` : ""}.`);
  }
  if (depth >= DEEPEST) throw new Error(`The selection ${name} is made of itself.`);
  const rows = await chosenBy(words, known, depth + 1);
  return (row) => rows[row];
}

/**
 * A mask as hexadecimal digits, four examples in each, the first the highest bit; "" where all are chosen.
 * @param {Uint8Array} chosen
 */
export function maskOf(chosen) {
  if (chosen.every((one) => one === 1)) return "";
  let digits = "";
  for (let start = 0; start < chosen.length; start += 4) {
    let digit = 0;
    for (let bit = 0; bit < 4; bit += 1) digit = digit * 2 + (chosen[start + bit] ?? 0);
    digits += digit.toString(16);
  }
  return digits;
}
