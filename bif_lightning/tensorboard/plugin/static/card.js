/** One card: an example, its value with a whisker, and how its rank moved. */

import { el, svg } from "./dom.js";
import { identity, thumbnail } from "./example.js";
import { isClear, isKnown, measure, number, shortened } from "./format.js";
import { pair } from "./pins.js";

/** @typedef {import("./state.js").State} State */
/** @typedef {import("./cards.js").Entry} Entry */

/**
 * @param {{context: import("./page.js").Context, one: Entry, state: State, run: import("./api.js").Run, step: number,
 *   side: "query" | "train", row: number, other: import("./api.js").Samples, words: string, unit: string, most: number,
 *   kind: string}} of `words` are the value with its error, `unit` is that of the single step
 */
export function card({ context, one, state, run, step, side, row, other, words, unit, most, kind }) {
  const across = side === "query" ? "train" : "query";
  const text = other.text_head?.[one.row];
  const chosen = side === "query" ? pair(one.row, row) : pair(row, one.row);
  const clear = one.clear ?? isClear(one.value, one.standard_error);
  return el(
    "li",
    {},
    el(
      "button",
      {
        type: "button",
        class: "card",
        "data-row": one.row,
        title: "Show this pair",
        on: { click: () => context.store.set({ chosen, train: chosen.train[0], query: chosen.query[0] }) },
      },
      el("span", { class: "rank tabular" }, String(one.rank)),
      thumbnail(context.api, run, across, one.row, other),
      el(
        "span",
        { class: "card-words" },
        el("span", { class: "card-name" }, identity(other, one.row)),
        text ? el("span", { class: "card-text" }, shortened(text, 90)) : null,
        el(
          "span",
          { class: "card-value tabular" },
          errorBar(one, most, kind),
          el("span", {}, words),
        ),
        el(
          "span",
          { class: "card-notes" },
          clear ? null : el("span", { class: "tag" }, "within its error of 0"),
          beside(one, step, unit),
          moved(one, state),
        ),
      ),
    ),
  );
}

/**
 * The single step, beside the whole training.
 * @param {Entry} one
 * @param {number} step
 * @param {string} unit
 */
function beside({ snapshot }, step, unit) {
  if (!snapshot) return null;
  const rank = isKnown(snapshot.rank) ? `rank ${snapshot.rank.toLocaleString("en")}` : "other sign";
  const value = measure(snapshot.value, snapshot.standard_error, unit);
  return el("span", { class: "tag beside tabular" }, `step ${step.toLocaleString("en")}: ${value}, ${rank}`);
}

/**
 * How the rank moved.
 * @param {Entry} one
 * @param {State} state
 */
function moved({ rank, rank_since, value_since }, state) {
  if (state.since === null || value_since === null || value_since === undefined) return null;
  const since = `step ${state.since.toLocaleString("en")}`;
  if (!isKnown(rank_since))
    return el("span", { class: "tag moved", title: `value at that step: ${number(value_since)}` }, `opposite sign at ${since}`);
  const by = rank_since - rank;
  const [mark, word] = by > 0 ? ["▲", "up"] : by < 0 ? ["▼", "down"] : ["=", "unchanged"];
  const text = by ? `${mark} ${Math.abs(by).toLocaleString("en")}` : mark;
  const was = rank_since.toLocaleString("en");
  return el(
    "span",
    { class: "tag moved", title: `rank ${was} at ${since}: ${word}` },
    `${text} since ${since} (was ${was})`,
  );
}

/**
 * A bar from zero to the value, with a whisker of one standard error to each side.
 * @param {Entry} one
 * @param {number} most of the axis
 * @param {string} kind
 */
function errorBar({ value, standard_error }, most, kind) {
  const [width, middle] = [56, 6];
  const place = (/** @type {number} */ size) => Math.min(Math.max((size / most) * (width - 4), 0), width - 2) + 1;
  const size = Math.abs(value);
  const error = standard_error ?? 0;
  return svg(
    "svg",
    { class: `bar ${kind}`, width, height: 12, viewBox: `0 0 ${width} 12`, "aria-hidden": "true" },
    svg("rect", { x: 1, y: 3, height: 6, width: Math.max(place(size) - 1, 1), rx: 1 }),
    error
      ? svg("path", {
          d: `M${place(size - error)} ${middle}H${place(size + error)}M${place(size - error)} 3v6M${place(size + error)} 3v6`,
        })
      : null,
  );
}
