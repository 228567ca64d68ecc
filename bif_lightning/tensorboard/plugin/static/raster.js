/** From numbers to pixels: one for each cell of a picture. */

import { table, undefinedColour } from "./colours.js";

/** Standard errors from zero within which a value is greyed. */
const CLEAR = 1.96;

/**
 * @param {HTMLCanvasElement} canvas gets the picture's size
 * @param {{values: Float32Array, errors: Float32Array | null, height: number, width: number}} picture
 * @param {{helps: 1 | -1, scale: number, dark: boolean, clear: boolean}} look
 */
export function rasterOf(canvas, picture, look) {
  const { values, errors, height, width } = picture;
  if (!height || !width) return;
  Object.assign(canvas, { width, height });
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = context.createImageData(width, height);
  const colours = table(look.dark);
  const grey = undefinedColour(look.dark);
  const factor = (255 * look.helps) / (look.scale || 1);
  const greyed = look.clear ? errors : null;
  for (let at = 0, out = 0; at < values.length; at += 1, out += 4) {
    const value = values[at];
    if (value !== value || (greyed && !(Math.abs(value) > CLEAR * greyed[at]))) {
      image.data.set(grey, out);
    } else {
      const entry = 3 * (Math.round(Math.min(Math.max(value * factor, -255), 255)) + 255);
      image.data[out] = colours[entry];
      image.data[out + 1] = colours[entry + 1];
      image.data[out + 2] = colours[entry + 2];
    }
    image.data[out + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}
