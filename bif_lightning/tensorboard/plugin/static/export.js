/** Saving what is shown: a picture as PNG, a table as CSV. */

import { announce } from "./a11y.js";
import { button, el } from "./dom.js";
import { icon } from "./icons.js";
import { pictureOf } from "./picture.js";

/** @typedef {import("./page.js").Context} Context */
/** @typedef {import("./picture.js").Sheet} Sheet */
/**
 * @typedef {object} Exports
 * @property {string} name of the files
 * @property {(() => Sheet | null) | null} image what is shown
 * @property {(() => Record<string, any> | null) | null} table parameters of the server's CSV
 */

/**
 * Buttons that save one view.
 * @param {Context} context
 * @param {Exports} exports
 */
export function saveMenu(context, { name, image, table }) {
  return el(
    "div",
    { class: "save", role: "group", "aria-label": `Save: ${name}` },
    icon("save"),
    image
      ? button({
          label: "Save this view as a picture (PNG)",
          text: "PNG",
          name: `png-${name}`,
          click: () => savePng(image(), fileName(context, name, "png")),
        })
      : null,
    table
      ? button({
          label: "Save the numbers of this view as a table (CSV)",
          text: "CSV",
          name: `csv-${name}`,
          click: () => void saveTable(context, name, table()),
        })
      : null,
  );
}

/**
 * @param {string} name of what they save
 * @param {{name: string, text: string, label: string, click: () => void}[]} buttons
 */
export function saveButtons(name, buttons) {
  const made = buttons.map((one) => button({ ...one, name: `${one.name}-${name}` }));
  return el("div", { class: "save", role: "group", "aria-label": `Save: ${name}` }, icon("save"), made);
}

/**
 * @param {string} text
 * @param {string} name of the file
 * @param {string} type
 */
export function saveText(text, name, type) {
  save(new Blob([text], { type: `${type};charset=utf-8` }), name);
}

/**
 * @param {Context} context
 * @param {string} name
 * @param {string} ending
 */
export function fileNameOf({ store, book }, name, ending) {
  const { state } = store;
  const step = book.shown(state)?.step.step ?? 0;
  return `${state.run} step ${step} ${name}`.replace(/[^\w.-]+/g, "_") + `.${ending}`;
}

/**
 * @param {Context} context
 * @param {string} name
 * @param {string} ending
 */
function fileName({ store, book }, name, ending) {
  const { state } = store;
  const step = book.shown(state)?.step.step ?? 0;
  return `${state.run} step ${step} ${state.matrix} ${name}`.replace(/[^\w.-]+/g, "_") + `.${ending}`;
}

/** The server gives so many entries at once. */
const MOST_CELLS = 1 << 18;
/** A larger table is no use in a spreadsheet, nor in the memory of a browser. */
const MOST_SAVED = 1 << 24;

/**
 * The questions of which the answers together are the table: bands of rows, where a window is too large for one.
 * @param {Record<string, any>} table
 * @returns {Record<string, any>[]}
 */
function partsOf(table) {
  const { what, r0, r1, c0, c1 } = table;
  if (what !== "window") return [table];
  const rows = Math.max(Math.floor(MOST_CELLS / (c1 - c0)), 1);
  return Array.from({ length: Math.ceil((r1 - r0) / rows) }, (_, band) => ({
    ...table,
    r0: r0 + band * rows,
    r1: Math.min(r0 + (band + 1) * rows, r1),
  }));
}

/**
 * @param {Context} context
 * @param {string} name
 * @param {Record<string, any> | null} table
 */
async function saveTable(context, name, table) {
  const { api, book, store } = context;
  const shown = book.shown(store.state);
  if (!shown || !table) {
    announce("There is nothing to save yet.", true);
    return;
  }
  const { run, step } = shown;
  const of = { run: run.run, step: step.step, matrix: store.state.matrix, ...context.orders() };
  const file = fileName(context, name, "csv");
  if (table.what === "window" && (table.r1 - table.r0) * (table.c1 - table.c0) > MOST_SAVED) {
    const dump = `step=${String(step.step).padStart(9, "0")}.h5`;
    announce(`Nothing was saved: the window is too large for a table. Zoom in, or read ${dump} of the run.`, true);
    return;
  }
  try {
    const parts = partsOf(table);
    /** @type {string[]} */
    const texts = [];
    for (const [place, part] of parts.entries()) {
      if (parts.length > 1) announce(`Reading part ${place + 1} of ${parts.length}.`, true);
      const text = await api.text("export", { ...of, ...part });
      // One head for all.
      texts.push(place ? text.slice(text.indexOf("\n") + 1) : text);
    }
    save(new Blob(texts, { type: "text/csv" }), file);
  } catch (error) {
    announce(`Nothing was saved: ${/** @type {Error} */ (error).message}`, true);
  }
}

/**
 * @param {Sheet | null} sheet
 * @param {string} name
 */
async function savePng(sheet, name) {
  /** @type {Blob | null} */
  const blob = sheet && (await new Promise((resolve) => pictureOf(sheet).toBlob(resolve, "image/png")));
  if (!blob) {
    announce("There is nothing to save yet.", true);
    return;
  }
  save(blob, name);
}

/**
 * @param {Blob} blob
 * @param {string} name
 */
function save(blob, name) {
  const address = URL.createObjectURL(blob);
  const anchor = el("a", { href: address, download: name });
  document.body.append(anchor);
  anchor.click();
  anchor.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
  announce(`Saved ${name}.`, true);
}

/** @param {string} address */
export async function copyLink(address) {
  try {
    await navigator.clipboard.writeText(address);
    announce("The link to this view is copied.", true);
  } catch {
    // Without a secure origin a browser offers no clipboard to write to.
    const field = el("textarea", { class: "unseen", readonly: true });
    field.value = address;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    announce(
      done ? "The link to this view is copied." : "The browser refused to copy; the address bar shows the same link.",
      true,
    );
  }
}
