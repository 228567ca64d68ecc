/** The colour bar under a heatmap, and the colours of labels beside it. */

import { colouredLabels, labelColour, labelName } from "./axes.js";
import { colour, css } from "./colours.js";
import { el, put } from "./dom.js";
import { number, shortened } from "./format.js";

const STOPS = 41;

/**
 * @typedef {object} Look
 * @property {number} scale value of full colour
 * @property {boolean} dark
 * @property {boolean} clear whether values within their error are greyed
 * @property {boolean} [own] whether each column has a scale of its own
 * @property {{labels: number[], names: string[] | null}} [labelled] labels that are told by colours along the axes
 */

/**
 * The labels that colours beside the cells tell, of both axes.
 * @param {{train: import("./axes.js").Axis, query: import("./axes.js").Axis}} axes
 */
export function labelledBy({ train, query }) {
  const labels = new Set([...colouredLabels(train), ...colouredLabels(query)]);
  const names = train.samples.label_names ?? query.samples.label_names;
  return { labels: [...labels].sort((a, b) => a - b), names };
}

/** Colour bar with its ends named. */
export class Legend {
  constructor() {
    this.element = el("div", { class: "legend" });
  }

  /**
   * @param {import("./signs.js").Quantity} quantity
   * @param {Look} look
   * @param {import("./api.js").Picture} picture
   */
  show(quantity, look, picture) {
    const { scale, dark, own = false } = look;
    const palette = quantity.observable ? "observable" : "loss";
    const stops = Array.from({ length: STOPS }, (_, at) => css(colour((2 * at) / (STOPS - 1) - 1, dark, palette)));
    const unit = own ? " × the query's own size (root mean square)" : quantity.unit ? ` ${quantity.unit}` : "";
    // Values beyond the ends have the colours of the ends.
    const [least, most] = picture.largest > scale * (1 + 1e-6) ? ["≤ −", "≥ +"] : ["−", "+"];
    const kind = (/** @type {"above" | "below"} */ side) => `${palette}-${side}`;
    put(
      this.element,
      el("span", { class: `end ${kind("below")}` }, `← ${quantity.bad}`),
      el("span", { class: "tabular" }, `${least}${number(scale)}`),
      el("span", { class: "legend-bar", style: { background: `linear-gradient(90deg, ${stops.join(",")})` } }),
      el("span", { class: "tabular" }, `${most}${number(scale)}${unit}`),
      el("span", { class: `end ${kind("above")}` }, `${quantity.good} →`),
      el("span", { class: "legend-note" }, note(quantity, picture, look.clear)),
      labels(look),
    );
  }
}

/**
 * @param {import("./signs.js").Quantity} quantity
 * @param {import("./api.js").Picture} picture
 * @param {boolean} clear
 */
function note({ observable }, picture, clear) {
  const [r0, r1, c0, c1] = picture.window;
  const unknown = picture.values.reduce((count, value) => count + Number(Number.isNaN(value)), 0);
  const what = observable || "a loss";
  const undefined_ =
    unknown === picture.values.length
      ? `Undefined everywhere: ${what} is the same at every draw of this snapshot. `
      : unknown
        ? `Grey: undefined, since ${what} is the same at every draw. `
        : "";
  if (picture.pooled) {
    const [rows, columns] = [(r1 - r0) / picture.height, (c1 - c0) / picture.width];
    const cells = `Each cell is the mean of about ${number(rows, 2)} × ${number(columns, 2)} pairs; zoom in to see single pairs`;
    return undefined_ + cells + (clear ? ", and to grey those within their error of zero." : ".");
  }
  return undefined_ + (clear ? "Grey: within 1.96 standard errors of zero." : "");
}

/** @param {Look} look */
function labels({ labelled, dark }) {
  if (!labelled?.labels.length) return null;
  return el(
    "ul",
    { class: "label-key", "aria-label": "Labels, by their colours along the axes" },
    labelled.labels.map((label) =>
      el(
        "li",
        {},
        el("span", { class: "key", style: { background: labelColour(label, dark) }, "aria-hidden": "true" }),
        shortened(labelName(label, labelled.names), 20),
      ),
    ),
  );
}
