/** The colour bar under a heatmap. */

import { colour, css } from "./colours.js";
import { el, put } from "./dom.js";
import { number } from "./format.js";

const STOPS = 41;

/** Colour bar with its ends named. */
export class Legend {
  constructor() {
    this.element = el("div", { class: "legend" });
  }

  /**
   * @param {import("./signs.js").Quantity} quantity
   * @param {number} scale value of full colour
   * @param {boolean} dark
   * @param {import("./api.js").Picture} picture
   * @param {boolean} clear
   */
  show(quantity, scale, dark, picture, clear) {
    // Values rise to the right, so that the bar reads as an axis; where the blue end lies depends on the sign.
    const stops = Array.from({ length: STOPS }, (_, at) => css(colour((2 * at) / (STOPS - 1) - 1, dark)));
    if (quantity.helps < 0) stops.reverse();
    const ends = quantity.helps > 0 ? [quantity.bad, quantity.good] : [quantity.good, quantity.bad];
    const unit = quantity.unit ? ` ${quantity.unit}` : "";
    const left = el("span", { class: quantity.helps > 0 ? "hurts-text" : "helps-text" }, `← ${ends[0]}`);
    const right = el("span", { class: quantity.helps > 0 ? "helps-text" : "hurts-text" }, `${ends[1]} →`);
    put(
      this.element,
      left,
      el("span", { class: "tabular" }, `−${number(scale)}`),
      el("span", { class: "legend-bar", style: { background: `linear-gradient(90deg, ${stops.join(",")})` } }),
      el("span", { class: "tabular" }, `+${number(scale)}${unit}`),
      right,
      el("span", { class: "legend-note" }, note(picture, clear)),
    );
  }
}

/**
 * @param {import("./api.js").Picture} picture
 * @param {boolean} clear
 */
function note(picture, clear) {
  const [r0, r1, c0, c1] = picture.window;
  if (picture.pooled) {
    const [rows, columns] = [(r1 - r0) / picture.height, (c1 - c0) / picture.width];
    return `Each cell is the mean of about ${number(rows, 2)} × ${number(columns, 2)} pairs; zoom in for single ones.`;
  }
  if (clear) return "Grey: within 1.96 standard errors of zero.";
  return picture.values.some(Number.isNaN) ? "Grey: undefined." : "";
}
