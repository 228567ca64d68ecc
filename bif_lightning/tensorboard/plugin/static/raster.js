/** From numbers to pixels: one for each cell of a picture. */

import { table, undefinedColour } from "./colours.js";
import { CLEAR } from "./format.js";

/** Place of the colour of what is undefined, after those of values. */
const GREY = 511;

/**
 * @param {HTMLCanvasElement} canvas gets the picture's size
 * @param {{values: Float32Array, errors: Float32Array | null, height: number, width: number}} picture
 * @param {{palette: import("./colours.js").Palette, scale: number, dark: boolean, clear: boolean}} look
 */
export function rasterOf(canvas, picture, look) {
  const { values, errors, height, width } = picture;
  if (!height || !width) return;
  Object.assign(canvas, { width, height });
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const image = context.createImageData(width, height);
  // Whole pixels at a time: this runs for every step that the slider comes to.
  const pixels = new Uint32Array(image.data.buffer);
  const colours = pixelsOf(look.dark, look.palette);
  const grey = colours[GREY];
  const factor = 255 / (look.scale || 1);
  const greyed = look.clear ? errors : null;
  for (let at = 0; at < values.length; at += 1) {
    const value = values[at];
    const unknown = value !== value || (greyed && !(Math.abs(value) > CLEAR * greyed[at]));
    pixels[at] = unknown ? grey : colours[Math.round(Math.min(Math.max(value * factor, -255), 255)) + 255];
  }
  context.putImageData(image, 0, 0);
}

/**
 * @param {boolean} dark
 * @param {import("./colours.js").Palette} palette
 * @returns {Uint32Array} the pixels of -255 to 255, and of what is undefined
 */
function pixelsOf(dark, palette) {
  const colours = table(dark, palette);

  const bytes = new Uint8Array(4 * (GREY + 1)).fill(255);
  for (let entry = 0; entry < GREY; entry += 1) bytes.set(colours.subarray(3 * entry, 3 * entry + 3), 4 * entry);
  bytes.set(undefinedColour(dark), 4 * GREY);
  return new Uint32Array(bytes.buffer);
}
