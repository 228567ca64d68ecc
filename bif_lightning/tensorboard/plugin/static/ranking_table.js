/** One page of the ranking as a table: a row for each train example. */

import { labelText } from "./axes.js";
import { el, svg } from "./dom.js";
import { thumbnail } from "./example.js";
import { gridOf, isClear, isKnown, number, shortened, shortenedInside } from "./format.js";
import { sparkline } from "./sparkline.js";

/**
 * @typedef {object} Ranking
 * @property {Float32Array} effect
 * @property {Float32Array} standard_error
 * @property {Float32Array} q_value
 * @property {Float32Array} share_hurt
 * @property {Float32Array} loss
 * @typedef {{key: string, text: string, title: string, number?: boolean}} Column
 */

/** The user's own columns beyond these are for the filter and the CSV. */
const MOST_OWN = 3;

/**
 * @param {import("./api.js").Samples} samples
 * @param {import("./signs.js").Quantity} quantity
 * @returns {Column[]} those that the table can be sorted by
 */
export function columnsOf(samples, quantity) {
  const bad = quantity.observable ? "raises" : "hurts";
  return [
    { key: "id", text: "Train example", title: "its id" },
    ...(samples.label ? [{ key: "label", text: "Label", title: "the given label" }] : []),
    {
      key: "effect",
      text: "Mean effect",
      title: `mean ${quantity.name} over the queries, ± standard error; below 0 ${bad}`,
      number: true,
    },
    {
      key: "q",
      text: "q",
      title: "least false-discovery rate at which the effect is told from 0 (Benjamini-Hochberg over all train examples)",
      number: true,
    },
    { key: "hurt", text: quantity.observable ? "Raises" : "Hurts", title: `share of the queries that it ${bad}`, number: true },
    { key: "loss", text: "Loss", title: "mean loss of this example at the step that is shown, nat", number: true },
    ...Object.keys(samples.columns ?? {})
      .slice(0, MOST_OWN)
      .map((name) => ({
        key: `own:${name}`,
        text: shortened(name, 20),
        title: `column ${name} of the dataset`,
        number: typeof samples.columns[name][0] === "number",
      })),
  ];
}

/**
 * @param {{context: import("./page.js").Context, run: import("./api.js").Run, rows: number[], ranks: ArrayLike<number>,
 *   ranking: Ranking, samples: import("./api.js").Samples, quantity: import("./signs.js").Quantity, sort: string,
 *   picked: Set<number>, sortBy: (sort: string) => void, pick: (rows: number[], on: boolean) => void,
 *   show: (row: number) => void}} of
 * @returns {{table: HTMLElement, curves: Map<number, HTMLElement>}} where the curves of the rows go
 */
export function tableOf(of) {
  const { rows, ranking, samples, quantity, sort, picked } = of;
  const columns = columnsOf(samples, quantity);
  const values = rows.map((row) => ranking.effect[row]);
  const errors = rows.map((row) => ranking.standard_error[row]);
  const grid = gridOf(values, errors);
  const most = Math.max(...values.map((value, at) => (isKnown(value) ? Math.abs(value) + (errors[at] || 0) : 0)), 1e-30);
  /** @type {Map<number, HTMLElement>} */
  const curves = new Map();
  const all = rows.length > 0 && rows.every((row) => picked.has(row));
  const head = el(
    "tr",
    {},
    el("th", { scope: "col", class: "check" }, check("Choose all of this page", all, (on) => of.pick(rows, on))),
    el("th", { scope: "col", class: "right", title: "1 = the most harmful of all train examples" }, "#"),
    columns.flatMap((column) => {
      if (column.key !== "effect") return [header(column, sort, of.sortBy, "")];
      const title = "effect at each step, each row on a scale of its own; the line is zero";
      return [
        header(column, sort, of.sortBy, unitOf(grid.power, quantity.unit)),
        el("th", { scope: "col", title }, "Over training"),
      ];
    }),
  );
  const body = rows.map((row) => {
    const curve = el("td", { class: "curve-cell" });
    curves.set(row, curve);
    const cells = columns.flatMap((column) => {
      const one = cellOf(column, row, of, grid, most);
      return column.key === "effect" ? [one, curve] : [one];
    });
    return el(
      "tr",
      { "data-row": row, class: picked.has(row) ? "picked" : null },
      el("td", { class: "check" }, check(`Choose ${samples.id[row]}`, picked.has(row), (on) => of.pick([row], on), row)),
      el("td", { class: "right muted tabular" }, isKnown(ranking.effect[row]) ? String(of.ranks[row]) : ""),
      cells,
    );
  });
  const table = el("table", { class: "ranking-table" }, el("thead", {}, head), el("tbody", {}, body));
  return { table, curves };
}

/**
 * @param {string} power
 * @param {string} unit
 */
function unitOf(power, unit) {
  return [power, unit].filter(Boolean).join(" ");
}

/**
 * @param {string} label
 * @param {boolean} on
 * @param {(on: boolean) => void} change
 * @param {number} [row]
 */
function check(label, on, change, row) {
  const box = el("input", {
    type: "checkbox",
    "aria-label": label,
    "data-name": row === undefined ? "pick-page" : `pick-${row}`,
    on: { change: (/** @type {any} */ event) => change(event.target.checked) },
  });
  box.checked = on;
  return box;
}

/**
 * @param {Column} column
 * @param {string} sort
 * @param {(sort: string) => void} sortBy
 * @param {string} unit
 */
