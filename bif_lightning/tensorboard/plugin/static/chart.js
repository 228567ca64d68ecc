/**
 * A line chart over training steps: curves with bands, marks on them, a line at the step that is shown.
 *
 * @typedef {object} Curve
 * @property {string} name
 * @property {string} colour
 * @property {(number | null)[]} value
 * @property {(number | null)[]} [low] of the band
 * @property {(number | null)[]} [high]
 * @property {{place: number, kind: string}[]} [marks] places in `steps`
 * @property {boolean} [thin]
 * @typedef {object} Drawing
 * @property {number[]} steps ascending; of a trace, draws
 * @property {Curve[]} curves
 * @property {number | null} shown place of the step that is shown
 * @property {{at: number, text: string}[]} [levels] horizontal lines, such as thresholds
 * @property {number[]} [holds] values that the axis always holds
 * @property {boolean} [zero] whether the axis holds 0
 * @property {boolean} even whether steps stand at even distances, else to scale
 * @property {string} label of the horizontal axis
 * @property {boolean} dark
 * @property {boolean} [points]
 * @property {[number, number]} [limits] what the quantity cannot leave; a band beyond is cut
 * @property {boolean} [bars]
 */

import UPlot from "./uplot.js";
import { el } from "./dom.js";
import { number, ticks } from "./format.js";
import { drawLevels, drawMarks, drawShown } from "./chart_marks.js";

/** The library comes without types. */
const Plot = /** @type {any} */ (UPlot);
/** More points than these run together. */
const CROWDED = 60;
/** Distances between the numbers along an axis of steps. */
const WHOLE = Array.from({ length: 15 }, (_, power) => [1, 2, 5].map((one) => one * 10 ** power)).flat();

const FONT = '11px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';

/** Holds one uPlot, made anew for every drawing: it has no way to change the number of its curves. */
export class Chart {
  /**
   * @param {{height: number, label: string, choose?: (step: number) => void,
   *   point?: (place: number | null) => void}} options `label` is for screen readers
   */
  constructor({ height, label, choose, point }) {
    this.height = height;
    this.choose = choose;
    this.point = point;
    this.element = el("div", { class: "chart", role: "img", "aria-label": label });
    /** @type {any} */
    this.plot = null;
    /** @type {Drawing | null} */
    this.drawing = null;
    new ResizeObserver(() => this.#fit()).observe(this.element);
  }

  /** @param {Drawing} drawing */
  show(drawing) {
    this.drawing = drawing;
    this.plot?.destroy();
    this.plot = null;
    this.#fit();
  }

  /**
   * @param {string} title
   * @returns {import("./picture.js").Tile[]} none where nothing is drawn
   */
  tiles(title) {
    const { drawing, plot } = this;
    if (!drawing || !plot) return [];
    const keys = drawing.curves.length > 1 ? drawing.curves : [];
    return [
      {
        title: `${title}, by ${drawing.label}`,
        canvas: plot.ctx.canvas,
        keys: keys.map(({ name, colour }) => ({ colour, text: name })),
      },
    ];
  }

  #fit() {
    const width = this.element.clientWidth;
    if (!width || !this.drawing) return;
    if (this.plot) this.plot.setSize({ width, height: this.height });
    else this.plot = new Plot(this.#options(this.drawing, width), dataOf(this.drawing), this.element);
  }

  /**
   * @param {Drawing} drawing
   * @param {number} width
   */
  #options(drawing, width) {
    const [ink, grid] = drawing.dark ? ["#a5a5ad", "#34343a"] : ["#6b6b72", "#ececef"];
    const axis = { stroke: ink, font: FONT, grid: { stroke: grid, width: 1 }, ticks: { show: false } };
    return {
      width,
      height: this.height,
      padding: [10, 14, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 7 } },
      scales: {
        x: {
          time: false,
          range: (/** @type {any} */ _, /** @type {number} */ a, /** @type {number} */ b) => padded(a, b),
        },
        y: { range: rangeOf(drawing) },
      },
      axes: [
        { ...axis, ...stepAxis(drawing), size: 30 },
        {
          ...axis,
          size: 62,
          values: (/** @type {any} */ _, /** @type {number[]} */ all) => ticks(all),
        },
      ],
      series: [{}, ...drawing.curves.flatMap((curve) => seriesOf(curve, drawing))],
      bands: drawing.curves.flatMap((curve, place) =>
        curve.low ? [{ series: [3 * place + 2, 3 * place + 1], fill: `${curve.colour}2b` }] : [],
      ),
      hooks: {
        drawAxes: [(/** @type {any} */ plot) => drawLevels(plot, drawing)],
        draw: [
          (/** @type {any} */ plot) => {
            drawShown(plot, drawing);
            drawMarks(plot, drawing);
          },
        ],
        setCursor: [(/** @type {any} */ plot) => this.point?.(plot.cursor.idx ?? null)],
        ready: [(/** @type {any} */ plot) => this.#listen(plot, drawing)],
      },
    };
  }

