/** Numbers as text: as many digits as the error leaves, with a true minus sign. */

const MINUS = "\u2212";
const THIN = "\u2009";

/**
 * @param {number | null | undefined} value
 * @returns {value is number}
 */
export function isKnown(value) {
  return typeof value === "number" && Number.isFinite(value);
}

/**
 * @param {number | null | undefined} value
 * @param {number} [digits] that count
 * @returns {string}
 */
export function number(value, digits = 3) {
  if (!isKnown(value)) return "unknown";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const word = size >= 1e5 || size < 1e-3 ? power(value, digits) : trimmed(value, digits);
  return word.replaceAll("-", MINUS);
}

/**
 * Value and standard error, both to two digits of the error: "+0.123 ± 0.021".
 * @param {number | null | undefined} value
 * @param {number | null | undefined} error
 * @param {string} [unit]
 */
export function measure(value, error, unit = "") {
  const end = unit ? `${THIN}${unit}` : "";
  if (!isKnown(value)) return "undefined";
  if (!isKnown(error) || error === 0) return `${signed(number(value), value)}${end} (error unknown)`;
  const size = Math.max(Math.abs(value), error);
  const exponent = size >= 1e5 || size < 1e-2 ? Math.floor(Math.log10(size)) : 0;
  const scale = 10 ** exponent;
  const places = Math.min(Math.max(1 - Math.floor(Math.log10(error / scale)), 0), 6);
  const [left, right] = [(value / scale).toFixed(places), (error / scale).toFixed(places)];
  const both = `${signed(left.replaceAll("-", MINUS), value)} ± ${right}`;
  return exponent ? `(${both})·10${superscript(exponent)}${end}` : `${both}${end}`;
}

/**
 * @typedef {object} Grid how the numbers of one grid or list are written, all alike
 * @property {string} power that all are multiples of, such as "10⁻³"; "" for 1
 * @property {(value: number) => string} value
 * @property {(error: number) => string} error
 * @property {(value: number | null | undefined, error: number | null | undefined, unit?: string) => string} both
 */

/** Decimals of a grid, at most. */
const MOST_PLACES = 4;

/**
 * One exponent and one number of decimals for many numbers: two digits of the median error, and one at least of the
 * smallest error of a value whose sign is known.
 * @param {ArrayLike<number | null | undefined>} values
 * @param {ArrayLike<number | null | undefined> | null} errors
 * @returns {Grid}
 */
export function gridOf(values, errors) {
  const sizes = Array.from(values).filter(isKnown).map(Math.abs);
  const known = Array.from(errors ?? []).filter((error) => isKnown(error) && error > 0);
  const sorted = known.map(Number).sort((a, b) => a - b);
  const median = sorted[Math.floor(sorted.length / 2)] ?? 0;
  const size = Math.max(...sizes, median) || 1;
  const exponent = size >= 1e5 || size < 1e-2 ? Math.floor(Math.log10(size)) : 0;
  const scale = 10 ** exponent;
  const digits = (/** @type {number} */ one, /** @type {number} */ count) =>
    count - 1 - Math.floor(Math.log10(one / scale) + 1e-9);
  const clear = Array.from(errors ?? []).filter((error, at) => Number(error) > 0 && isClear(values[at], error));
  const wanted = sorted.length
    ? Math.max(digits(median, 2), ...clear.map((error) => digits(Number(error), 1)))
    : digits(size, 3);
  const places = Math.min(Math.max(wanted, 0), MOST_PLACES);
  const power = exponent ? `10${superscript(exponent)}` : "";
  const fixed = (/** @type {number} */ one) => {
    const word = (one / scale).toFixed(places);
    return Number(word) === 0 ? word.replace("-", "") : word.replace("-", MINUS);
  };
  const value = (/** @type {number} */ one) => (Number((one / scale).toFixed(places)) > 0 ? `+${fixed(one)}` : fixed(one));
  return {
    power,
    value,
    error: fixed,
    both(one, error, unit = "") {
      const end = unit ? `${THIN}${unit}` : "";
      if (!isKnown(one)) return "undefined";
      const words = isKnown(error) && error > 0 ? `${value(one)} ± ${fixed(error)}` : `${value(one)} (error unknown)`;
      return power ? `(${words})·${power}${end}` : `${words}${end}`;
    },
  };
}

