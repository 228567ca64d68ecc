/** Pointer, wheel and arrow keys on a heatmap: to zoom, to choose a cell or a block, to move the cursor. */

/** @typedef {import("./heatmap.js").Heatmap} Heatmap */
/** @typedef {import("./state.js").Window} Window */

const DRAG = 5;
const WHEEL = 1.0015;
const REST = 130;
let resting = 0;
const ARROWS = /** @type {Record<string, [number, number]>} */ ({
  ArrowUp: [-1, 0],
  ArrowDown: [1, 0],
  ArrowLeft: [0, -1],
  ArrowRight: [0, 1],
});

/** @param {Heatmap} heatmap */
export function listenPointer(heatmap) {
  const { canvas } = heatmap;
  /** @type {{x: number, y: number, block: boolean} | null} */
  let start = null;
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !heatmap.cellAt(event.offsetX, event.offsetY)) return;
    start = { x: event.offsetX, y: event.offsetY, block: event.shiftKey };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (start && heatmap.events.zoom) heatmap.box = boxBetween(heatmap, start, event);
    point(heatmap, heatmap.cellAt(event.offsetX, event.offsetY), event);
  });
  canvas.addEventListener("pointerup", (event) => {
    const [from, box] = [start, heatmap.box];
    start = heatmap.box = null;
    if (from) finish(heatmap, from, box, event);
    heatmap.paint();
  });
  canvas.addEventListener("pointercancel", () => {
    start = heatmap.box = null;
    heatmap.paint();
  });
  canvas.addEventListener("pointerleave", () => point(heatmap, null, null));
  canvas.addEventListener("blur", () => point(heatmap, null, null));
  canvas.addEventListener("wheel", (event) => wheel(heatmap, event), { passive: false });
  canvas.addEventListener("keydown", (event) => key(heatmap, event));
}

/**
 * @param {Heatmap} heatmap
 * @param {import("./heatmap.js").Cell | null} cell
 * @param {PointerEvent | null} event
 */
function point(heatmap, cell, event) {
  heatmap.cursor = cell;
  heatmap.paint();
  heatmap.events.point?.(cell, event);
}

/**
 * @param {Heatmap} heatmap
 * @param {{x: number, y: number}} from
 * @param {PointerEvent} to
 * @returns {Window | null} whole cells between the two; null for less than a drag
 */
function boxBetween(heatmap, from, to) {
  if (Math.hypot(to.offsetX - from.x, to.offsetY - from.y) < DRAG) return null;
  const [a, b] = [heatmap.placeAt(from.x, from.y), heatmap.placeAt(to.offsetX, to.offsetY)];
  const [r0, r1, c0, c1] = [
    Math.floor(Math.min(a.train, b.train)),
    Math.ceil(Math.max(a.train, b.train)),
    Math.floor(Math.min(a.query, b.query)),
    Math.ceil(Math.max(a.query, b.query)),
  ];
  return r1 > r0 && c1 > c0 ? [r0, r1, c0, c1] : null;
}

/**
 * @param {Heatmap} heatmap
 * @param {{x: number, y: number, block: boolean}} from
 * @param {Window | null} box
 * @param {PointerEvent} event
 */
function finish(heatmap, from, box, event) {
  if (box && from.block) heatmap.events.block?.(box);
  else if (box) heatmap.events.zoom?.(box);
  else {
    const cell = heatmap.cellAt(event.offsetX, event.offsetY);
    if (cell) heatmap.events.choose?.(cell);
  }
}

/**
 * @param {Heatmap} heatmap
 * @param {WheelEvent} event
 */
function wheel(heatmap, event) {
  const { zoom } = heatmap.events;
  if (!zoom || !heatmap.frame || !heatmap.cellAt(event.offsetX, event.offsetY)) return;
  event.preventDefault();
  const { frame } = heatmap;
  const turned = event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 30 * event.deltaY : event.deltaY;
  const place = heatmap.placeAt(event.offsetX, event.offsetY);
  const window = zoomed(heatmap, WHEEL ** Math.min(Math.max(turned, -400), 400), place);
  // What is there is stretched at once; the sharper picture is asked for when the wheel rests.
  heatmap.show({ ...frame, window });
  clearTimeout(resting);
  resting = self.setTimeout(() => zoom(window), REST);
}

/**
 * @param {Heatmap} heatmap
 * @param {number} factor below 1 to see less, larger
 * @param {{train: number, query: number}} [about] place that stays where it is; else the middle
 * @returns {Window}
 */
export function zoomed(heatmap, factor, about) {
  const frame = /** @type {import("./heatmap.js").Frame} */ (heatmap.frame);
  const [r0, r1, c0, c1] = frame.window;
  const middle = about ?? { train: (r0 + r1) / 2, query: (c0 + c1) / 2 };
  const [top, bottom] = stretched(r0, r1, middle.train, factor, frame.train.order.length);
  const [left, right] = stretched(c0, c1, middle.query, factor, frame.query.order.length);
  return [top, bottom, left, right];
}

/**
 * @param {number} from
 * @param {number} to
 * @param {number} about
 * @param {number} factor
 * @param {number} most
 * @returns {[number, number]}
 */
function stretched(from, to, about, factor, most) {
  let size = Math.round((to - from) * factor);
  if (size === to - from) size += factor > 1 ? 1 : -1;
  size = Math.min(Math.max(size, Math.min(4, to - from)), most);
  const share = (about - from) / (to - from);
  const start = Math.min(Math.max(Math.round(about - share * size), 0), most - size);
  return [start, start + size];
}

/**
 * Shift and an arrow move the cursor by a cell, Enter chooses it. Arrows alone move through the steps.
 * @param {Heatmap} heatmap
 * @param {KeyboardEvent} event
 */
function key(heatmap, event) {
  const { frame, events } = heatmap;
  if (!frame || !events.choose) return;
  const move = event.shiftKey ? ARROWS[event.key] : undefined;
  const [r0, r1, c0, c1] = frame.window;
  if (move) {
    const at = heatmap.cursor ?? frame.chosen ?? { train: r0, query: c0 };
    const train = Math.min(Math.max(at.train + move[0], r0), r1 - 1);
    const query = Math.min(Math.max(at.query + move[1], c0), c1 - 1);
    point(heatmap, { train, query }, null);
  } else if (event.key === "Enter" && heatmap.cursor) {
    events.choose(heatmap.cursor);
  } else return;
  event.preventDefault();
  event.stopPropagation();
}
