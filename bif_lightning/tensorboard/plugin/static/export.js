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
          click: () => saveTable(context, name, table()),
        })
      : null,
  );
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

/**
 * @param {Context} context
 * @param {string} name
 * @param {Record<string, any> | null} table
 */
function saveTable(context, name, table) {
  const { api, book, store } = context;
  const shown = book.shown(store.state);
  if (!shown || !table) {
    announce("There is nothing to save yet.", true);
    return;
  }
  const { run, step } = shown;
  const parameters = {
    run: run.run,
    step: step.step,
    matrix: store.state.matrix,
    ...context.orders(),
    ...table,
    token: step.token,
  };
  download(api.address("export", parameters), fileName(context, name, "csv"));
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
  const address = URL.createObjectURL(blob);
  download(address, name);
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/**
 * @param {string} address
 * @param {string} name
 */
function download(address, name) {
  const anchor = el("a", { href: address, download: name });
  document.body.append(anchor);
  anchor.click();
  anchor.remove();
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
      done ? "The link to this view is copied." : "The browser refused to copy; the address bar holds the same link.",
      true,
    );
  }
}