/**
 * The numbers along an axis: as many decimals as tell them apart.
 * @param {(number | null)[]} all ascending
 * @returns {string[]}
 */
export function ticks(all) {
  const known = all.filter(isKnown);
  const gap = Math.min(...known.slice(1).map((one, at) => one - known[at]).filter((one) => one > 0));
  if (!Number.isFinite(gap)) return all.map((one) => (isKnown(one) ? number(one) : ""));
  const size = Math.max(...known.map(Math.abs));
  const exponent = size >= 1e6 || size < 1e-2 ? Math.floor(Math.log10(size)) : 0;
  const scale = 10 ** exponent;
  let places = Math.min(Math.max(-Math.floor(Math.log10(gap / scale) + 1e-9), 0), 9);
  // Steps of 2.5 take one decimal more than those of 2.
  if (known.some((one) => Math.abs(Number((one / scale).toFixed(places)) - one / scale) > gap / scale / 100)) places += 1;
  const options = { minimumFractionDigits: places, maximumFractionDigits: places };
  return all.map((one) => {
    if (!isKnown(one)) return "";
    if (one === 0) return "0";
    const word = (one / scale).toLocaleString("en", options).replace("-", MINUS);
    return exponent ? `${word}·10${superscript(exponent)}` : word;
  });
}

/**
 * @param {string} word
 * @param {number} value
 */
function signed(word, value) {
  return value > 0 ? `+${word}` : word;
}

/**
 * @param {number} value
 * @param {number} digits
 */
function trimmed(value, digits) {
  const fixed = Number(value.toPrecision(digits));
  return Math.abs(fixed) >= 1e3 ? Math.round(value).toLocaleString("en") : String(fixed);
}

/**
 * @param {number} value
 * @param {number} digits
 */
function power(value, digits) {
  const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
  return `${Number(mantissa)}·10${superscript(Number(exponent))}`;
}

/** @param {number} exponent */
function superscript(exponent) {
  const raised = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
  return [...String(exponent)].map((one) => /** @type {any} */ (raised)[one]).join("");
}

/**
 * Round up to 1, 1.5, 2, 3, 5 or 7 times a power of ten, so that a colour scale stays the same while values drift.
 * @param {number} value above 0
 */
export function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  const step = [1, 1.5, 2, 3, 5, 7, 10].find((one) => one * power >= value * (1 - 1e-9)) ?? 10;
  return Number((step * power).toPrecision(3));
}

/** @param {number} count */
export function counted(count) {
  return count.toLocaleString("en");
}

/** @param {number | null | undefined} bytes */
export function bytes(bytes) {
  if (!isKnown(bytes)) return "unknown";
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(Math.floor(Math.log10(Math.max(bytes, 1)) / 3), units.length - 1);
  return `${number(bytes / 1000 ** power)} ${units[power]}`;
}

/** @param {number | null | undefined} seconds */
export function duration(seconds) {
  if (!isKnown(seconds)) return "unknown";
  if (seconds < 120) return `${number(seconds, 2)} s`;
  return seconds < 7200 ? `${number(seconds / 60, 2)} min` : `${number(seconds / 3600, 2)} h`;
}

/**
 * @param {string} text
 * @param {number} most characters
 */
export function shortened(text, most) {
  const letters = [...text];
  return letters.length <= most ? text : `${letters.slice(0, Math.max(most - 1, 1)).join("")}…`;
}

/**
 * The same with the middle left out: ids often differ at their ends alone.
 * @param {string} text
 * @param {number} most characters
 */
export function shortenedInside(text, most) {
  const letters = [...text];
  if (letters.length <= most) return text;
  const end = Math.floor((most - 1) / 2);
  return `${letters.slice(0, Math.max(most - 1 - end, 1)).join("")}…${end ? letters.slice(-end).join("") : ""}`;
}

/** Standard errors in half of a 95 % interval: a value further from zero has a known sign (`results/bands.py`). */
export const CLEAR = 1.96;

/**
 * Whether a value is clear of zero, so that its sign is known.
 * @param {number | null | undefined} value
 * @param {number | null | undefined} error
 */
export function isClear(value, error) {
  return isKnown(value) && isKnown(error) && Math.abs(value) > CLEAR * error;
}
