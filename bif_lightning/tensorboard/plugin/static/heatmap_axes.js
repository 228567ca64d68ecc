/** What is drawn around the cells of a heatmap: names, lines between groups, boxes. */

import { colouredLabels, fitsNames, isByLabel, labelColour, marks } from "./axes.js";

const FONT = '11px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';
const LETTERS = 12;
/** Pixels beside the cells in which a colour tells the label. */
const STRIP = 5;
/** Degrees that the names of columns are turned by where they have no room. */
const TURN = 56;

/**
 * @typedef {{x: number, y: number, width: number, height: number}} Area of the cells, in pixels
 * @typedef {[number, number, number, number]} Line x1, y1, x2, y2
 * @typedef {object} Layout where everything lies
 * @property {Area} area
 * @property {{x: number, y: number, text: string}[]} rows their right ends
 * @property {{x: number, y: number, text: string}[]} columns their lower ends
 * @property {boolean} turned whether the names of the columns are
 * @property {Line[]} lines over the cells
 * @property {Line[]} ticks beside them
 * @property {{x: number, y: number, width: number, height: number, colour: string}[]} strips the label of each pixel
 */

/**
 * @param {{width: number, height: number}} canvas
 * @param {import("./heatmap.js").Frame} frame
 * @param {boolean} small with short names
 * @returns {Layout}
 */
export function layout(canvas, frame, small) {
  const [r0, r1, c0, c1] = frame.window;
  const [left, right] = small ? [62, 8] : [96, 34];
  const letters = small ? 8 : LETTERS;
  const width = Math.max(canvas.width - left - right, 1);
  // Ids along one axis and labels along the other would read as if they were of one kind.
  const grouped =
    isByLabel(frame.train) &&
    isByLabel(frame.query) &&
    !(fitsNames(r0, r1, canvas.height - 46) && fitsNames(c0, c1, width));
  const across = marks(frame.query, c0, c1, width, Math.max(letters - 3, Math.floor(width / (c1 - c0) / 8)), grouped);
  const room = (/** @type {import("./axes.js").Mark} */ mark) => ((mark.to - mark.from) / (c1 - c0)) * width;
  const turned = across.some(
    (mark) => mark.to - mark.from < c1 - c0 && mark.text.length * 7 > Math.max(room(mark), tickRoom(mark)),
  );
  const top = turned ? (small ? 52 : 92) : small ? 24 : 38;
  const area = { x: left, y: top, width, height: Math.max(canvas.height - top - (small ? 4 : 8), 1) };
  /** @type {Layout} */
  const made = { area, rows: [], columns: [], turned, lines: [], ticks: [], strips: strips(frame, area) };
  const [bottom, end] = [area.y + area.height, area.x + area.width];
  for (const mark of marks(frame.train, r0, r1, area.height, letters, grouped)) {
    const y = (/** @type {number} */ at) => area.y + ((at - r0) / (r1 - r0)) * area.height;
    if (mark.text) made.rows.push({ x: area.x - 8, y: y(middle(mark, r0, r1)), text: mark.text });
    if (mark.edge && mark.to < r1) {
      made.lines.push([area.x, y(mark.to), end, y(mark.to)]);
      made.ticks.push([area.x - 8, y(mark.to), area.x, y(mark.to)]);
    }
  }
  for (const mark of across) {
    const x = (/** @type {number} */ at) => area.x + ((at - c0) / (c1 - c0)) * area.width;
    if (mark.text) made.columns.push({ x: x(middle(mark, c0, c1)), y: area.y - 8, text: mark.text });
    if (mark.edge && mark.to < c1) {
      made.lines.push([x(mark.to), area.y, x(mark.to), bottom]);
      made.ticks.push([x(mark.to), area.y - 8, x(mark.to), area.y]);
    }
  }
  return made;
}

/**
 * A colour for the label of each pixel along an axis that is not ordered by label.
 * @param {import("./heatmap.js").Frame} frame
 * @param {Area} area
 * @returns {Layout["strips"]}
 */
function strips({ train, query, window: [r0, r1, c0, c1], dark }, area) {
  /** @type {Layout["strips"]} */
  const made = [];
  const add = (
    /** @type {import("./axes.js").Axis} */ axis,
    /** @type {number} */ from,
    /** @type {number} */ to,
    /** @type {number} */ length,
    /** @type {(at: number) => {x: number, y: number, width: number, height: number}} */ place,
  ) => {
    const { label } = axis.samples;
    if (!label || !colouredLabels(axis).length) return;
    for (let pixel = 0; pixel < Math.floor(length); pixel += 1) {
      const row = axis.order[Math.min(from + Math.floor((pixel / length) * (to - from)), to - 1)];
      made.push({ ...place(pixel), colour: labelColour(label[row], dark) });
    }
  };
  add(train, r0, r1, area.height, (at) => ({ x: area.x - STRIP - 1, y: area.y + at, width: STRIP, height: 1.5 }));
  add(query, c0, c1, area.width, (at) => ({ x: area.x + at, y: area.y - STRIP - 1, width: 1.5, height: STRIP }));
  return made;
}

