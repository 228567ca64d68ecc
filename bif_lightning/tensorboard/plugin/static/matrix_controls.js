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
    one("table", "The window as a table of numbers (t)", "table", () => store.set({ table: !table }), table),
  );
}

/**
 * @param {import("./state.js").Store} store
 * @param {import("./state.js").State} state
 * @param {import("./api.js").Run} run
 * @returns {HTMLElement}
 */
export function toggles(store, state, run) {
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
    button({
      label: "Grey what lies within 1.96 standard errors of zero (g); zoom in until single pairs are shown",
      text: "Only clear",
      name: "clear",
      pressed: state.clear,
      click: () => store.set({ clear: !state.clear }),
    }),
  );
}
