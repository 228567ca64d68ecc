/** For those who do not see the canvas: spoken values, and the window as a table of numbers. */

import { el, put } from "./dom.js";
import { nameAt } from "./axes.js";
import { Latest } from "./api.js";
import { gridOf } from "./format.js";
import { verdictOn } from "./signs.js";

/** @typedef {import("./source.js").Source} Source */
/** @typedef {import("./state.js").Window} Window */

const LIVE = el("div", { class: "unseen", role: "status", "aria-live": "polite", "data-name": "live" });
const TOAST = el("div", { class: "toast", "aria-hidden": "true", hidden: true });
const SECONDS = 4;
const ROWS = 12;
const COLUMNS = 8;
let hiding = 0;

/** @returns {HTMLElement[]} where announcements appear; to be put into the page once */
export function announcers() {
  return [LIVE, TOAST];
}

/**
 * Have a screen reader say it.
 * @param {string} text
 * @param {boolean} [visibly] also show it for a few seconds
 */
export function announce(text, visibly = false) {
  LIVE.textContent = text;
  if (!visibly) return;
  TOAST.textContent = text;
  TOAST.hidden = false;
  clearTimeout(hiding);
  hiding = window.setTimeout(() => {
    TOAST.hidden = true;
  }, 1000 * SECONDS);
}

/** The window as a table: of at most 12 x 8 cells, means where the window has more. */
export class MatrixTable {
  constructor() {
    this.element = el("div", { class: "table-box", hidden: true });
    this.latest = new Latest();
  }

  /**
   * @param {Source} source
   * @param {Window} window
   * @param {import("./signs.js").Quantity} quantity
   * @param {boolean} open
   */
  show(source, window, quantity, open) {
    this.element.hidden = !open;
    if (!open) return;
    void this.latest.take(
      source.picture(window, { height: ROWS, width: COLUMNS }),
      (picture) => put(this.element, tableOf(source, picture, quantity)),
      (error) => put(this.element, el("p", {}, error.message)),
    );
  }
}

/**
 * @param {Source} source
 * @param {import("./api.js").Picture} picture
 * @param {import("./signs.js").Quantity} quantity
 */
function tableOf(source, picture, quantity) {
  const [r0, r1, c0, c1] = picture.window;
  const row = (/** @type {number} */ at) => cellName(source.train, r0, r1, picture.height, at);
  const column = (/** @type {number} */ at) => cellName(source.query, c0, c1, picture.width, at);
  const [height, width] = [Math.min(picture.height, 40), Math.min(picture.width, 40)];
  const grid = gridOf(picture.values, picture.errors);
  const columns = Array.from({ length: width }, (_, at) => el("th", { scope: "col" }, column(at)));
  const rows = Array.from({ length: height }, (_, at) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, row(at)),
      Array.from({ length: width }, (_, across) => {
        const place = at * picture.width + across;
        const [value, error] = [picture.values[place], picture.errors?.[place] ?? null];
        const known = Number.isFinite(value);
        const spread = error !== null && Number.isFinite(error) ? ` ± ${grid.error(error)}` : "";
        return el(
          "td",
          { title: verdictOn(quantity, value, error) },
          known ? `${grid.value(value)}${spread}` : "undefined",
        );
      }),
    ),
  );
  const what = picture.errors ? "value ± standard error" : "means over the examples of each cell";
  const size = source.own ? "the query's own size (root mean square)" : quantity.unit;
  const units = [grid.power, size].filter(Boolean).join(" ");
  return el(
    "table",
    { class: "numbers" },
    el(
      "caption",
      {},
      `${quantity.name}, ${what}${units ? `, in ${units}` : ""}; rows are train examples, columns queries`,
    ),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "train \\ query"), columns)),
    el("tbody", {}, rows),
  );
}

/**
 * @param {import("./axes.js").Axis} axis
 * @param {number} from
 * @param {number} to
 * @param {number} cells
 * @param {number} at
 */
function cellName(axis, from, to, cells, at) {
  const first = from + Math.floor((at * (to - from)) / cells);
  const last = from + Math.floor(((at + 1) * (to - from)) / cells) - 1;

  return first >= last ? nameAt(axis, first) : `${nameAt(axis, first)} … ${nameAt(axis, last)}`;
}
