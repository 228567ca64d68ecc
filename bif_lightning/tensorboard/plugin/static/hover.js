/** What appears beside the pointer: who the two examples are, and the value with its error. */

import { announce } from "./a11y.js";
import { Latest } from "./api.js";
import { labelText, nameAt } from "./axes.js";
import { el, put } from "./dom.js";
import { measure, number, shortened } from "./format.js";
import { isPair } from "./pins.js";
import { quantityOf, verdictOn } from "./signs.js";
import { thumbnail } from "./example.js";

/** @typedef {import("./page.js").Context} Context */
/** @typedef {import("./heatmap.js").Cell} Cell */
/** @typedef {import("./source.js").Source} Source */

const WAIT = 90;
const GAP = 16;

/** The box beside the pointer. */
export class Hover {
  /** @param {Context} context */
  constructor(context) {
    this.context = context;
    this.element = el("div", { class: "hover", hidden: true, "aria-hidden": "true", "data-name": "hover" });
    document.body.append(this.element);
    this.latest = new Latest();
    this.waiting = 0;
  }

  hide() {
    this.element.hidden = true;
    this.latest.drop();
    clearTimeout(this.waiting);
  }

  /**
   * @param {Cell} cell
   * @param {PointerEvent | null} event null where a key moved the cursor
   * @param {Source} source
   * @param {import("./heatmap.js").Heatmap} heatmap
   */
  show(cell, event, source, heatmap) {
    const known = heatmap.valueAt(cell);
    const single = known?.error !== null && known !== null && !source.own;
    const value = el("p", { class: "hover-value" }, "…");
    const aside = el("p", { class: "hover-aside" });
    put(this.element, this.#examples(cell, source), value, aside);
    this.element.hidden = false;
    this.#place(event, heatmap);
    this.latest.drop();
    clearTimeout(this.waiting);
    if (single) this.#tell(cell, source, value, known.value, known.error);
    else {
      const size = source.own ? " × the query's own size" : "";
      if (known && known.rows * known.columns > 1) {
        const pairs = number(known.rows * known.columns, 2);
        put(aside, `Colour: mean of about ${pairs} pairs, ${number(known.value)}${size}`);
      } else if (known && source.own) put(aside, `Colour: ${number(known.value)}${size}`);
      // The pointer passes over many cells; only where it rests is the server asked.
      this.waiting = window.setTimeout(() => this.#ask(cell, source, value), WAIT);
    }
  }

  /**
   * @param {Cell} cell
   * @param {Source} source
   * @param {HTMLElement} value
   */
  #ask(cell, source, value) {
    const { store, book, api } = this.context;
    const shown = book.shown(store.state);
    const pin = source.pinOf(cell);
    if (!shown || !isPair(pin)) return;
    const { matrix } = store.state;
    void this.latest.take(
      api.json("cell", {
        run: shown.run.run,
        step: shown.step.step,
        matrix,
        train: pin.train[0],
        query: pin.query[0],
        token: shown.step.token,
      }),
      ({ values }) => {
        const of = values[matrix] ?? values[matrix.split(":").at(-1) ?? ""];
        this.#tell(cell, source, value, of?.value ?? NaN, of?.standard_error ?? null);
      },
      (error) => put(value, error.message),
    );
  }

  /**
   * @param {Cell} cell
   * @param {Source} source
   * @param {HTMLElement} place
   * @param {number} value
   * @param {number | null} error
   */
  #tell(cell, source, place, value, error) {
    const quantity = quantityOf(this.context.store.state.matrix);
    const [text, says] = [measure(value, error, quantity.unit), verdictOn(quantity, value, error)];
    put(place, el("strong", {}, text), el("span", {}, says));
    announce(`train ${nameAt(source.train, cell.train)}, query ${nameAt(source.query, cell.query)}: ${text}, ${says}`);
  }

  /**
   * @param {Cell} cell
   * @param {Source} source
   */
  #examples(cell, source) {
    return el(
      "div",
      { class: "hover-pair" },
      this.#example("train", source.train, cell.train, source.classes),
      this.#example("query", source.query, cell.query, source.classes),
    );
  }

  /**
   * @param {"train" | "query"} side
   * @param {import("./axes.js").Axis} axis
   * @param {number} at
   * @param {boolean} classes
   */
  #example(side, axis, at, classes) {
    const row = axis.order[at];
    const shown = this.context.book.shown(this.context.store.state);
    const label = labelText(axis.samples, row);
    const text = axis.samples.text_head?.[row];
    return el(
      "div",
      { class: "hover-one" },
      !classes && shown ? thumbnail(this.context.api, shown.run, side, row, axis.samples) : null,
      el("span", { class: "overline" }, classes ? `${side} class` : side),
      el("span", { class: "hover-id" }, shortened(nameAt(axis, at), 40)),
      label ? el("span", { class: "chip" }, shortened(label, 24)) : null,
      text ? el("span", { class: "hover-text" }, shortened(text, 80)) : null,
    );
  }

  /**
   * @param {PointerEvent | null} event
   * @param {import("./heatmap.js").Heatmap} heatmap
   */
  #place(event, heatmap) {
    const box = heatmap.canvas.getBoundingClientRect();
    const [x, y] = event ? [event.clientX, event.clientY] : [box.left + box.width / 2, box.bottom - 140];
    const { offsetWidth, offsetHeight } = this.element;
    const isRight = x > box.left + box.width / 2 || x + GAP + offsetWidth > window.innerWidth;
    const left = isRight ? x - GAP - offsetWidth : x + GAP;
    const top = y + GAP + offsetHeight > window.innerHeight ? y - GAP - offsetHeight : y + GAP;
    this.element.style.left = `${Math.max(left, 4)}px`;
    this.element.style.top = `${Math.max(top, 4)}px`;
  }
}
