/** The verdict on a snapshot, as a banner and as a mark. */

import { el } from "./dom.js";
import { icon } from "./icons.js";

/** @typedef {import("./api.js").Step} Step */

/**
 * @param {Step} step
 * @param {string} [of] what it is on, where there are several
 * @returns {HTMLElement | null} null where the verdict is good
 */
export function verdictBanner(step, of = "") {
  if (step.verdict === "good") return null;
  const [word, text] = step.verdict
    ? [step.verdict, step.verdict_text ?? ""]
    : ["not judged", "The dump has no verdict on its sampling, so its bias is unknown."];
  return el(
    "div",
    { class: `banner ${step.verdict ? "bad" : "unknown"}`, role: "note" },
    icon("warn"),
    el("p", {}, el("strong", {}, `${of}${of ? ": r" : "R"}ead with care: ${word}. `), sentence(word, text)),
  );
}

/**
 * The same of a dump whose checks all hold.
 * @param {string | null} text
 */
export function goodBanner(text) {
  return el("div", { class: "banner good" }, el("p", {}, el("strong", {}, "Good. "), sentence("good", text ?? "")
));
}

/**
 * @param {string} word that the text may begin with, and that stands before it already
 * @param {string} text
 */
function sentence(word, text) {
  const rest = text.replace(new RegExp(`^${word}\\s*[:;,]\\s*`, "i"), "");
  const whole = rest.charAt(0).toUpperCase() + rest.slice(1);
  return !whole || /[.!?]$/.test(whole) ? whole : `${whole}.`;
}

/**
 * A mark whose shape tells what its colour does: a bar where all checks hold, a triangle where one fails, a ring where
 * none was made.
 * @param {string | null} verdict
 * @param {Record<string, string>} [style]
 */
export function verdictMark(verdict, style = {}) {
  const kind = verdict === "good" ? "good" : verdict ? "bad" : "unknown";
  return el("span", { class: `verdict-mark ${kind}`, style, "aria-hidden": "true" });
}

/**
 * The verdict in a few words, which say of what it is one.
 * @param {string | null} verdict
 */
export function verdictWords(verdict) {
  if (!verdict) return "estimate not checked";
  return verdict === "good" ? "all checks passed" : `a check failed: ${verdict}`;
}
