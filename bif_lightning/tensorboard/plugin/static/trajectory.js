/** Curves of the chosen pair or block and of the pinned ones over training, with their bands and certain changes. */

import { Latest } from "./api.js";
import { tokenOfAll } from "./book.js";
import { Chart, isEven } from "./chart.js";
import { lineColour } from "./colours.js";
import { nameOf, pinsOf, sentence } from "./curves.js";
import { button, el, put, segments } from "./dom.js";
import { measure } from "./format.js";
import { icon } from "./icons.js";
import { toParameters, toWord } from "./pins.js";
import { quantityOf } from "./signs.js";
import { saveMenu } from "./export.js";

/** @typedef {import("./page.js").Context} Context */
/** @typedef {import("./state.js").State} State */
/** @typedef {import("./pins.js").Pin} Pin */
/**
 * @typedef {object} Trajectory
 * @property {number[]} steps
 * @property {(number | null)[]} value
 * @property {(number | null)[]} standard_error
 * @property {(number | null)[]} low
 * @property {(number | null)[]} high
 * @property {string} band
 * @property {{kind: string, step: number, text: string}[]} changes
 * @property {string} [error_kind]
 * @property {{step: number, why: string}[]} [missing]
 */

const MOST = 7;

/** The panel with the chart. */
export class TrajectoryView {
  /** @param {Context} context */
  constructor(context) {
    this.context = context;
    this.chart = new Chart({
      height: 200,
      label: "Curves over training; the list below names them and their changes.",
      choose: (step) => context.goTo(step),
      point: (place) => this.#list(place),
    });
    this.head = el("p", { class: "meaning" });
    this.list = el("ul", { class: "curves", "data-name": "curves" });
    this.changes = el("ul", { class: "changes", "data-name": "changes" });
    this.tools = el("div", { class: "spacing" });
    this.empty = el(
      "p",
      { class: "hint" },
      "Click a cell of the heatmap to see how its influence evolved; shift-drag a block for the mean over it.",
    );
    this.body = el("div", { hidden: true }, this.head, this.chart.element, this.list, this.changes);
    this.element = el(
      "section",
      { class: "panel", "aria-label": "Trajectory" },
      el(
        "div",
        { class: "panel-head" },
        el("h2", { class: "panel-title" }, "Over training"),
        el("span", { class: "grow" }),
        this.tools,
        saveMenu(context, {
          name: "trajectory",
          image: () => this.#image(),
          table: () => this.#csv(),
        }),
      ),
      this.empty,
      this.body,
    );
    this.latest = new Latest();
    /** @type {{pin: Pin, of: Trajectory, name: string}[]} */
    this.curves = [];
    /** @type {import("./chart.js").Drawing | null} */
    this.drawing = null;
  }

  #image() {
    const { state } = this.context.store;
    const { unit } = quantityOf(state.matrix);
    const tiles = this.drawing ? this.chart.tiles(unit ? `${this.#title()}, ${unit}` : this.#title()) : [];
    return tiles.length ? { title: state.run, note: "", tiles, dark: this.context.dark } : null;
  }

  /** @param {State} state */
  update(state) {
    const shown = this.context.book.shown(state);
    const pins = pinsOf(state);
    this.empty.hidden = pins.length > 0;
    this.body.hidden = this.tools.hidden = pins.length === 0;
    if (!shown || !pins.length) {
      this.latest.drop();
      this.drawing = null;
      return;
    }
    const { run } = shown;
    void this.latest.take(
      Promise.all(pins.map((pin) => this.#ask(state, run, pin))),
      (curves) => {
        this.curves = curves;
        this.#draw(state);
      },
      (error) => put(this.changes, el("li", { class: "error" }, error.message)),
    );
  }

  /**
   * @param {State} state
   * @param {import("./api.js").Run} run
   * @param {Pin} pin
   */
  async #ask(state, run, pin) {
    const { api, book } = this.context;
    const [of, train, query] = await Promise.all([
      api.json("trajectory", { run: run.run, matrix: state.matrix, ...toParameters(pin), token: tokenOfAll(run) }),
      book.samples(run, "train"),
      book.samples(run, "query", state.matrix),
    ]);
    return { pin, of, name: nameOf(pin, train, query) };
  }

  /** @param {State} state */
  #draw(state) {
    const shown = this.context.book.shown(state);
    const first = this.curves[0];
    if (!shown || !first) return;
    const { steps } = first.of;
    const quantity = quantityOf(state.matrix);
    this.drawing = {
      steps,
      curves: this.curves.map(({ of, name }, place) => ({
        name,
        colour: lineColour(place, this.context.dark),
        value: of.value,
        low: of.low,
        high: of.high,
        marks: of.changes
          .map(({ step, kind }) => ({ place: steps.indexOf(step), kind }))
          .filter((one) => one.place >= 0),
      })),
      shown: steps.includes(shown.step.step) ? steps.indexOf(shown.step.step) : null,
      zero: true,
      even: isEven(steps, state.spacing),
      limits: quantity.formula.startsWith("Corr") ? [-1.02, 1.02] : undefined,
      label: "training step",
      dark: this.context.dark,
    };
    this.chart.show(this.drawing);
    put(
      this.head,
      sentence(
        quantity,
        this.curves.map((curve) => curve.of),
      ),
    );
    this.#list(null);
    this.#changes();
    this.#tools(state, steps);
    this.element.dataset.curves = this.curves.map(({ pin }) => toWord(pin)).join(";");
  }

