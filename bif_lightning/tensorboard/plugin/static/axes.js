/**
 * What is written along an axis of a heatmap: single examples where each has room, else the groups of a label, else
 * positions in the order. Canvas and SVG draw the same marks.
 *
 * @typedef {object} Mark
 * @property {number} from position
 * @property {number} to position, excluded
 * @property {string} text
 * @property {boolean} edge whether a thin line parts it from the next
 * @property {boolean} position whether it is a number on an axis, with room around it
 * @typedef {object} Axis one side of the matrix
 * @property {Int32Array} order the row of the dump at each position
 * @property {import("./api.js").Samples} samples
 * @property {string} by what it is ordered by
 */

import { shortened, shortenedInside } from "./format.js";

const ROOM = 13;
const TICK_ROOM = 70;
/** Labels that can be told apart by their colours, at most. */
const MOST_COLOURED = 20;

/**
 * Whether each example has room for its name.
 * @param {number} from first position
 * @param {number} to last position, excluded
 * @param {number} length of the axis in pixels
 */
export function fitsNames(from, to, length) {
  return length / (to - from) >= ROOM;
}

/**
 * @param {Axis} axis
 * @param {number} from first position
 * @param {number} to last position, excluded
 * @param {number} length of the axis in pixels
 * @param {number} letters at most, in a text
 * @param {boolean} [grouped] whether labels are written even where single names would fit, as on the other axis
 * @returns {Mark[]}
 */
export function marks(axis, from, to, length, letters, grouped = false) {
  const pixels = length / (to - from);
  if (fitsNames(from, to, length) && !(grouped && isByLabel(axis))) {
    const labels = axis.by === "label" ? axis.samples.label : null;
    const isEdge = (/** @type {number} */ at) => !!labels && labels[axis.order[at]] !== labels[axis.order[at + 1]];
    return range(from, to, 1).map((at) => mark(at, at + 1, shortenedInside(nameAt(axis, at), letters), { edge: isEdge(at) }));
  }
  const groups = axis.by === "label" ? groupsOf(axis, from, to) : [];
  if (groups.length) {
    let last = -Infinity;
    return groups.map((group) => {
      // Of many small groups every second, third, ... is named.
      const middle = ((group.from + group.to) / 2) * pixels;
      const text = middle - last >= ROOM - 2 ? shortened(group.text, letters) : "";
      if (text) last = middle;
      return mark(group.from, group.to, text, { edge: groups.length * 6 < length });
    });
  }
  const step = nice(((to - from) * TICK_ROOM) / length);
  return range(Math.ceil(from / step) * step, to, step).map((at) => mark(at, at + 1, String(at), { position: true }));
}

/** @param {Axis} axis */
export function isByLabel({ by, samples }) {
  return by === "label" && !!samples.label;
}

/**
 * The labels of an axis that is ordered by something else, which are told by colours beside it.
 * @param {Axis} axis
 * @returns {number[]} none where there are none, too many, or where names along the axis tell
 */
export function colouredLabels({ by, samples }) {
  const { label } = samples;
  if (!label || by === "label") return [];
  const found = [...new Set(label)].sort((a, b) => a - b);
  return found.length > 1 && found.length <= MOST_COLOURED ? found : [];
}

/**
 * @param {number} label
 * @param {boolean} dark
 */
export function labelColour(label, dark) {
  // Neighbouring numbers are far apart on the circle of hues.
  return label < 0 ? "#8b8b92" : `hsl(${Math.round((label * 137.5 + 210) % 360)} 60% ${dark ? 62 : 48}%)`;
}

/**
 * Runs of one label.
 * @param {Axis} axis
 * @param {number} from
 * @param {number} to
 * @returns {{from: number, to: number, text: string}[]} none where there are no labels
 */
export function groupsOf(axis, from, to) {
  const labels = axis.samples.label;
  if (!labels) return [];
  /** @type {{from: number, to: number, text: string, label: number}[]} */
  const found = [];
  for (let at = from; at < to; at += 1) {
    const label = labels[axis.order[at]];
    const last = found.at(-1);
    if (last && last.label === label) last.to = at + 1;
    else found.push({ from: at, to: at + 1, text: labelText(axis.samples, axis.order[at]), label });
  }
  return found;
}

/**
 * @param {import("./state.js").Window | null} window null: everything
 * @param {{train: Axis, query: Axis}} axes
 * @returns {import("./state.js").Window} what of it lies within the matrix; everything where nothing does
 */
export function windowWithin(window, { train, query }) {
  const [height, width] = [train.order.length, query.order.length];
  const [r0, r1, c0, c1] = window ?? [0, height, 0, width];
  return r0 < height && c0 < width ? [r0, Math.min(r1, height), c0, Math.min(c1, width)] : [0, height, 0, width];
}

/**
 * @param {Axis} axis
 * @param {number} at position
 */
export function nameAt(axis, at) {
  return axis.samples.id[axis.order[at]] ?? "";
}

/**
 * @param {import("./api.js").Samples} samples
 * @param {number} row
 * @returns {string} the name of its class, "" where it has none
 */
export function labelText(samples, row) {
  const label = samples.label?.[row];
  return label === undefined ? "" : labelName(label, samples.label_names);
}

/**
 * @param {number} label
 * @param {string[] | null} names
 */
export function labelName(label, names) {
  if (label < 0) return "no label";
  return names?.[label] ?? String(label);
}

/**
 * @param {number} from
 * @param {number} to
 * @param {string} text
 * @param {{edge?: boolean, position?: boolean}} [kind]
 * @returns {Mark}
 */
function mark(from, to, text, { edge = false, position = false } = {}) {
  return { from, to, text, edge, position };
}

/**
 * @param {number} from
 * @param {number} to
 * @param {number} step
 */
function range(from, to, step) {
  return Array.from({ length: Math.max(Math.ceil((to - from) / step), 0) }, (_, at) => from + at * step);
}

/** @param {number} least */
function nice(least) {
  const power = 10 ** Math.floor(Math.log10(Math.max(least, 1)));
  return /** @type {number} */ ([1, 2, 5, 10].find((one) => one * power >= least)) * power;
}
