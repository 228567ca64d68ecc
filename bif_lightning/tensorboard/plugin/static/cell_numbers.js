/** Values and errors written into the cells of a heatmap, where there is room. */

import { colour, inkOn } from "./colours.js";
import { isClear, measure, number } from "./format.js";

const ROOM = { width: 46, height: 18, error: 32 };

/**
 * @param {CanvasRenderingContext2D} context
 * @param {import("./heatmap.js").Heatmap} heatmap
 * @param {import("./heatmap.js").Frame} frame
 */
export function drawNumbers(context, heatmap, frame) {
  const { area, picture } = heatmap;
  if (!picture?.errors) return;
  const [r0, r1, c0, c1] = frame.window;
  const [width, height] = [area.width / (c1 - c0), area.height / (r1 - r0)];
  if (width < ROOM.width || height < ROOM.height) return;
  context.textAlign = "center";
  context.textBaseline = "middle";
  for (let train = r0; train < r1; train += 1) {
    for (let query = c0; query < c1; query += 1) {
      const known = heatmap.valueAt({ train, query });
      if (known && Number.isFinite(known.value)) {
        const [x, y] = [area.x + (query - c0 + 0.5) * width, area.y + (train - r0 + 0.5) * height];
        drawOne(context, frame, known.value, known.error, x, y, height);
      }
    }
  }
}

/**
 * @param {CanvasRenderingContext2D} context
 * @param {import("./heatmap.js").Frame} frame
 * @param {number} value
 * @param {number | null} error
 * @param {number} x
 * @param {number} y
 * @param {number} height
 */
function drawOne(context, frame, value, error, x, y, height) {
  const greyed = frame.clear && !isClear(value, error);
  context.fillStyle = greyed
    ? frame.dark
      ? "#eee"
      : "#222"
    : inkOn(colour((value * frame.helps) / frame.scale, frame.dark));
  const whole = measure(value, error);
  // Powers of ten take more room than a cell has.
  const [left, right] = whole.includes("(") ? [number(value, 2), `± ${number(error, 1)}`] : whole.split(/ (?=±)/);
  const both = height >= ROOM.error && right !== undefined;
  context.font = "11px system-ui, sans-serif";
  context.fillText(left, x, both ? y - 6 : y);
  if (!both) return;
  context.font = "10px system-ui, sans-serif";
  context.globalAlpha = 0.8;
  context.fillText(right, x, y + 7);
  context.globalAlpha = 1;
}