  /**
   * @param {any} plot
   * @param {Drawing} drawing
   */
  #listen(plot, drawing) {
    const { choose } = this;
    if (!choose) return;
    plot.over.classList.add("clickable");
    plot.over.addEventListener("click", () => {
      const place = plot.cursor.idx;
      if (place !== null && place !== undefined) choose(drawing.steps[place]);
    });
  }
}

/**
 * @param {Drawing} drawing
 * @returns {(number | null)[][]} for uPlot: x, then low, high and value of each curve
 */
function dataOf({ steps, curves, even }) {
  const x = even ? steps.map((_, place) => place) : steps;
  const none = steps.map(() => null);
  return [x, ...curves.flatMap(({ low, high, value }) => [low ?? none, high ?? none, value])];
}

/**
 * @param {Curve} curve
 * @param {Drawing} drawing
 */
function seriesOf(curve, drawing) {
  const edge = { stroke: "transparent", width: 0, points: { show: false } };
  const size = curve.thin ? 0 : 5;
  const points = {
    show: drawing.points !== false && !curve.thin && drawing.steps.length <= CROWDED,
    size,
    fill: curve.colour,
    stroke: curve.colour,
  };
  if (drawing.bars)
    return [
      edge,
      edge,
      { fill: `${curve.colour}aa`, width: 0, paths: Plot.paths.bars({ size: [0.86] }), points: { show: false } },
    ];
  return [edge, edge, { stroke: curve.colour, width: curve.thin ? 1 : 1.75, points, spanGaps: false }];
}

/**
 * @param {number} low
 * @param {number} high
 * @returns {[number, number]}
 */
function padded(low, high) {
  const room = (high - low) * 0.03 || 0.5;
  return [low - room, high + room];
}

/**
 * @param {Drawing} drawing
 * @returns {number[]} values that the axis holds, whatever the curves are
 */
function heldBy({ zero, levels, holds }) {
  return [...(zero ? [0] : []), ...(levels ?? []).map((level) => level.at), ...(holds ?? [])];
}

/** @param {Drawing} drawing */
function rangeOf(drawing) {
  const held = heldBy(drawing);
  return (/** @type {any} */ _, /** @type {number | null} */ low, /** @type {number | null} */ high) => {
    const ends = [...held, low ?? 0, high ?? 1];
    const [floor, ceiling] = drawing.limits ?? [-Infinity, Infinity];
    const least = Math.max(Math.min(...ends), floor);
    const most = Math.min(Math.max(...ends), ceiling);
    // Counts that are all zero stand on the axis, not in the middle.
    if (least === 0 && most === 0) return [0, 1];
    const room = (most - least) * 0.08 || Math.abs(most) * 0.1 || 1;
    return [least - room, most + room];
  };
}

/** @param {Drawing} drawing */
function stepAxis({ steps, even, bars }) {
  if (!even) {
    return {
      space: 60,
      // There is no step between two steps.
      ...(bars ? {} : { incrs: WHOLE }),
      values: (/** @type {any} */ _, /** @type {number[]} */ all) => ticks(all),
    };
  }
  const room = 46;
  return {
    splits: (/** @type {any} */ plot) => {
      const most = Math.max(Math.floor(plot.bbox.width / devicePixelRatio / room), 1);
      const every = Math.ceil(steps.length / most);
      return steps.map((_, place) => place).filter((place) => (steps.length - 1 - place) % every === 0);
    },
    values: (/** @type {any} */ _, /** @type {number[]} */ all) => all.map((place) => number(steps[place], 6)),
  };
}

/**
 * Whether steps are better shown at even distances: where most lie close together, as of a log-spaced list.
 * @param {number[]} steps
 * @param {string} asked "even", "scale" or ""
 */
export function isEven(steps, asked) {
  if (asked || steps.length < 2) return asked !== "scale";
  const gaps = steps.slice(1).map((step, place) => step - steps[place]);
  gaps.sort((a, b) => a - b);
  return gaps.length > 1 && gaps[gaps.length - 1] > 3 * gaps[Math.floor(gaps.length / 2)];
}
