/** What is drawn into a chart besides its curves. uPlot's canvas counts in device pixels. */

/** @typedef {import("./chart.js").Drawing} Drawing */

/**
 * @param {any} plot uPlot
 * @param {Drawing} drawing
 */
export function drawLevels(plot, drawing) {
  const { ctx, bbox } = plot;
  const dots = devicePixelRatio || 1;
  ctx.save();
  ctx.font = `${10 * dots}px system-ui, sans-serif`;
  for (const { at, text } of [...(drawing.zero ? [{ at: 0, text: "" }] : []), ...(drawing.levels ?? [])]) {
    const y = Math.round(plot.valToPos(at, "y", true)) + 0.5;
    ctx.strokeStyle = text ? "#c8500a" : drawing.dark ? "#85858d" : "#9a9aa2";
    ctx.setLineDash(text ? [4 * dots, 4 * dots] : []);
    ctx.lineWidth = dots;
    line(ctx, bbox.left, y, bbox.left + bbox.width, y);
    if (text) {
      ctx.fillStyle = drawing.dark ? "#ff9a57" : "#a8430a";
      ctx.textAlign = "right";
      ctx.fillText(text, bbox.left + bbox.width - 12 * dots, y - 3 * dots);
    }
  }
  ctx.restore();
}

/**
 * @param {any} plot
 * @param {Drawing} drawing
 */
export function drawShown(plot, drawing) {
  if (drawing.shown === null) return;
  const { ctx, bbox } = plot;
  const at = drawing.even ? drawing.shown : drawing.steps[drawing.shown];
  const x = Math.round(plot.valToPos(at, "x", true)) + 0.5;
  ctx.save();
  ctx.strokeStyle = drawing.dark ? "rgba(255,255,255,.55)" : "rgba(0,0,0,.45)";
  ctx.lineWidth = devicePixelRatio || 1;
  line(ctx, x, bbox.top, x, bbox.top + bbox.height);
  ctx.restore();
}

/**
 * Peaks and troughs as triangles, flips as rings.
 * @param {any} plot
 * @param {Drawing} drawing
 */
export function drawMarks(plot, drawing) {
  const { ctx } = plot;
  const dots = devicePixelRatio || 1;
  ctx.save();
  ctx.lineWidth = 1.5 * dots;
  for (const curve of drawing.curves) {
    for (const { place, kind } of curve.marks ?? []) {
      const value = curve.value[place];
      if (value === null || value === undefined) continue;
      const x = plot.valToPos(drawing.even ? place : drawing.steps[place], "x", true);
      const y = plot.valToPos(value, "y", true);
      ctx.strokeStyle = curve.colour;
      ctx.fillStyle = drawing.dark ? "#1c1c20" : "#fff";
      ctx.beginPath();
      outline(ctx, kind, x, y, 6.5 * dots);
      ctx.fill();
      ctx.stroke();
    }
  }
  ctx.restore();
}

/**
 * @param {CanvasRenderingContext2D} ctx
 * @param {string} kind
 * @param {number} x
 * @param {number} y
 * @param {number} size
 */
function outline(ctx, kind, x, y, size) {
  if (kind === "flip") {
    ctx.arc(x, y, size * 0.9, 0, 2 * Math.PI);
    return;
  }
  const way = kind === "peak" ? -1 : 1;
  ctx.moveTo(x, y + way * size * 2.2);
  ctx.lineTo(x - size, y + way * size * 0.9);
  ctx.lineTo(x + size, y + way * size * 0.9);
  ctx.closePath();
}

/**
 * @param {CanvasRenderingContext2D} ctx
 * @param {number} x1
 * @param {number} y1
 * @param {number} x2
 * @param {number} y2
 */
function line(ctx, x1, y1, x2, y2) {
  ctx.beginPath();
  ctx.moveTo(x1, y1);
  ctx.lineTo(x2, y2);
  ctx.stroke();
}
