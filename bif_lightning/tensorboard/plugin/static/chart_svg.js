/** Charts as SVG, from the same drawings that uPlot paints. */

import { heldBy } from "./chart.js";
import { svg } from "./dom.js";
import { isKnown, number, roundUp } from "./format.js";
import { sheet, words } from "./heatmap_svg.js";

/** @typedef {import("./chart.js").Drawing} Drawing */
/** @typedef {import("./chart.js").Curve} Curve */

const SIZE = { width: 620, height: 300 };
const AREA = { x: 70, y: 52, width: 530, height: 190 };
const SYMBOLS = /** @type {Record<string, string>} */ ({ flip: "○", peak: "▲", trough: "▼" });

/**
 * @param {Drawing} drawing
 * @param {{title: string, unit: string, more?: {title: string, unit: string, drawing: Drawing}[]}} words `more`: a
 *   sheet of several charts, each under its own title
 * @returns {SVGSVGElement}
 */
export function chartSvg(drawing, { title, unit, more }) {
  const all = more ?? [{ title, unit, drawing }];
  const across = Math.min(all.length, 3);
  const down = Math.ceil(all.length / across);
  const charts = all.map((one, place) => {
    const [x, y] = [(place % across) * SIZE.width, Math.floor(place / across) * heightOf(one.drawing)];
    return svg("g", { transform: `translate(${x} ${y})` }, chart(one.drawing, one.title, one.unit));
  });
  return sheet(across * SIZE.width, down * Math.max(...all.map((one) => heightOf(one.drawing))), drawing.dark, charts);
}

/** @param {Drawing} drawing */
function heightOf(drawing) {
  return SIZE.height + 18 * Math.max(drawing.curves.length - 1, 0);
}

/**
 * @param {Drawing} drawing
 * @param {string} title
 * @param {string} unit
 */
function chart(drawing, title, unit) {
  const { dark } = drawing;
  const place = placing(drawing);
  const name = title.length > 92 ? `${title.slice(0, 91)}…` : title;
  return [
    words(14, 24, name, dark, { "font-size": 13, "font-weight": 600 }),
    unit ? words(14, 42, unit, dark, { opacity: 0.7 }) : null,
    ...grid(drawing, place),
    ...drawing.curves.flatMap((curve) => curveParts(curve, drawing, place)),
    words(AREA.x + AREA.width / 2, AREA.y + AREA.height + 34, drawing.label, dark, {
      "text-anchor": "middle",
      opacity: 0.7,
    }),
    ...(drawing.curves.length > 1 ? drawing.curves.map((curve, at) => key(curve, at, dark)) : []),
  ];
}

/**
 * @param {Curve} curve
 * @param {number} at
 * @param {boolean} dark
 */
function key(curve, at, dark) {
  const y = AREA.y + AREA.height + 44 + 18 * at;
  return svg(
    "g",
    {},
    svg("rect", { x: AREA.x, y: y - 3, width: 16, height: 3, fill: curve.colour }),
    words(AREA.x + 22, y + 2, curve.name, dark),
  );
}

/** @param {Drawing} drawing */
function placing(drawing) {
  const ends = drawing.curves
    .flatMap(({ value, low, high }) => [...value, ...(low ?? []), ...(high ?? [])])
    .filter(isKnown);
  const held = heldBy(drawing);
  let [least, most] = [Math.min(...ends, ...held), Math.max(...ends, ...held)];
  const [floor, ceiling] = drawing.limits ?? [-Infinity, Infinity];
  [least, most] = [Math.max(least, floor), Math.min(most, ceiling)];
  const room = (most - least) * 0.06 || 1;
  [least, most] = [least - room, most + room];
  const xs = drawing.even ? drawing.steps.map((_, at) => at) : drawing.steps;
  const [first, last] = [xs[0], xs[xs.length - 1]];
  const x = (/** @type {number} */ at) => AREA.x + 8 + ((xs[at] - first) / (last - first || 1)) * (AREA.width - 16);
  const y = (/** @type {number} */ given) => {
    const value = Math.min(Math.max(given, least), most);
    return AREA.y + AREA.height * (1 - (value - least) / (most - least));
  };
  return { x, y, least, most };
}