/**
 * Positions are written at wide distances, though each marks one cell only.
 * @param {import("./axes.js").Mark} mark
 */
function tickRoom(mark) {
  return mark.position ? Infinity : 0;
}

/**
 * @param {import("./axes.js").Mark} mark
 * @param {number} from
 * @param {number} to
 */
function middle(mark, from, to) {
  return (Math.max(mark.from, from) + Math.min(mark.to, to)) / 2;
}

/** @param {boolean} dark */
export function inks(dark) {
  return dark
    ? { text: "#c9c9ce", faint: "#8b8b92", line: "rgba(255,255,255,.22)", tick: "#5a5a60" }
    : { text: "#3c3c43", faint: "#6b6b72", line: "rgba(0,0,0,.16)", tick: "#b9b9bf" };
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Layout} made
 * @param {import("./heatmap.js").Frame} frame
 * @param {string} power of ten that the numbers in the cells are multiples of
 */
export function drawAxes(context, made, { dark, titles }, power) {
  const { area } = made;
  const ink = inks(dark);
  context.font = FONT;
  context.lineWidth = 1;
  stroke(context, made.lines, ink.line);
  context.strokeStyle = ink.tick;
  context.strokeRect(area.x - 0.5, area.y - 0.5, area.width + 1, area.height + 1);
  for (const { x, y, width, height, colour } of made.strips) {
    context.fillStyle = colour;
    context.fillRect(x, y, width, height);
  }
  stroke(context, made.ticks, ink.tick);
  context.fillStyle = ink.text;
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (const { x, y, text } of made.rows) context.fillText(text, x, y);
  for (const { x, y, text } of made.columns) drawColumn(context, x, y, text, made.turned);
  if (!titles.query) return;
  context.fillStyle = ink.faint;
  context.textAlign = "left";
  context.textBaseline = "alphabetic";
  context.fillText(`${titles.query} →${power ? `   (numbers in multiples of ${power})` : ""}`, area.x, 12);

  context.save();
  context.translate(12, area.y);
  context.rotate(-Math.PI / 2);
  context.textAlign = "right";
  context.fillText(`← ${titles.train}`, 0, 0);
  context.restore();
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {number} x
 * @param {number} y
 * @param {string} text
 * @param {boolean} turned
 */
function drawColumn(context, x, y, text, turned) {
  context.save();
  context.translate(x, y);
  if (turned) context.rotate((-TURN * Math.PI) / 180);
  context.textAlign = turned ? "left" : "center";
  context.fillText(text, 0, turned ? 0 : -4);
  context.restore();
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {Line[]} lines
 * @param {string} colour
 */
function stroke(context, lines, colour) {
  context.strokeStyle = colour;
  context.beginPath();
  for (const [x1, y1, x2, y2] of lines) {
    context.moveTo(Math.round(x1) + 0.5, Math.round(y1) + 0.5);
    context.lineTo(Math.round(x2) + 0.5, Math.round(y2) + 0.5);
  }
  context.stroke();
}

/**
 * A box around cells, seen on every colour: a dark line within a light one, or the other way.
 * @param {CanvasRenderingContext2D} context
 * @param {import("./heatmap.js").Heatmap} heatmap
 * @param {import("./state.js").Window} box
 * @param {string} ink
 * @param {string} paper
 * @param {number} width
 */
export function drawBox(context, heatmap, box, ink, paper, width) {
  const { area, frame } = heatmap;
  const [r0, r1, c0, c1] = /** @type {import("./heatmap.js").Frame} */ (frame).window;
  if (box[1] <= r0 || box[0] >= r1 || box[3] <= c0 || box[2] >= c1) return;
  const clamp = (/** @type {number} */ at, /** @type {number} */ from, /** @type {number} */ to) =>
    (Math.min(Math.max(at, from), to) - from) / (to - from);
  const x = area.x + clamp(box[2], c0, c1) * area.width;
  const y = area.y + clamp(box[0], r0, r1) * area.height;
  const right = Math.max(area.x + clamp(box[3], c0, c1) * area.width, x + 5);
  const bottom = Math.max(area.y + clamp(box[1], r0, r1) * area.height, y + 5);
  context.lineWidth = width + 2;
  context.strokeStyle = paper;
  context.strokeRect(x, y, right - x, bottom - y);
  context.lineWidth = width;
  context.strokeStyle = ink;
  context.strokeRect(x, y, right - x, bottom - y);
}
