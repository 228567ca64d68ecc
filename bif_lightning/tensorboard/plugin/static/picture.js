/** A picture of a view to save: its canvases as they are shown, below a title and above a key to their colours. */

/**
 * @typedef {object} Tile one canvas of a view
 * @property {string} title
 * @property {HTMLCanvasElement} canvas
 * @property {{colour: string, text: string}[]} keys
 *
 * @typedef {object} Sheet
 * @property {string} title
 * @property {string} note
 * @property {Tile[]} tiles
 * @property {boolean} dark
 */

const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif";
const [MARGIN, LINE, GAP, ACROSS] = [12, 18, 16, 3];

/**
 * @param {Sheet} sheet
 * @returns {HTMLCanvasElement}
 */
export function pictureOf({ title, note, tiles, dark }) {
  const dots = window.devicePixelRatio || 1;
  const across = Math.min(tiles.length, ACROSS);
  const wide = Math.max(...tiles.map(({ canvas }) => canvas.width / dots)) + GAP;
  const high = Math.max(...tiles.map(({ canvas, keys }) => canvas.height / dots + (1 + keys.length) * LINE)) + GAP;
  const width = 2 * MARGIN + across * wide - GAP;
  const height = 2 * MARGIN + 2 * LINE + Math.ceil(tiles.length / across) * high;
  const picture = document.createElement("canvas");
  Object.assign(picture, { width: Math.round(width * dots), height: Math.round(height * dots) });
  const context = /** @type {CanvasRenderingContext2D} */ (picture.getContext("2d"));
  context.scale(dots, dots);
  context.fillStyle = dark ? "#1c1c20" : "#fff";
  context.fillRect(0, 0, width, height);
  const ink = dark ? "#ececf0" : "#1a1a1a";
  const write = (/** @type {string} */ text, /** @type {number} */ x, /** @type {number} */ y, font = "11px") => {
    context.font = `${font} ${FONT}`;
    context.fillStyle = ink;
    context.fillText(text, x, y);
  };
  write(title, MARGIN, MARGIN + 10, "600 14px");
  write(note, MARGIN, MARGIN + 10 + LINE);
  tiles.forEach((tile, place) => {
    const x = MARGIN + (place % across) * wide;
    const y = MARGIN + 2 * LINE + Math.floor(place / across) * high;
    const [tileWidth, tileHeight] = [tile.canvas.width / dots, tile.canvas.height / dots];
    write(tile.title, x, y + 12, "600 12px");
    context.drawImage(tile.canvas, x, y + LINE, tileWidth, tileHeight);
    tile.keys.forEach(({ colour, text }, at) => {
      const base = y + LINE + tileHeight + at * LINE;
      context.fillStyle = colour;
      context.fillRect(x, base + 5, 16, 9);
      write(text, x + 22, base + 13);
    });
  });
  return picture;
}
