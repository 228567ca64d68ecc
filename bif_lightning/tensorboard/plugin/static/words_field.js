/** A field for words that choose examples (filter.js), with what may stand in it. */

import { el, put } from "./dom.js";
import { keysOf } from "./filter.js";

const TYPING = 250;

/** A field of words that choose examples; what stands in it is taken as one stops to type. */
export class WordsField {
  /**
   * @param {string} label
   * @param {string} name
   * @param {(words: string) => void} change
   */
  constructor(label, name, change) {
    const list = `words-${name}`;
    this.suggestions = el("datalist", { id: list });
    this.waiting = 0;
    this.input = el("input", {
      type: "text",
      class: "picker-input words-input",
      list,
      autocomplete: "off",
      spellcheck: "false",
      "data-name": `words-${name}`,
      on: {
        input: () => {
          clearTimeout(this.waiting);
          this.waiting = window.setTimeout(() => change(this.input.value.trim()), TYPING);
        },
        change: () => {
          clearTimeout(this.waiting);
          change(this.input.value.trim());
        },
      },
    });
    this.element = el("label", { class: "choice words" }, el("span", { class: "choice-label" }, label), this.input, this.suggestions);
    this.known = "";
  }

  /** @param {string} words */
  show(words) {
    if (document.activeElement !== this.input) this.input.value = words;
  }

  /**
   * @param {import("./filter.js").Known} known
   * @param {string} all what nothing in the field means
   */
  know(known, all) {
    const { samples } = known;
    const keys = keysOf(known);
    const present = [...new Set(samples.label ?? [])].filter((label) => label >= 0).sort((a, b) => a - b);
    const labels = present.slice(0, 100).map((label) => `label:${samples.label_names?.[label] ?? label}`);
    const texts = [...labels, ...Object.keys(known.selections).map((name) => `is:${name}`)];
    const drawn = JSON.stringify([keys, texts, all]);
    if (drawn === this.known) return;
    this.known = drawn;
    this.input.placeholder = `${all}; a word, ${keys[0]}:…`;
    this.input.title = `Words that choose examples. A word is looked for in id, label and text; further ${keys.join(", ")}, each with a colon, numbers also with < and >. -… leaves out.`;
    put(
      this.suggestions,
      texts.map((value) => el("option", { value })),
    );
  }
}
