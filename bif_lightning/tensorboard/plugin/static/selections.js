/**
 * Selections: named sets of train examples or of queries, kept as the words that choose them (filter.js), and in the link.
 *
 * @typedef {"train" | "query"} Side
 * @typedef {{side: Side, name: string, words: string}} Selection
 */

import { button, el, put } from "./dom.js";
import { chosenBy, maskOf, quoted, termsOf } from "./filter.js";
import { shortened } from "./format.js";
import { MOST_ROWS, ranges } from "./pins.js";

const MOST = 20;

/**
 * @param {import("./state.js").State} state
 * @param {Side} side
 * @returns {Record<string, string>} words by name
 */
export function selectionsOf(state, side) {
  return Object.fromEntries(state.selections.filter((one) => one.side === side).map(({ name, words }) => [name, words]));
}

/**
 * As a word for a link.
 * @param {Selection[]} selections
 */
export function toWords(selections) {
  return selections.map(({ side, name, words }) => [side, name, words].map(encodeURIComponent).join(",")).join(";");
}

/**
 * @param {string} word from `toWords`
 * @returns {Selection[] | undefined} undefined where it is none
 */
export function fromWords(word) {
  try {
    const parts = word.split(";").map((one) => one.split(",").map(decodeURIComponent));
    const good = parts.every(([side, name, words]) => (side === "train" || side === "query") && name && words);
    return good ? parts.slice(0, MOST).map(([side, name, words]) => ({ side: /** @type {Side} */ (side), name, words })) : undefined;
  } catch {
    return undefined;
  }
}

/**
 * Words that choose what is chosen now, also where the numbers of a ranking are not known: as they are, or as rows.
 * @param {string} words
 * @param {string[]} passing keys whose numbers change with the ranking
 * @param {number[]} rows that they choose now
 * @param {boolean} asRows whether something else than the words chooses them as well
 * @throws {Error} there are too many rows for a list
 */
export function lasting(words, passing, rows, asRows) {
  if (!asRows && !termsOf(words).some(({ key }) => passing.includes(key.toLowerCase()))) return words;
  if (rows.length > MOST_ROWS) throw new Error(`A list of rows has at most ${MOST_ROWS.toLocaleString("en")}; choose fewer.`);
  return `rows:${ranges(rows)}`;
}

/**
 * Rows of one side that a view is restricted to.
 * @param {{api: import("./api.js").Api}} context
 * @param {import("./state.js").State} state
 * @param {import("./api.js").Run} run
 * @param {Side} side
 * @param {import("./api.js").Samples} samples
 * @returns {Promise<Uint8Array | null>} null where it shows all
 */
async function onlyOf({ api }, state, run, side, samples) {
  const name = side === "train" ? state.onlyTrain : state.onlyQuery;
  if (!name || samples.own_columns) return null;
  const known = { samples, numbers: {}, selections: selectionsOf(state, side), inTexts: finder(api, run, side) };
  const chosen = await chosenBy(`is:${quoted(name)}`, known);
  if (!chosen.includes(1)) throw new Error(`The selection ${name} has no ${side === "train" ? "train example" : "query"} of this run.`);
  return chosen;
}

/**
 * What a view is restricted to: masks of both sides, and the parameters that tell the server.
 * @param {{api: import("./api.js").Api}} context
 * @param {import("./state.js").State} state
 * @param {import("./api.js").Run} run
 * @param {{train: import("./api.js").Samples, query: import("./api.js").Samples}} samples
 * @returns {Promise<{train: Uint8Array | null, query: Uint8Array | null, only: Record<string, string | undefined>}>}
 */
export async function restrictionsOf(context, state, run, samples) {
  const [train, query] = await Promise.all([
    onlyOf(context, state, run, "train", samples.train),
    onlyOf(context, state, run, "query", samples.query),
  ]);
  const word = (/** @type {Uint8Array | null} */ mask) => (mask ? maskOf(mask) || undefined : undefined);
  return { train, query, only: { train_only: word(train), query_only: word(query) } };
}

