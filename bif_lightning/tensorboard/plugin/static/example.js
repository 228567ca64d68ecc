/** One example of a side as it is shown everywhere: its picture, its name, its label. */

import { labelText } from "./axes.js";
import { el } from "./dom.js";
import { shortened } from "./format.js";

/** @typedef {"train" | "query"} Side */

/**
 * @param {import("./api.js").Api} api
 * @param {import("./api.js").Run} run
 * @param {Side} side
 * @param {number} row
 * @param {import("./api.js").Samples} samples
 * @returns {HTMLImageElement | null} null where the run has no thumbnails; it removes itself where this one has none
 */
export function thumbnail(api, run, side, row, samples) {
  if (!run.has[`${side}_thumbnail`] || samples.own_columns) return null;
  const picture = el("img", {
    class: "thumbnail",
    alt: "",
    loading: "lazy",
    decoding: "async",
    src: api.address("thumbnail", { run: run.run, side, row, token: run.samples_token }),
  });
  picture.addEventListener("error", () => picture.remove());
  return picture;
}

/**
 * @param {import("./api.js").Samples} samples
 * @param {number} row
 * @returns {HTMLElement[]} id and label
 */
export function identity(samples, row) {
  const label = labelText(samples, row);
  return [
    el("span", { class: "id", title: samples.id[row] }, shortened(samples.id[row] ?? "", 60)),
    label ? el("span", { class: "chip", title: "label" }, shortened(label, 30)) : null,
  ].filter((part) => part !== null);
}
