/** A small curve over training beside a row of a table, with a line at zero. */

import { svg } from "./dom.js";
import { isKnown, number } from "./format.js";

const WIDTH = 96;
const HEIGHT = 22;
const EDGE = 3;

/**
 * @param {(number | null)[]} values one of each step; null where unknown
 * @param {number[]} steps
 * @param {number} shown place of the step that is shown
 * @returns {SVGElement}
 */
export function sparkline(values, steps, shown) {
  const known = values.filter(isKnown);
  const [low, high] = [Math.min(0, ...known), Math.max(0, ...known)];
  const span = high - low || 1;
  const x = (/** @type {number} */ place) => EDGE + (place / Math.max(values.length - 1, 1)) * (WIDTH - 2 * EDGE);
  const y = (/** @type {number} */ value) => EDGE + ((high - value) / span) * (HEIGHT - 2 * EDGE);
  let path = "";
  let pen = "M";
  values.forEach((value, place) => {
    if (isKnown(value)) path += `${pen}${x(place).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = isKnown(value) ? "L" : "M";
  });
  const here = values[shown];
  return svg(
    "svg",
    {
      class: "sparkline",
      width: WIDTH,
      height: HEIGHT,
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`,
      role: "img",
      "aria-label": inWords(values, steps),
    },
    svg("path", { class: "zero", d: `M0 ${y(0).toFixed(1)}H${WIDTH}` }),
    svg("path", { class: "curve-line", d: path }),
    isKnown(here) ? svg("circle", { cx: x(shown).toFixed(1), cy: y(here).toFixed(1), r: 2.2 }) : null,
  );
}

/**
 * @param {(number | null)[]} values
 * @param {number[]} steps
 */
function inWords(values, steps) {
  const places = values.map((_, place) => place).filter((place) => isKnown(values[place]));
  if (!places.length) return "over training: unknown";
  const at = (/** @type {number} */ place) => `${number(values[place], 2)} at step ${steps[place]}`;
  const last = places[places.length - 1];
  return places.length === 1 ? `over training: ${at(last)}` : `over training: ${at(places[0])}, ${at(last)}`;
}
