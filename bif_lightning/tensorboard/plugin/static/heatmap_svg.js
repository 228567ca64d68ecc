/** Heatmaps as SVG: cells as one embedded picture, words and lines as vectors. */

import { svg } from "./dom.js";
import { number } from "./format.js";
import { inks, TURN } from "./heatmap_axes.js";
import { colour, css } from "./colours.js";
import { meaning, quantityOf } from "./signs.js";

/** @typedef {import("./heatmap.js").Heatmap} Heatmap */
/** @typedef {import("./state.js").State} State */

const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
const HEAD = 46;
const FOOT = 44;

/**
 * @param {Heatmap} heatmap
 * @param {State} state
 * @param {string} title
 * @returns {SVGSVGElement}
 */
export function heatmapSvg(heatmap, state, title) {
  const { clientWidth: width, clientHeight: height } = heatmap.canvas;
  const dark = heatmap.frame?.dark ?? false;
  const quantity = quantityOf(state.matrix);
  return sheet(width, height + HEAD + FOOT, dark, [
    words(12, 20, `${state.run}: ${title}`, dark, { "font-size": 14, "font-weight": 600 }),
    words(12, 37, `${meaning(quantity).sign} Rows: train examples; columns: queries.`, dark, {
      "font-size": 10.5,
      opacity: 0.75,
    }),
    svg("g", { transform: `translate(0 ${HEAD})` }, ...cells(heatmap)),
    bar(12, height + HEAD + 14, heatmap, quantity, dark),
  ]);
}

/**
 * @param {{title: string, heatmap: Heatmap}[]} maps side by side
 * @param {State} state
 * @returns {SVGSVGElement}
 */
export function picturesSvg(maps, state) {
  const gap = 16;
  const width = Math.max(...maps.map(({ heatmap }) => heatmap.canvas.clientWidth));
  const height = maps[0].heatmap.canvas.clientHeight;
  const dark = maps[0].heatmap.frame?.dark ?? false;
  const quantity = quantityOf(state.matrix);
  const parts = maps.map(({ title, heatmap }, place) =>
    svg(
      "g",
      { transform: `translate(${place * (width + gap)} 0)` },
      words(8, 38, title, dark, { "font-size": 12, "font-weight": 600 }),
      svg("g", { transform: `translate(0 ${HEAD})` }, ...cells(heatmap)),
      bar(8, height + HEAD + 14, heatmap, quantity, dark),
    ),
  );
  const sign = words(8, 18, meaning(quantity).sign, dark, { "font-size": 10.5, opacity: 0.75 });
  return sheet(maps.length * (width + gap), height + HEAD + FOOT, dark, [sign, ...parts]);
}

/**
 * @param {number} width
 * @param {number} height
 * @param {boolean} dark
 * @param {(Node | null)[]} children
 * @returns {SVGSVGElement}
 */
export function sheet(width, height, dark, children) {
  return svg(
    "svg",
    { xmlns: "http://www.w3.org/2000/svg", width, height, viewBox: `0 0 ${width} ${height}`, "font-family": FONT },
    svg("rect", { width, height, fill: dark ? "#1c1c20" : "#fff" }),
    children,
  );
}

/**
 * @param {number} x
 * @param {number} y
 * @param {string} text
 * @param {boolean} dark
 * @param {Record<string, any>} [more]
 */
export function words(x, y, text, dark, more = {}) {
  return svg("text", { x, y, fill: dark ? "#ececf0" : "#1a1a1a", "font-size": 11, ...more }, text);
}

/** @param {Heatmap} heatmap */
function cells(heatmap) {
  const { area, frame, layout: made, small } = heatmap;
  if (!frame) return [];
  const ink = inks(frame.dark);
  const [r0, r1, c0, c1] = frame.window;
  const layers = heatmap.layers.slice(-1).map(({ picture, raster }) => {
    const [a0, a1, b0, b1] = picture.window;
    const [sx, sy] = [area.width / (c1 - c0), area.height / (r1 - r0)];
    return svg("image", {
      x: area.x + (b0 - c0) * sx,
      y: area.y + (a0 - r0) * sy,
      width: (b1 - b0) * sx,
      height: (a1 - a0) * sy,
      preserveAspectRatio: "none",
      href: raster.toDataURL("image/png"),
      style: { "image-rendering": "pixelated" },
    });
  });
  const lines = (/** @type {[number, number, number, number][]} */ all, /** @type {string} */ stroke) =>
    all.map(([x1, y1, x2, y2]) => svg("line", { x1, y1, x2, y2, stroke }));
  const name = { fill: ink.text, "font-size": 11 };
  const texts = [
    ...made.rows.map(({ x, y, text }) => svg("text", { x, y: y + 3.5, "text-anchor": "end", ...name }, text)),
    ...made.columns.map(({ x, y, text }) =>
      svg(
        "text",
        {
          x,
          y,
          "text-anchor": made.turned ? "start" : "middle",
          transform: made.turned ? `rotate(-${TURN} ${x} ${y})` : null,
          ...name,
        },
        text,
      ),
    ),
  ];
  const frameLine = svg("rect", {
    x: area.x,
    y: area.y,
    width: area.width,
    height: area.height,
    fill: "none",
    stroke: ink.tick,
  });
  return [
    ...layers,
    ...lines(made.lines, ink.line),
    frameLine,
    ...(small ? [] : [...lines(made.ticks, ink.tick), ...texts]),
  ];
}

/**
 * @param {number} x
 * @param {number} y
 * @param {Heatmap} heatmap
 * @param {import("./signs.js").Quantity} quantity
 * @param {boolean} dark
 */
function bar(x, y, heatmap, quantity, dark) {
  const { scale } = heatmap.frame ?? { scale: 1 };
  const steps = 60;
  const parts = Array.from({ length: steps }, (_, at) => {
    const value = ((2 * at) / (steps - 1) - 1) * quantity.helps;
    return svg("rect", { x: x + 62 + at * 2.5, y, width: 2.6, height: 9, fill: css(colour(value, dark)) });
  });
  return svg(
    "g",
    {},
    parts,
    words(x, y + 9, `−${number(scale)}`, dark),
    words(x + 70 + steps * 2.5, y + 9, `+${number(scale)} ${quantity.unit}   (blue: ${quantity.good})`, dark),
  );
}
