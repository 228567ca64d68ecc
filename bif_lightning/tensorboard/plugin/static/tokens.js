/**
 * Two sequences, token by token. Each token of one side is coloured by its effect with the token of the other side
 * under the pointer; while none is, by that with the loss of the whole other sequence.
 *
 * @typedef {object} TokenSide
 * @property {string[]} tokens
 * @property {boolean} [named] whether their texts are known
 * @property {(number | null)[]} [loss]
 * @property {(number | null)[]} whole effect with the whole other sequence
 * @property {(number | null)[]} whole_standard_error
 * @typedef {object} Tokens
 * @property {TokenSide} train
 * @property {TokenSide} query
 * @property {(number | null)[][]} value train tokens x query tokens
 * @property {(number | null)[][] | null} standard_error
 */

import { Latest } from "./api.js";
import { colour, css, inkOn } from "./colours.js";
import { el, put } from "./dom.js";
import { isClear, isKnown, measure, number, roundUp } from "./format.js";
import { announce } from "./a11y.js";
import { quantityOf, verdictOn } from "./signs.js";

/** @typedef {"train" | "query"} Side */

/**
 * Tokens have no conditioned influence, and observables have no tokens.
 * @param {import("./api.js").Run} run
 * @param {string} matrix
 */
export function hasTokens(run, matrix) {
  return run.has.tokens && (matrix === "correlation" || matrix === "influence");
}

/** Part of the chosen pair's panel; hidden where the dump has no tokens. */
export class TokenView {
  /** @param {import("./page.js").Context} context */
  constructor(context) {
    this.context = context;
    this.readout = el("p", { class: "token-readout", "data-name": "token-readout" });
    this.unnamed = el(
      "p",
      { class: "hint", hidden: true },
      "#1, #2, ... are positions: the run has no texts of tokens. Give the callback a tokenizer to see them.",
    );
    this.boxes = { train: this.#box("train"), query: this.#box("query") };
    this.element = el(
      "div",
      { class: "tokens", hidden: true, "data-name": "tokens" },
      el(
        "p",
        { class: "meaning" },
        "Point at a token to colour the tokens of the other side by their effect with it. Click to keep the selection.",
      ),
      el("div", { class: "token-sides" }, this.#side("train", "train example"), this.#side("query", "query")),
      this.readout,
      this.unnamed,
    );
    this.latest = new Latest();
    /** @type {Tokens | null} */
    this.data = null;
    /** @type {{side: Side, at: number} | null} */
    this.kept = null;
    this.of = "";
  }

  /**
   * @param {import("./state.js").State} state
   * @param {{run: import("./api.js").Run, step: import("./api.js").Step}} shown
   * @param {number} train row
   * @param {number} query row
   */
  update(state, { run, step }, train, query) {
    this.element.hidden = !hasTokens(run, state.matrix);
    if (this.element.hidden) return;
    const of = `${run.run} ${train} ${query}`;
    if (of !== this.of) this.kept = null;
    this.of = of;
    const parameters = { run: run.run, step: step.step, train, query, matrix: state.matrix, token: step.token };
    void this.latest.take(
      this.context.api.json("tokens", parameters),
      (data) => this.#show(data),
      (error) => {
        this.data = null;
        put(this.boxes.train);
        put(this.boxes.query);
        put(this.readout, error.message);
      },
    );
  }

  /** @param {Tokens} data */
  #show(data) {
    this.data = data;
    this.quantity = quantityOf(this.context.store.state.matrix);
    this.scale = fullColour(data.value.flat());
    this.wholeScale = fullColour([...data.train.whole, ...data.query.whole]);
    this.unnamed.hidden = data.train.named !== false && data.query.named !== false;
    for (const side of /** @type {Side[]} */ (["train", "query"])) {
      put(
        this.boxes[side],
        data[side].tokens.map((text, at) => this.#token(text, at)),
      );
    }
    this.#paint(this.kept);
    this.element.dataset.of = this.of;
  }

  /** @param {Side} side */
  #box(side) {
    const at = (/** @type {Event} */ event) => {
      const token = /** @type {Element} */ (event.target).closest?.("[data-at]");
      return token ? { side, at: Number(/** @type {HTMLElement} */ (token).dataset.at) } : null;
    };
    return el("div", {
      class: "token-text",
      role: "group",
      "aria-label": `tokens of the ${side} example; arrow keys move between them`,
      "data-name": `tokens-${side}`,
      on: {
        pointerover: (/** @type {Event} */ event) => this.#paint(at(event) ?? this.kept),
        pointerleave: () => this.#paint(this.kept),
        focusin: (/** @type {Event} */ event) => this.#paint(at(event) ?? this.kept, true),
        focusout: () => this.#paint(this.kept),
        click: (/** @type {Event} */ event) => this.#keep(at(event)),
        keydown: (/** @type {KeyboardEvent} */ event) => this.#key(event, side),
      },
    });
  }

  /**
   * @param {Side} side
   * @param {string} title
   */
  #side(side, title) {
    return el("div", { class: "token-side" }, el("span", { class: "overline" }, title), this.boxes[side]);
  }

