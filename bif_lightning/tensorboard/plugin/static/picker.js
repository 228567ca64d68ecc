/** A field that finds an example by its id, label or text, as one types. */

import { labelText } from "./axes.js";
import { el, put } from "./dom.js";
import { shortened } from "./format.js";

const MOST = 12;
let count = 0;

/** A combobox after the ARIA pattern: arrows move, Enter takes, Escape closes. */
export class Picker {
  /**
   * @param {{label: string, name: string, choose: (row: number) => void, hint?: string}} options
   */
  constructor({ label, name, choose, hint = "find by id, label or text" }) {
    count += 1;
    const id = `picker-${count}`;
    this.choose = choose;
    this.input = el("input", {
      type: "text",
      class: "picker-input",
      role: "combobox",
      autocomplete: "off",
      spellcheck: "false",
      "aria-expanded": "false",
      "aria-autocomplete": "list",
      "aria-controls": id,
      "aria-label": label,
      "data-name": name,
      placeholder: hint,
      on: {
        input: () => this.#open(),
        focus: () => this.input.select(),
        click: () => this.#open(),
        keydown: (/** @type {KeyboardEvent} */ event) => this.#key(event),
        blur: () => this.#close(),
      },
    });
    this.list = el("ul", { class: "picker-list", role: "listbox", id, hidden: true });
    this.element = el("div", { class: "picker" }, this.input, this.list);
    /** @type {import("./api.js").Samples | null} */
    this.samples = null;
    /** @type {number[]} */
    this.rows = [];
    this.active = -1;
    this.shown = "";
  }

  /**
   * @param {import("./api.js").Samples} samples
   * @param {number | null} row that is chosen
   */
  show(samples, row) {
    this.samples = samples;
    this.shown = row === null ? "" : (samples.id[row] ?? "");
    if (document.activeElement !== this.input) this.input.value = this.shown;
  }

  #open() {
    const { samples } = this;
    if (!samples) return;
    const word = this.input.value === this.shown ? "" : this.input.value.trim().toLowerCase();
    this.rows = found(samples, word, MOST + 1);
    const more = this.rows.length > MOST;
    this.rows = this.rows.slice(0, MOST);
    this.active = -1;
    put(
      this.list,
      this.rows.map((row, place) =>
        el(
          "li",
          {
            role: "option",
            id: `${this.list.id}-${place}`,
            // Before the field loses the focus, which closes the list.
            on: { mousedown: (/** @type {Event} */ event) => (event.preventDefault(), this.#take(row)) },
          },
          el("span", { class: "id" }, shortened(samples.id[row], 40)),
          labelText(samples, row) ? el("span", { class: "chip" }, shortened(labelText(samples, row), 20)) : null,
          samples.text_head?.[row] ? el("span", { class: "picker-text" }, shortened(samples.text_head[row], 60)) : null,
        ),
      ),
      this.rows.length ? null : el("li", { class: "hint" }, "nothing matches"),
      more ? el("li", { class: "hint" }, `the first ${MOST}; type more to find others`) : null,
    );
    this.list.hidden = false;
    this.input.setAttribute("aria-expanded", "true");
  }

  #close() {
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
    this.input.value = this.shown;
  }

  /** @param {number} row */
  #take(row) {
    this.shown = this.samples?.id[row] ?? "";
    this.#close();
    this.choose(row);
  }

  /** @param {KeyboardEvent} event */
  #key(event) {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      if (this.list.hidden) this.#open();
      this.#move(event.key === "ArrowDown" ? 1 : -1);
    } else if (event.key === "Enter" && this.rows.length && !this.list.hidden)
      this.#take(this.rows[Math.max(this.active, 0)]);
    else if (event.key === "Escape") this.#close();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /** @param {number} by */
  #move(by) {
    if (!this.rows.length) return;
    this.active = (this.active + by + this.rows.length) % this.rows.length;
    [...this.list.querySelectorAll("[role=option]")].forEach((child, place) =>
      child.setAttribute("aria-selected", String(place === this.active)),
    );
    this.list.children[this.active].scrollIntoView({ block: "nearest" });
    this.input.setAttribute("aria-activedescendant", `${this.list.id}-${this.active}`);
  }
}

/**
 * @param {import("./api.js").Samples} samples
 * @param {string} word in lower case
 * @param {number} most rows
 * @returns {number[]} rows; those whose id begins with it first
 */
function found(samples, word, most) {
  if (!word) return samples.id.slice(0, most).map((_, row) => row);
  /** @type {number[]} */
  const first = [];
  /** @type {number[]} */
  const rest = [];
  for (let row = 0; row < samples.id.length && first.length < most; row += 1) {
    const id = samples.id[row].toLowerCase();
    if (id.startsWith(word)) first.push(row);
    else if (
      rest.length < most &&
      `${id} ${labelText(samples, row)} ${samples.text_head?.[row] ?? ""}`.toLowerCase().includes(word)
    ) {
      rest.push(row);
    }
  }
  return [...first, ...rest].slice(0, most);
}