/**
 * @param {Int32Array} order
 * @param {Uint8Array | null} chosen
 */
export function within(order, chosen) {
  return chosen ? order.filter((row) => chosen[row]) : order;
}

/**
 * @param {import("./api.js").Api} api
 * @param {import("./api.js").Run} run
 * @param {Side} side
 * @returns {(word: string) => Promise<Int32Array>} finds a word in whole texts
 */
export function finder(api, run, side) {
  return async (word) => {
    const { buffer } = await api.binary("found", { run: run.run, side, word, token: run.samples_token });
    return new Int32Array(buffer);
  };
}

/** The selections of one side beside the field of its words: each fills it in, and what it chooses can be named. */
export class SelectionsBar {
  /**
   * @param {import("./page.js").Context} context
   * @param {Side} side
   * @param {{words: (state: import("./state.js").State) => string, use: (words: string) => void,
   *   lasting: () => string}} of `lasting` gives words for what is chosen now, and throws where there are none
   */
  constructor(context, side, of) {
    this.context = context;
    this.side = side;
    this.of = of;
    this.list = el("span", { class: "selections", role: "group", "aria-label": side === "train" ? "Selections of train examples" : "Selections of queries" });
    this.name = el("input", {
      type: "text",
      class: "picker-input",
      placeholder: "name these",
      "aria-label": `Name of a selection of ${side === "train" ? "train examples" : "queries"}`,
      "data-name": `name-${side}`,
      on: { keydown: (/** @type {KeyboardEvent} */ event) => event.key === "Enter" && this.#keep() },
    });
    this.trouble = el("span", { class: "error", role: "alert" });
    this.form = el(
      "span",
      { class: "selections" },
      this.name,
      button({ label: "Keep what is chosen as a selection of this name", text: "Keep", name: `keep-${side}`, click: () => this.#keep() }),
    );
    this.element = el("span", { class: "selections" }, this.list, this.form, this.trouble);
    this.drawn = "";
  }

  /** @param {import("./state.js").State} state */
  show(state) {
    const own = state.selections.filter(({ side }) => side === this.side);
    const words = this.of.words(state);
    const drawn = JSON.stringify([own, words]);
    if (drawn === this.drawn) return;
    this.drawn = drawn;
    put(this.list, own.flatMap((one) => this.#chip(one, words)));
  }

  /**
   * @param {Selection} selection
   * @param {string} words that stand in the field
   */
  #chip({ name, words: chooses }, words) {
    const { store } = this.context;
    const term = `is:${quoted(name)}`;
    const on = words === term;
    return [
      button({
        label: `${name}: ${chooses}`,
        text: shortened(name, 24),
        name: `use-${this.side}-${name}`,
        pressed: on,
        click: () => this.of.use(on ? "" : term),
      }),
      button({
        label: `Forget the selection ${name}`,
        text: "×",
        name: `forget-${this.side}-${name}`,
        click: () => {
          const rest = store.state.selections.filter((one) => one.side !== this.side || one.name !== name);
          const only = this.side === "train" ? "onlyTrain" : "onlyQuery";
          store.set({ selections: rest, ...(store.state[only] === name ? { [only]: "" } : {}) });
          if (on) this.of.use("");
        },
      }),
    ];
  }

  #keep() {
    const { store } = this.context;
    const name = this.name.value.trim().replaceAll('"', "");
    try {
      if (!name) throw new Error("Give the selection a name.");
      const words = this.of.lasting();
      const others = store.state.selections.filter((one) => one.side !== this.side || one.name !== name);
      if (others.length >= MOST) throw new Error(`A link keeps at most ${MOST} selections; forget one.`);
      if (termsOf(words).some(({ key, value }) => key === "is" && value === name)) throw new Error(`${name} would be made of itself.`);
      this.trouble.textContent = "";
      this.name.value = "";
      store.set({ selections: [...others, { side: this.side, name, words }] });
    } catch (error) {
      this.trouble.textContent = /** @type {Error} */ (error).message;
    }
  }
}
