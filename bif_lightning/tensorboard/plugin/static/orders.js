/** The controls that order the rows and the columns. */

import { choice } from "./dom.js";
import { orderOf } from "./book.js";
import { selectionsOf } from "./selections.js";

/** @typedef {import("./state.js").State} State */
/** @typedef {import("./api.js").Run} Run */

const USER = "user:";

/**
 * @param {import("./page.js").Context} context
 * @param {State} state
 * @param {Run} run
 * @returns {HTMLElement[]}
 */
export function orderControls(context, state, run) {
  if (state.grouped) return [];
  const { store } = context;
  const rows = choice({
    label: "Sort rows by",
    name: "order-train",
    options: options(run, state, "train"),
    value: valueOf(run, state, "train"),
    change: (value) => {
      const { by, column } = chosen(value, state.query);
      store.set({ trainBy: by, trainColumn: column, window: null });
    },
  });
  const columns = choice({
    label: "Sort columns by",
    name: "order-query",
    options: options(run, state, "query"),
    value: valueOf(run, state, "query"),
    change: (value) => {
      const { by, column } = chosen(value, state.train);
      store.set({ queryBy: by, queryColumn: column, window: null });
    },
  });
  return [rows, onlyChoice(context, state, "train"), columns, onlyChoice(context, state, "query")].filter(
    (one) => one !== null,
  );
}

/**
 * Rows or columns of a selection only, where there are selections.
 * @param {import("./page.js").Context} context
 * @param {State} state
 * @param {"train" | "query"} side
 */
function onlyChoice({ store }, state, side) {
  const names = Object.keys(selectionsOf(state, side));
  const field = side === "train" ? "onlyTrain" : "onlyQuery";
  if (!names.length && !state[field]) return null;
  const options = [...new Set([...names, state[field]])].filter(Boolean).map((name) => ({ value: name, text: name }));
  return choice({
    label: side === "train" ? "Rows" : "Columns",
    name: `only-${side}`,
    options: [{ value: "", text: "all" }, ...options],
    value: state[field],
    change: (name) => store.set({ [field]: name, window: null }),
  });
}

/**
 * @param {Run} run
 * @param {State} state
 * @param {"train" | "query"} side
 */
function options(run, state, side) {
  const other = side === "train" ? state.query : state.train;
  const { by } = orderOf(run, state, side);
  const of = side === "train" ? "the chosen query" : "the chosen train example";
  return [
    run.has[`${side}_label`] ? { value: "label", text: "label" } : null,
    { value: "cluster", text: "clusters" },
    { value: "strength", text: "strength (root mean square)" },
    other !== null || by === "column" ? { value: "column", text: `value for ${of}` } : null,
    { value: "dataset", text: "dataset" },
    ...(run.sort_columns[side] ?? []).map((name) => ({ value: `${USER}${name}`, text: `your column: ${name}` })),
  ].filter((one) => one !== null);
}

/**
 * @param {Run} run
 * @param {State} state
 * @param {"train" | "query"} side
 */
function valueOf(run, state, side) {
  const { by, column } = orderOf(run, state, side);
  return by === "user" ? `${USER}${column}` : by;
}

/**
 * @param {string} value of the list
 * @param {number | null} other the chosen row of the other side
 */
function chosen(value, other) {
  if (value.startsWith(USER)) return { by: "user", column: value.slice(USER.length) };
  return { by: value, column: value === "column" ? String(other ?? 0) : "" };
}