  /** @param {number | null} place of the pointer; null for the step that is shown */
  #list(place) {
    const { state } = this.context.store;
    const quantity = quantityOf(state.matrix);
    const at = place ?? this.drawing?.shown ?? null;
    const rows = this.curves.map(({ pin, of, name }, number) => {
      const text = at === null ? "" : measure(of.value[at], of.standard_error[at], quantity.unit);
      const step = at === null ? "" : `step ${of.steps[at].toLocaleString("en")}`;
      return el(
        "li",
        { class: "curve" },
        el("span", { class: "swatch", style: { background: lineColour(number, this.context.dark) } }),
        el("span", { class: "curve-name", title: name }, name),
        el("span", { class: "curve-value tabular" }, text, el("small", {}, step)),
        this.#pinButton(state, pin),
      );
    });
    put(this.list, rows);
  }

  /**
   * @param {State} state
   * @param {Pin} pin
   */
  #pinButton(state, pin) {
    const { store } = this.context;
    const word = toWord(pin);
    if (state.pins.some((one) => toWord(one) === word)) {
      const rest = state.pins.filter((one) => toWord(one) !== word);
      const chosen = state.chosen && toWord(state.chosen) === word ? null : state.chosen;
      return button({
        label: "Remove this curve",
        icon: icon("close"),
        name: "unpin",
        click: () => store.set({ pins: rest, chosen }),
      });
    }
    return button({
      label: "Pin this curve, to compare it with others (p)",
      icon: icon("pin"),
      name: "pin",
      click: () => this.pin(),
    });
  }

  /** Keep the chosen curve while others are chosen. */
  pin() {
    const { store } = this.context;
    const { chosen, pins } = store.state;
    if (chosen && !pins.some((one) => toWord(one) === toWord(chosen)))
      store.set({ pins: [...pins, chosen].slice(-MOST) });
  }

  #changes() {
    const found = this.curves.flatMap(({ of }, place) => of.changes.map((change) => this.#change(change, place)));
    const none = el("li", { class: "hint" }, "No sign change and no peak lies outside the band.");
    const missing = (this.curves[0]?.of.missing ?? []).map(({ step, why }) =>
      el("li", { class: "hint" }, `Step ${step.toLocaleString("en")} is left out: ${why}`),
    );
    put(this.changes, found.length ? found : none, missing);
  }

  /**
   * @param {{kind: string, step: number, text: string}} change
   * @param {number} place of its curve
   */
  #change({ kind, step, text }, place) {
    const colour = lineColour(place, this.context.dark);
    return el(
      "li",
      {},
      el("span", { class: `change ${kind}`, style: { color: colour }, "aria-hidden": "true" }, MARKS[kind] ?? "•"),
      el("button", { type: "button", class: "text-button", on: { click: () => this.context.goTo(step) } }, text),
    );
  }

  /**
   * @param {State} state
   * @param {number[]} steps
   */
  #tools(state, steps) {
    put(
      this.tools,
      segments({
        label: "Spacing of the steps",
        name: "spacing",
        options: [
          { value: "even", text: "Even steps", title: "Equal distances between snapshots" },
          { value: "scale", text: "To scale", title: "Snapshots at their training step" },
        ],
        value: isEven(steps, state.spacing) ? "even" : "scale",
        change: (spacing) => this.context.store.set({ spacing }),
      }),
    );
  }

  #title() {
    const { state } = this.context.store;
    return `${quantityOf(state.matrix).name} over training: ${this.curves.map((curve) => curve.name).join("; ")}`;
  }

  #csv() {
    const pin = this.context.store.state.chosen ?? this.context.store.state.pins[0];
    return pin ? { what: "trajectory", ...toParameters(pin) } : null;
  }
}

/** @type {Record<string, string>} */
const MARKS = { flip: "○", peak: "▲", trough: "▼" };
