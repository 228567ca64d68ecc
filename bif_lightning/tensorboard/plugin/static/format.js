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