  /**
   * @param {string} text
   * @param {number} at
   */
  #token(text, at) {
    const visible = text.replaceAll("\n", "⏎\n").replaceAll("\t", "⇥\t");
    return el(
      "span",
      { class: "token", "data-at": at, tabindex: at === 0 ? "0" : "-1", role: "button", "aria-label": spoken(text) },
      visible || "∅",
    );
  }

  /** @param {{side: Side, at: number} | null} token */
  #keep(token) {
    const same = token && this.kept && token.side === this.kept.side && token.at === this.kept.at;
    this.kept = same ? null : token;
    this.#paint(this.kept);
  }

  /**
   * @param {{side: Side, at: number} | null} token that is looked from
   * @param {boolean} [aloud]
   */
  #paint(token, aloud = false) {
    const { data } = this;
    if (!data) return;
    const { dark } = this.context;
    const quantity = this.quantity ?? quantityOf("correlation");
    for (const side of /** @type {Side[]} */ (["train", "query"])) {
      const values = token?.side === side ? null : valuesOf(data, side, token);
      const scale = (token ? this.scale : this.wholeScale) ?? 1;
      [...this.boxes[side].children].forEach((child, at) => {
        const one = values?.[at];
        const shown = one && (one.error === null || isClear(one.value, one.error)) ? one.value / scale : 0;
        const rgb = one && isKnown(one.value) ? colour(shown, dark) : null;
        child.style.background = rgb ? css(rgb) : "";
        child.style.color = rgb ? inkOn(rgb) : "";
        child.classList.toggle("from", token?.side === side && token.at === at);
        child.classList.toggle("kept", this.kept?.side === side && this.kept.at === at);
        child.title = one ? said(quantity, one, isKnown(data[side].loss?.[at])) : "";
      });
    }
    this.#read(token, aloud);
  }

  /**
   * @param {{side: Side, at: number} | null} token
   * @param {boolean} aloud
   */
  #read(token, aloud) {
    const { data } = this;
    if (!data) return;
    const quantity = this.quantity ?? quantityOf("correlation");
    if (!token) {
      put(
        this.readout,
        `No token selected: colours are the ${quantity.name} of each token's loss with the loss of the whole other side ` +
          "(the sum of its tokens' losses). Without a colour: within its error of zero.",
      );
      return;
    }
    const other = token.side === "train" ? "query" : "train";
    const all = valuesOf(data, other, token)
      .map((one, at) => ({ ...one, at }))
      .filter((one) => isClear(one.value, one.error ?? 0))
      .sort((a, b) => Math.abs(b.value) - Math.abs(a.value));
    const strongest = all[0];
    const loss = data[token.side].loss?.[token.at];
    const text =
      `${spoken(data[token.side].tokens[token.at])}${isKnown(loss) ? `, loss ${number(loss)} nat` : ""}. ` +
      (strongest
        ? `Strongest in the ${other}: ${spoken(data[other].tokens[strongest.at])}, ${measure(strongest.value, strongest.error, quantity.unit)}.`
        : `No token of the ${other} differs from zero by more than its error.`);
    put(this.readout, text);
    if (aloud) announce(text);
  }

  /**
   * @param {KeyboardEvent} event
   * @param {Side} side
   */
  #key(event, side) {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const children = /** @type {HTMLElement[]} */ ([...this.boxes[side].children]);
    const now = children.indexOf(/** @type {HTMLElement} */ (document.activeElement));
    if (by && now >= 0) {
      const next = children[Math.min(Math.max(now + by, 0), children.length - 1)];
      children[now].tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    } else if (event.key === "Enter" || event.key === " ") this.#keep(now >= 0 ? { side, at: now } : null);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }
}

/**
 * What colours the tokens of a side.
 * @param {Tokens} data
 * @param {Side} side that is coloured
 * @param {{side: Side, at: number} | null} token of the other side; null: the whole of it
 * @returns {{value: number, error: number | null}[]} an error is null where none was asked for, of very long pairs
 */
function valuesOf
({ value, standard_error, ...sides }, side, token) {
  const { tokens, whole, whole_standard_error } = sides[side];
  return tokens.map((_, at) => {
    if (!token) return { value: whole[at] ?? NaN, error: whole_standard_error[at] ?? NaN };
    const entry = (/** @type {(number | null)[][]} */ of) =>
      (side === "train" ? of[at]?.[token.at] : of[token.at]?.[at]) ?? NaN;
    return { value: entry(value), error: standard_error ? entry(standard_error) : null };
  });
}

/**
 * @param {(number | null)[]} values
 * @returns {number} the value of full colour
 */
function fullColour(values) {
  const sizes = values
    .filter(isKnown)
    .map(Math.abs)
    .sort((a, b) => a - b);
  return roundUp(sizes[Math.floor(0.99 * (sizes.length - 1))] ?? 1);
}

/**
 * @param {import("./signs.js").Quantity} quantity
 * @param {{value: number, error: number | null}} one
 * @param {boolean} hasLoss
 */
function said(quantity, { value, error }, hasLoss) {
  if (!hasLoss) return "no loss: nothing predicts this token";
  return `${measure(value, error, quantity.unit)}: ${verdictOn(quantity, value, error)}`;
}

/** @param {string} text */
function spoken(text) {
  return `“${text.replaceAll("\n", "⏎").replaceAll(" ", "␣")}”`;
}
