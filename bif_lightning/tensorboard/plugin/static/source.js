/**
 * Where the cells of the heatmap come from: the matrix itself, or its class by class means. Both look alike to the
 * heatmap.
 *
 * @typedef {import("./api.js").Picture} Picture
 * @typedef {import("./axes.js").Axis} Axis
 * @typedef {import("./state.js").Window} Window
 * @typedef {import("./heatmap.js").Cell} Cell
 * @typedef {import("./pins.js").Pin} Pin
 * @typedef {object} Source
 * @property {Axis} train
 * @property {Axis} query
 * @property {(window: Window, room: {height: number, width: number}) => Promise<Picture>} picture
 * @property {(cell: Cell) => Pin} pinOf
 * @property {(pin: Pin) => Cell | null} cellOf where a pair or a block of classes lies, null where it has no cell
 * @property {{train: string, query: string}} titles of the axes
 * @property {boolean} classes
 * @property {Record<string, string | undefined>} only masks of the rows and columns that are shown; empty for all
 * @property {boolean} own whether each column has a scale of its own, so that pictures hold no values
 */

import { isPair, pair } from "./pins.js";
import { labelName } from "./axes.js";
import { restrictionsOf, within } from "./selections.js";
import { hasOwnColumns, orderOf, orderParameters } from "./book.js";
import { quantityOf } from "./signs.js";

/**
 * @param {import("./api.js").Api} api
 * @param {import("./book.js").Book} book
 * @param {import("./state.js").State} state
 * @param {{run: import("./api.js").Run, step: import("./api.js").Step}} shown
 * @returns {Promise<Source>}
 */
export function sourceOf(api, book, state, shown) {
  return state.grouped ? classSource(api, state, shown) : matrixSource(api, book, state, shown);
}

/**
 * @param {import("./api.js").Api} api
 * @param {import("./book.js").Book} book
 * @param {import("./state.js").State} state
 * @param {{run: import("./api.js").Run, step: import("./api.js").Step}} shown
 * @returns {Promise<Source>}
 */
async function matrixSource(api, book, state, { run, step }) {
  const [trainSamples, querySamples, wholeTrain, wholeQuery] = await Promise.all([
    book.samples(run, "train"),
    book.samples(run, "query", state.matrix),
    book.order(run, state, "train"),
    book.order(run, state, "query"),
  ]);
  const samples = { train: trainSamples, query: querySamples };
  const { train, query, only } = await restrictionsOf({ api }, state, run, samples);
  const [trainOrder, queryOrder] = [within(wholeTrain, train), within(wholeQuery, query)];
  return {
    train: { order: trainOrder, samples: trainSamples, by: orderOf(run, state, "train").by },
    query: { order: queryOrder, samples: querySamples, by: orderOf(run, state, "query").by },
    picture: (window, room) => api.picture("view", { ...viewParameters(state, { run, step }, window, room), ...only }),
    only,
    pinOf: (cell) => pair(trainOrder[cell.train], queryOrder[cell.query]),
    cellOf(pin) {
      if (!isPair(pin)) return null;
      const [train, query] = [trainOrder.indexOf(pin.train[0]), queryOrder.indexOf(pin.query[0])];
      return train < 0 || query < 0 ? null : { train, query };
    },
    titles: {
      train: train ? `train examples in ${state.onlyTrain}` : "train examples",
      query: query ? `query examples in ${state.onlyQuery}` : querySamples.own_columns ? `values of ${quantityOf(state.matrix).observable}` : "query examples",
    },
    classes: false,
    own: state.scaling === "column",
  };
}

/**
 * @param {import("./state.js").State} state
 * @param {{run: import("./api.js").Run, step: import("./api.js").Step}} shown
 * @param {Window} window
 * @param {{height: number, width: number}} room
 */
function viewParameters(state, { run, step }, [r0, r1, c0, c1], room) {
  const scaling = state.scaling === "column" ? state.scaling : undefined;
  const of = { run: run.run, step: step.step, matrix: state.matrix, scaling, ...orderParameters(run, state) };
  return { ...of, r0, r1, c0, c1, ...room, token: step.token };
}

/**
 * Ask for the picture of the whole matrix before names and orders are there; `picture` then finds the answer.
 * @param {import("./api.js").Api} api
 * @param {import("./state.js").State} state
 * @param {{run: import("./api.js").Run, step: import("./api.js").Step}} shown
 * @param {{height: number, width: number}} room
 */
export function askEarly(api, state, shown, room) {
  const { run } = shown;
  if (state.grouped || state.onlyTrain || state.onlyQuery || hasOwnColumns(run, state.matrix)) return;
  api.picture("view", viewParameters(state, shown, [0, run.num_train, 0, run.num_query], room)).catch(() => undefined);
}

/**
 * @param {import("./api.js").Api} api
 * @param {import("./state.js").State} state
 * @param {{run: import("./api.js").Run, step: import("./api.js").Step}} shown
 * @returns {Promise<Source>}
 */
async function classSource(api, state, { run, step }) {
  const answer = await api.json("classes", {
    run: run.run,
    step: step.step,
    matrix: state.matrix,
    token: step.token,
  });
  const [train, query] = [
    classAxis(answer.train_label, answer.train_name),
    classAxis(answer.query_label, answer.query_name),
  ];
  const whole = pictureOf(answer);
  return {
    train,
    query,
    picture: async () => whole,
    pinOf: (cell) => ({ trainClass: answer.train_label[cell.train], queryClass: answer.query_label[cell.query] }),
    cellOf(pin) {
      if (!("trainClass" in pin)) return null;
      const cell = {
        train: answer.train_label.indexOf(pin.trainClass),
        query: answer.query_label.indexOf(pin.queryClass),
      };
      return cell.train < 0 || cell.query < 0 ? null : cell;
    },
    titles: { train: "train classes", query: "query classes" },
    classes: true,
    only: {},
    own: false,
  };
}

/**
 * @param {number[]} labels
 * @param {string[] | null} names of these labels
 * @returns {Axis}
 */
function classAxis(labels, names) {
  const id = labels.map((label, place) => names?.[place] ?? labelName(label, null));
  const samples = { id, index: labels, label: null, label_names: null, columns: {}, text_head: null };
  return { order: Int32Array.from(labels, (_, place) => place), samples, by: "dataset" };
}

/**
 * @param {{value: (number | null)[][], standard_error: (number | null)[][]}} answer
 * @returns {Picture}
 */
function pictureOf({ value, standard_error }) {
  const [height, width] = [value.length, value[0]?.length ?? 0];
  const flat = (/** @type {(number | null)[][]} */ rows) => Float32Array.from(rows.flat(), (one) => one ?? NaN);
  const values = flat(value);
  const scale = values.reduce((most, one) => (Math.abs(one) > most ? Math.abs(one) : most), 0);
  return {
    height,
    width,
    values,
    errors: flat(standard_error),
    pooled: false,
    scale,
    largest: scale,
    window: [0, height, 0, width],
    headers: new Headers(),
  };
}
