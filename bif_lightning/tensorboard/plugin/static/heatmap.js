/**
 * A heatmap on a canvas: paints pictures of the server, finds the cell under the pointer, and reports zooms, choices
 * and the cursor. It knows nothing of runs or steps.
 *
 * @typedef {import("./state.js").Window} Window
 * @typedef {import("./api.js").Picture} Picture
 * @typedef {import("./axes.js").Axis} Axis
 * @typedef {{train: number, query: number}} Cell positions in the order
 * @typedef {object} Frame
 * @property {{train: string, query: string}} titles of the axes
 * @property {Axis} train
 * @property {Axis} query
 * @property {Window} window
 * @property {import("./colours.js").Palette} palette
 * @property {number} scale the value of full colour
 * @property {boolean} dark
 * @property {boolean} clear entries within 1.96 standard errors of zero are greyed
 * @property {boolean} [own] whether each column has a scale of its own, so that pictures hold no values
 * @property {Cell | null} chosen
 * @typedef {object} Events
 * @property {(window: Window) => void} [zoom]
 * @property {(cell: Cell) => void} [choose]
 * @property {(window: Window) => void} [block]
 * @property {(cell: Cell | null, event: PointerEvent | null) => void} [point]
 */

import { el } from "./dom.js";
import { drawNumbers } from "./cell_numbers.js";
import { colour, css } from "./colours.js";
import { number } from "./format.js";
import { drawAxes, drawBox, layout } from "./heatmap_axes.js";
import { listenPointer } from "./pointer.js";
import { rasterOf } from "./raster.js";

/** What of a frame the colours depend on. */
const LOOK = /** @type {const} */ (["dark", "scale", "clear", "palette"]);

/** Canvas, its frame and its cursor. */
export class Heatmap {
  /**
   * @param {string} label for screen readers
   * @param {Events} events
   * @param {{small?: boolean}} [size] `small` leaves less room for the names along the axes
   */
  constructor(label, events, { small = false } = {}) {
    this.events = events;
    this.small = small;
    this.canvas = /** @type {HTMLCanvasElement} */ (
      el("canvas", { class: "heatmap", tabindex: events.choose ? "0" : null, role: "img", "aria-label": label })
    );
    this.element = el("div", { class: "heatmap-box" }, this.canvas);
    /** @type {Frame | null} */
    this.frame = null;
    /** @type {{picture: Picture, raster: HTMLCanvasElement}[]} coarse first */
    this.layers = [];
    /** @type {Cell | null} */
    this.cursor = null;
    /** @type {Window | null} what is being dragged */
    this.box = null;
    /** @type {Picture | null} */
    this.picture = null;
    /** @type {{frame: Frame | null, width: number, height: number, made: import("./heatmap_axes.js").Layout} | null} */
    this.known = null;
    listenPointer(this);
    new ResizeObserver(() => this.paint()).observe(this.canvas);
  }

  /**
   * @param {Frame} frame
   * @param {Picture[]} [pictures] of all of the matrix first, then of the window: until the sharper one comes, the coarse
   *   one is stretched. Without any, those that are there stay.
   */
  show(frame, pictures) {
    const before = this.frame;
    this.frame = frame;
    if (pictures) this.#take(pictures);
    if (pictures || LOOK.some((name) => before?.[name] !== frame[name])) {
      this.layers.forEach(({ raster, picture }) => rasterOf(raster, picture, frame));
    }
    this.paint();
  }

  /** Only the axes stay. */
  clear() {
    this.#take([]);
    this.paint();
  }

