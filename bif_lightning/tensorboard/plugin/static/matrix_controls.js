/** The buttons of the matrix view. */

import { button, el } from "./dom.js";
import { icon } from "./icons.js";

/** Of one press of a key or a button. */
export const ZOOM = 0.6;

/**
 * @param {import("./matrix.js").MatrixView} view
 * @param {import("./state.js").State} state
 * @returns {HTMLElement}
 */
export function zoomButtons(view, { table }) {
  const { store } = view.context;
  const one = (
    /** @type {string} */ name,
    /** @type {string} */ label,
    /** @type {Parameters<typeof icon>[0]} */ sign,
    /** @type {() => void} */ click,
    /** @type {boolean | undefined} */ pressed = undefined,
  ) => button({ label, icon: icon(sign), name, click, pressed });
  return el(
    "div",
    { class: "tools", role: "group", "aria-label": "Window" },
    one("zoom-in", "Zoom in (+), or drag a block", "plus", () => view.zoomBy(ZOOM)),
    one("zoom-out", "Zoom out (−)", "minus", () => view.zoomBy(1 / ZOOM)),
    one("zoom-back", "Back (Esc)", "back", () => void view.back()),
    one("zoom-all", "Show all (0)", "all", () => view.zoomTo(null)),
    one("table", "Show this view as a table of numbers (t)", "table", () => store.set({ table: !table }), table),
  );
}

/**
 * Whether values within their error are greyed: as asked, else where the snapshot is noisy.
 * @param {import("./state.js").State} state
 * @param {import("./api.js").Step} step
 */
export function isClearOnly(state, step) {
  return state.clear ?? step.verdict === "noisy";
}

/**
 * @param {import("./state.js").Store} store
 * @param {import("./state.js").State} state
 * @param {{run: import("./api.js").Run, step: import("./api.js").Step}} shown
 * @param {boolean} pooled whether what is painted are means over several pairs
 * @returns {HTMLElement}
 */
export function toggles(store, state, { run, step }, pooled) {
  const clear = isClearOnly(state, step);
  return el(
    "div",
    { class: "tools" },
    run.has.classes
      ? button({
          label: "Means over the examples of each class (c)",
          text: "Class × class",
          name: "grouped",
          pressed: state.grouped,
          click: () => store.set({ grouped: !state.grouped, window: null }),
        })
      : null,
    significantOnly(store, clear, pooled),
    state.grouped
      ? null
      : button({
          label: "Give each query a colour scale of its own, so that a few loud ones do not drown the rest",
          text: "Scale each query",
          name: "scaling",
          pressed: state.scaling === "column",
          click: () => store.set({ scaling: state.scaling === "column" ? "matrix" : "column" }),
        }),
  );
}

/**
 * @param {import("./state.js").Store} store
 * @param {boolean} clear
 * @param {boolean} pooled
 */
export function significantOnly(store, clear, pooled) {
  const made = button({
    label: pooled
      ? "The errors of means over several pairs are not known: zoom in until single pairs are shown"
      : "Grey out values within 1.96 standard errors of zero (g)",
    text: "Significant only",
    name: "clear",
    pressed: clear && !pooled,
    click: () => !pooled && store.set({ clear: !clear }),
  });
  if (pooled) made.setAttribute("aria-disabled", "true");
  return made;
}