/**
 * @param {Drawing} drawing
 * @param {ReturnType<typeof placing>} place
 */
function grid(drawing, { x, y, least, most }) {
  const line = drawing.dark ? "#3a3a40" : "#e6e6ea";
  const step = roundUp((most - least) / 6);
  /** @type {Node[]} */
  const parts = [];
  for (let value = Math.ceil(least / step) * step; value <= most; value += step) {
    parts.push(
      svg("line", {
        x1: AREA.x,
        x2: AREA.x + AREA.width,
        y1: y(value),
        y2: y(value),
        stroke: Math.abs(value) < step / 2 ? "#9a9aa2" : line,
      }),
    );
    parts.push(
      words(AREA.x - 8, y(value) + 4, number(Number(value.toPrecision(6))), drawing.dark, {
        "text-anchor": "end",
        opacity: 0.8,
      }),
    );
  }
  const every = Math.ceil(drawing.steps.length / 9);
  drawing.steps.forEach((at, position) => {
    if ((drawing.steps.length - 1 - position) % every === 0) {
      parts.push(
        words(x(position), AREA.y + AREA.height + 16, number(at, 6), drawing.dark, {
          "text-anchor": "middle",
          opacity: 0.8,
        }),
      );
    }
  });
  for (const level of drawing.levels ?? []) {
    parts.push(
      svg("line", {
        x1: AREA.x,
        x2: AREA.x + AREA.width,
        y1: y(level.at),
        y2: y(level.at),
        stroke: "#c8500a",
        "stroke-dasharray": "4 4",
      }),
    );
  }
  return parts;
}

/**
 * @param {Curve} curve
 * @param {Drawing} drawing
 * @param {ReturnType<typeof placing>} place
 */
function curveParts(curve, drawing, { x, y }) {
  const points = curve.value.map((value, at) => (isKnown(value) ? `${x(at).toFixed(1)} ${y(value).toFixed(1)}` : null));
  const banded = curve.value.map((_, at) => at).filter((at) => isKnown(curve.low?.[at]) && isKnown(curve.high?.[at]));
  const top = banded.map((at) => `${x(at).toFixed(1)} ${y(/** @type {any} */ (curve.high)[at]).toFixed(1)}`);
  const bottom = banded
    .map((at) => `${x(at).toFixed(1)} ${y(/** @type {any} */ (curve.low)[at]).toFixed(1)}`)
    .reverse();
  const dots =
    curve.thin || drawing.points === false
      ? []
      : curve.value.map((value, at) =>
          isKnown(value) ? svg("circle", { cx: x(at), cy: y(value), r: 2.2, fill: curve.colour }) : null,
        );
  const marks = (curve.marks ?? []).map(({ place, kind }) => {
    const value = curve.value[place];
    return isKnown(value)
      ? svg(
          "text",
          {
            x: x(place),
            y: y(value) + (kind === "trough" ? 20 : -9),
            "text-anchor": "middle",
            fill: curve.colour,
            "font-size": 12,
          },
          SYMBOLS[kind] ?? "",
        )
      : null;
  });
  return [
    top.length
      ? svg("path", { d: `M${[...top, ...bottom].join("L")}Z`, fill: curve.colour, "fill-opacity": 0.16 })
      : null,
    svg("path", { d: pathOf(points), fill: "none", stroke: curve.colour, "stroke-width": 1.75 }),
    ...dots,
    ...marks,
  ];
}

/** @param {(string | null)[]} points null: a gap */
function pathOf(points) {
  return points
    .map((point, at) => (point === null ? "" : `${at && points[at - 1] !== null ? "L" : "M"}${point}`))
    .join("");
}