function header({ key, text, title, number: right }, sort, sortBy, unit) {
  const way = sort === key ? 1 : sort === `-${key}` ? -1 : 0;
  return el(
    "th",
    {
      scope: "col",
      class: right ? "right" : null,
      "aria-sort": way > 0 ? "ascending" : way < 0 ? "descending" : null,
    },
    el(
      "button",
      { type: "button", class: "sort", title: `Sort by ${title}`, "data-name": `sort-${key}`, on: { click: () => sortBy(way > 0 ? `-${key}` : key) } },
      unit ? `${text}, ${unit}` : text,
      el("span", { class: "way", "aria-hidden": "true" }, way > 0 ? " ▲" : way < 0 ? " ▼" : ""),
    ),
  );
}

/**
 * @param {Column} column
 * @param {number} row
 * @param {Parameters<typeof tableOf>[0]} of
 * @param {import("./format.js").Grid} grid
 * @param {number} most
 * @returns {HTMLElement}
 */
function cellOf({ key, number: right }, row, of, grid, most) {
  const { ranking, samples } = of;
  const attributes = { class: right ? "right tabular" : null };
  if (key === "id") return who(row, of);
  if (key === "effect") return effectCell(row, of, grid, most);
  if (key === "label") return el("td", {}, labelCell(samples, row));
  if (key === "q") return el("td", attributes, qWord(ranking.q_value[row]));
  if (key === "hurt") return el("td", attributes, isKnown(ranking.share_hurt[row]) ? `${Math.round(100 * ranking.share_hurt[row])} %` : "");
  if (key === "loss") return el("td", attributes, isKnown(ranking.loss[row]) ? number(ranking.loss[row], 3) : "");
  const value = samples.columns[key.slice("own:".length)][row];
  const word = typeof value === "number" ? (Number.isFinite(value) ? number(value, 3) : "") : (value ?? "");
  return el("td", attributes, el("span", { title: String(value ?? "") }, shortened(String(word), 24)));
}

/**
 * @param {number} row
 * @param {Parameters<typeof tableOf>[0]} of
 */
function who(row, { context, run, samples, show }) {
  const text = samples.text_head?.[row];
  return el(
    "td",
    { class: "who" },
    el(
      "div",
      { class: "who-box" },
      thumbnail(context.api, run, "train", row, samples),
      el(
        "div",
        { class: "who-words" },
        el(
          "button",
          { type: "button", class: "text-button id", title: `Show what ${samples.id[row]} does in the matrix`, "data-name": `show-${row}`, on: { click: () => show(row) } },
          shortenedInside(samples.id[row] ?? "", 32),
        ),
        text ? el("span", { class: "who-text", title: text }, shortened(text, 70)) : null,
      ),
    ),
  );
}

/**
 * @param {import("./api.js").Samples} samples
 * @param {number} row
 */
function labelCell(samples, row) {
  const word = labelText(samples, row);
  return word ? el("span", { class: "chip", title: word }, shortened(word, 24)) : null;
}

/** @param {number} q */
function qWord(q) {
  if (!isKnown(q)) return "";
  return q < 0.001 ? "< 0.001" : q.toFixed(3);
}

/**
 * @param {number} row
 * @param {Parameters<typeof tableOf>[0]} of
 * @param {import("./format.js").Grid} grid
 * @param {number} most
 */
function effectCell(row, { ranking, quantity }, grid, most) {
  const [value, error] = [ranking.effect[row], ranking.standard_error[row]];
  if (!isKnown(value)) return el("td", { class: "right muted" }, "undefined");
  const clear = isClear(value, error);
  const words = isKnown(error) && error > 0 ? `${grid.value(value)} ± ${grid.error(error)}` : grid.value(value);
  return el(
    "td",
    { class: `right effect tabular ${clear ? "" : "open"}`, title: clear ? null : "within its error of zero" },
    bar(value, error, most, quantity.observable ? ["lowers", "raises"] : ["helps", "hurts"]),
    el("span", {}, words),
  );
}

/**
 * A bar from zero, in the middle, to the value, with a whisker of one standard error to each side.
 * @param {number} value
 * @param {number} error
 * @param {number} most
 * @param {string[]} kinds
 */
function bar(value, error, most, [above, below]) {
  const [width, half] = [72, 35];
  const place = (/** @type {number} */ one) => 36 + Math.max(Math.min(one / most, 1), -1) * half;
  const [from, to] = [Math.min(36, place(value)), Math.max(36, place(value))];
  return svg(
    "svg",
    { class: `bar ${value > 0 ? above : below}`, width, height: 12, viewBox: `0 0 ${width} 12`, "aria-hidden": "true" },
    svg("rect", { x: from, y: 3, width: Math.max(to - from, 0.8), height: 6 }),
    svg("path", { d: `M36 0v12${error > 0 ? `M${place(value - error)} 6H${place(value + error)}` : ""}` }),
  );
}

/**
 * Draw the curves of rows into their cells.
 * @param {Map<number, HTMLElement>} cells
 * @param {number[]} rows
 * @param {{steps: number[], values: (number | null)[][]}} answer
 * @param {number} step that is shown
 */
export function drawCurves(cells, rows, { steps, values }, step) {
  rows.forEach((row, place) => {
    const cell = cells.get(row);
    if (cell && values[place]) cell.replaceChildren(sparkline(values[place], steps, steps.indexOf(step)));
  });
}
