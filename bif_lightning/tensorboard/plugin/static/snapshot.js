/** What lies behind one snapshot: its chains draw by draw, its divergences, settings, cost and provenance. */

import { Chart } from "./chart.js";
import { lineColour } from "./colours.js";
import { el } from "./dom.js";
import { bytes, counted, duration, number } from "./format.js";

/** @typedef {Record<string, any>} Chains the server's answer */

/**
 * Whether a sampler draws independently: there is nothing then that rises, settles or diverges from draw to draw.
 * @param {import("./api.js").Run} run
 */
export function isIndependent({ kind }) {
  return kind === "Subspace" || kind === "Pairs";
}

/**
 * @param {Chains} chains
 * @param {import("./api.js").Step} step
 * @param {boolean} dark
 * @param {boolean} independent draws
 * @returns {HTMLElement[]}
 */
export function behind(chains, step, dark, independent) {
  const at = `step ${step.step.toLocaleString("en")}`;
  return [
    panel(
      `${independent ? "Draws" : "Chains"} at ${at}`,
      el("p", { class: "meaning" }, tracesSentence(chains, independent)),
      el(
        "div",
        { class: "two-charts" },
        trace("Mean train loss, nat", chains.loss, chains, dark),
        trace("Distance to the snapshot", chains.distance, chains, dark),
      ),
      el(
        "ul",
        { class: "curves inline" },
        (chains.chain ?? []).map((/** @type {number} */ id, /** @type {number} */ place) =>
          el(
            "li",
            { class: "curve" },
            el("span", { class: "swatch", style: { background: lineColour(place, dark) } }),
            el("span", {}, `${independent ? "set" : "chain"} ${id}`),
            el("span", { class: "curve-value tabular" }, `LLC ${number(chains.chain_llc?.[place])} nat`),
          ),
        ),
      ),
      independent ? null : divergences(chains.divergences ?? []),
    ),
    panel(
      "How it was computed",
      facts(chains),
      notes(chains.notes ?? []),
      tree("Settings of the sampler", chains.settings),
      tree("Provenance", chains.provenance),
    ),
  ];
}

/**
 * @param {string} title
 * @param {...(Node | null)} parts
 */
function panel(title, ...parts) {
  return el("section", { class: "panel" }, el("h2", { class: "panel-title" }, title), parts);
}

/**
 * @param {Chains} chains
 * @param {boolean} independent draws
 */
function tracesSentence(chains, independent) {
  const thinned = (chains.thinned ?? 1) > 1 ? ` Every ${chains.thinned}th draw is plotted.` : "";
  if (independent) {
    return `Draws are independent: from one to the next nothing rises or settles, and some lie below the snapshot's loss. What counts is their mean, from which the LLC is computed.${thinned}`;
  }
  return `Good chains rise from the snapshot's loss, soon level off at the same height, and have no spikes.${thinned}`;
}

/**
 * @param {string} title
 * @param {(number | null)[][]} rows one of each chain
 * @param {Chains} chains
 * @param {boolean} dark
 */
function trace(title, rows, chains, dark) {
  if (!rows?.length) return el("p", { class: "hint" }, `${title}: not recorded`);
  const chart = new Chart({ height: 190, label: `${title} of each chain, draw by draw` });
  const level =
    title.startsWith("Mean") && Number.isFinite(chains.snapshot_loss)
      ? [{ at: chains.snapshot_loss, text: "loss at the snapshot" }]
      : [];
  chart.show({
    steps: chains.draw ?? rows[0].map((_, place) => place),
    curves: rows.map((value, place) => ({
      name: `chain ${chains.chain?.[place]}`,
      colour: lineColour(place, dark),
      value,
      thin: true,
    })),
    shown: null,
    levels: level,
    even: false,
    label: "draw",
    dark,
    points: false,
  });
  return el(
    "figure",
    { class: "measure" },
    el("figcaption", {}, el("span", { class: "measure-title" }, title), el("span", { class: "fine" }, "by draw")),
    chart.element,
  );
}

/** @param {{chain: number, draw: number, message: string}[]} all */
function divergences(all) {
  if (!all.length) return el("p", { class: "fine" }, "No chain diverged.");
  return el(
    "div",
    { class: "banner bad" },
    el(
      "ul",
      {},
      all.map((one) =>
        el(
          "li",
          {},
          `Chain ${one.chain} diverged ${one.draw < 0 ? "during burn-in" : `at draw ${one.draw}`} and is left out: ${one.message}`,
        ),
      ),
    ),
  );
}

/** @param {Chains} chains */
function facts(chains) {
  const { cost = {} } = chains;
  const rows = [
    ["Wall time", duration(cost.seconds)],
    ["Sampler steps", Number.isFinite(cost.steps) ? counted(cost.steps) : "unknown"],
    ["Processes", Number.isFinite(cost.workers) ? counted(cost.workers) : "unknown"],
    ["Memory in addition to the model", bytes(cost.extra_bytes)],
  ];
  return el(
    "dl",
    { class: "facts" },
    rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", { class: "tabular" }, value))),
  );
}

/** @param {string[]} sentences */
function notes(sentences) {
  return sentences.length
    ? el(
        "ul",
        { class: "notes" },
        sentences.map((one) => el("li", {}, one)),
      )
    : null;
}

/**
 * @param {string} title
 * @param {any} value
 */
function tree(title, value) {
  if (!value || !Object.keys(value).length) return null;
  const rows = flat(value);
  return el(
    "details",
    { open: title.startsWith("Settings") },
    el("summary", {}, title),
    el(
      "dl",
      { class: "settings" },
      rows.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, text))),
    ),
  );
}

/**
 * @param {any} value
 * @param {string} [path]
 * @returns {[string, string][]}
 */
function flat(value, path = "") {
  if (value !== null && typeof value === "object" && !Array.isArray(value)) {
    return Object.entries(value).flatMap(([name, inner]) => flat(inner, path ? `${path}.${name}` : name));
  }
  if (Array.isArray(value)) return [[path, value.length ? value.map(word).join(", ") : "none"]];
  return [[path, word(value)]];
}

/** @param {any} value */
function word(value) {
  if (value === null || value === undefined) return "not set";
  if (typeof value === "number" && !Number.isInteger(value)) return String(Number(value.toPrecision(6)));
  return typeof value === "object" ? JSON.stringify(value) : String(value) || "none";
}
