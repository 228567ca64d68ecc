/** Values and errors written into the cells of a heatmap, where there is room: all with one exponent and as many decimals. */

import { colour, inkOn } from "./colours.js";
import { gridOf, isClear } from "./format.js";

const ROOM = { width: 46, height: 18, error: 32 };

/**
 * @param {CanvasRenderingContext2D} context
 * @param {import("./heatmap.js").Heatmap} heatmap
 * @param {import("./heatmap.js").Frame} frame
 * @returns {string} the power of ten that the numbers are multiples of; "" for 1, or where there are none
 */
export function drawNumbers(context, heatmap, frame) {
  const { area, picture } = heatmap;
  if (!picture?.errors || frame.own) return "";

  const [r0, r1, c0, c1] = frame.window;
  const [width, height] = [area.width / (c1 - c0), area.height / (r1 - r0)];
  if (width < ROOM.width || height < ROOM.height) return "";
  const grid = gridOf(picture.values, picture.errors);
  context.textAlign = "center";
  context.textBaseline = "middle";
  for (let train = r0; train < r1; train += 1) {
    for (let query = c0; query < c1; query += 1) {
      const known = heatmap.valueAt({ train, query });
      if (known && Number.isFinite(known.value)) {
        const [x, y] = [area.x + (query - c0 + 0.5) * width, area.y + (train - r0 + 0.5) * height];
        drawOne(context, frame, grid, known.value, known.error, x, y, height);
      }
    }
  }
  return grid.power;
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {import("./heatmap.js").Frame} frame
 * @param {import("./format.js").Grid} grid
 * @param {number} value
 * @param {number | null} error
 * @param {number} x
 * @param {number} y
 * @param {number} height
 */
function drawOne(context, frame, grid, value, error, x, y, height) {
  const greyed = frame.clear && !isClear(value, error);
  context.fillStyle = greyed
    ? frame.dark
      ? "#eee"
      : "#222"
    : inkOn(colour(value / frame.scale, frame.dark, frame.palette));
  const both = height >= ROOM.error && error !== null && Number.isFinite(error);
  context.font = "11px system-ui, sans-serif";
  context.fillText(grid.value(value), x, both ? y - 6 : y);
  if (!both) return;
  context.font = "10px system-ui, sans-serif";
  context.globalAlpha = 0.8;
  context.fillText(`± ${grid.error(error)}`, x, y + 7);
  context.globalAlpha = 1;
}