  /** @param {Picture[]} pictures */
  #take(pictures) {
    this.picture = pictures.at(-1) ?? null;
    this.layers = pictures.map((picture) => ({ picture, raster: document.createElement("canvas") }));
  }

  /** Where everything lies in the canvas, in CSS pixels; thousands of names are looked through only once. */
  get layout() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const known = this.known;
    if (known && known.frame === this.frame && known.width === width && known.height === height) return known.made;
    const frame = this.frame;
    const none = {
      area: { x: 8, y: 8, width: Math.max(width - 16, 1), height: Math.max(height - 16, 1) },
      rows: [],
      columns: [],
      turned: false,
      lines: [],
      ticks: [],
      strips: [],
    };
    const made = frame ? layout({ width, height }, frame, this.small) : none;
    this.known = { frame, width, height, made };
    return made;
  }

  /** The place of the cells. */
  get area() {
    return this.layout.area;
  }

  /**
   * How many cells of the server's picture the screen has room for. Of the canvas, not of the cells in it: so it stays
   * the same while names along the axes come and go, and a picture that the server has prepared is the one asked for.
   */
  get room() {
    const { clientWidth, clientHeight } = this.canvas;
    const dots = Math.min(window.devicePixelRatio || 1, 2);
    const room = (/** @type {number} */ length) => Math.min(Math.max(Math.ceil(length * dots), 64), 1024);
    return { height: room(clientHeight), width: room(clientWidth) };
  }

  /**
   * @param {number} x CSS pixels within the canvas
   * @param {number} y
   * @returns {{train: number, query: number}} position, with a fraction
   */
  placeAt(x, y) {
    const { area } = this;
    const [r0, r1, c0, c1] = this.frame?.window ?? [0, 1, 0, 1];
    const train = r0 + (Math.min(Math.max(y - area.y, 0), area.height) / area.height) * (r1 - r0);
    const query = c0 + (Math.min(Math.max(x - area.x, 0), area.width) / area.width) * (c1 - c0);
    return { train, query };
  }

  /**
   * @param {number} x
   * @param {number} y
   * @returns {Cell | null} null outside the cells
   */
  cellAt(x, y) {
    const { area, frame } = this;
    if (!frame || x < area.x || y < area.y || x >= area.x + area.width || y >= area.y + area.height) return null;
    const place = this.placeAt(x, y);
    const [, r1, , c1] = frame.window;
    return { train: Math.min(Math.floor(place.train), r1 - 1), query: Math.min(Math.floor(place.query), c1 - 1) };
  }

  /**
   * @param {Cell} cell
   * @returns {{value: number, error: number | null, rows: number, columns: number} | null} of the picture's cell that
   *   holds it: the value itself, or a mean over so many rows and columns
   */
  valueAt(cell) {
    const { picture } = this;
    if (!picture) return null;
    const [r0, r1, c0, c1] = picture.window;
    const row = Math.floor(((cell.train - r0 + 0.5) / (r1 - r0)) * picture.height);
    const column = Math.floor(((cell.query - c0 + 0.5) / (c1 - c0)) * picture.width);
    if (row < 0 || column < 0 || row >= picture.height || column >= picture.width) return null;
    const at = row * picture.width + column;
    return {
      value: picture.values[at],
      error: picture.errors ? picture.errors[at] : null,
      rows: Math.max((r1 - r0) / picture.height, 1),
      columns: Math.max((c1 - c0) / picture.width, 1),
    };
  }

  /**
   * @param {string} title
   * @param {import("./signs.js").Quantity} quantity
   * @returns {import("./picture.js").Tile[]} none where nothing is drawn
   */
  tiles(title, { good, bad, unit }) {
    const { frame, canvas } = this;
    if (!frame) return [];
    const keys = [1, -1].map((side) => ({
      colour: css(colour(side, frame.dark, frame.palette)),
      text: `${side > 0 ? "≥ +" : "≤ −"}${number(frame.scale)} ${unit} (${side > 0 ? good : bad})`,
    }));
    return [{ title, canvas, keys }];
  }

  /**
   * Tell anew what the pointer is on, since another picture has come under it.
   * @param {PointerEvent} event where it was last
   */
  pointAgain(event) {
    const box = this.canvas.getBoundingClientRect();
    this.cursor = this.cellAt(event.clientX - box.left, event.clientY - box.top);
    this.paint();
    this.events.point?.(this.cursor, event);
  }

  paint() {
    const { canvas, frame } = this;
    const dots = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(canvas.clientWidth * dots), Math.round(canvas.clientHeight * dots)];
    if (!frame || !width || !height) return;
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    context.setTransform(dots, 0, 0, dots, 0, 0);
    context.clearRect(0, 0, canvas.clientWidth, canvas.clientHeight);
    this.#paintCells(context, frame);
    const { area } = this;
    canvas.dataset.area = [area.x, area.y, area.width, area.height].map(Math.round).join();
    const power = drawNumbers(context, this, frame);
    drawAxes(context, this.layout, frame, power);
    this.#paintBoxes(context, frame);
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {Frame} frame
   */
  #paintCells(context, frame) {
    const { area } = this;
    const [r0, r1, c0, c1] = frame.window;
    context.save();
    context.beginPath();
    context.rect(area.x, area.y, area.width, area.height);
    context.clip();
    for (const { picture, raster } of this.layers) {
      const [a0, a1, b0, b1] = picture.window;
      const [sx, sy] = [area.width / (c1 - c0), area.height / (r1 - r0)];
      // A picture that is finer than the screen is averaged by the browser; a coarser one keeps its cells.
      context.imageSmoothingEnabled = (b1 - b0) * sx < raster.width || (a1 - a0) * sy < raster.height;
      context.drawImage(raster, area.x + (b0 - c0) * sx, area.y + (a0 - r0) * sy, (b1 - b0) * sx, (a1 - a0) * sy);
    }
    context.restore();
  }

  /**
   * @param {CanvasRenderingContext2D} context
   * @param {Frame} frame
   */
  #paintBoxes(context, frame) {
    const ink = frame.dark ? "#fff" : "#000";
    const paper = frame.dark ? "#000" : "#fff";
    if (frame.chosen) drawBox(context, this, cellWindow(frame.chosen), ink, paper, 2);
    if (this.cursor) drawBox(context, this, cellWindow(this.cursor), ink, paper, 1);
    if (this.box) drawBox(context, this, this.box, ink, paper, 1.5);
  }
}

/**
 * @param {Cell} cell
 * @returns {Window}
 */
export function cellWindow({ train, query }) {
  return [train, train + 1, query, query + 1];
}
