/** The verdict on a snapshot, as a banner and as a mark. */

import { el } from "./dom.js";
import { icon } from "./icons.js";

/** @typedef {import("./api.js").Step} Step */

/**
 * @param {Step} step
 * @returns {HTMLElement | null} null where the verdict is good
 */
export function verdictBanner(step) {
  if (step.verdict === "good") return null;
  const [word, text] = step.verdict
    ? [step.verdict, step.verdict_text ?? ""]
    : ["not judged", "The dump holds no verdict on its sampling, so nothing is known of its bias."];
  return el(
    "div",
    { class: `banner ${step.verdict ? "bad" : "unknown"}`, role: "note" },
    icon("warn"),
    el("p", {}, el("strong", {}, `Read with care: ${word}. `), sentence(word, text)),
  );
}

/**
 * The same of a dump whose checks all hold.
 * @param {string | null} text
 */
export function goodBanner(text) {
  return el("div", { class: "banner good" }, el("p", {}, el("strong", {}, "Good. "), sentence("good", text ?? "")));
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

/** @param {string | null} verdict */
export function verdictClass(verdict) {
  if (verdict === "good") return "good";
  return verdict ? "bad" : "unknown";
}
