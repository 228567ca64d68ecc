/**
 * What is known of the runs: their steps, their examples, and the orders of their rows. Each is asked for once.
 *
 * @typedef {import("./api.js").Run} Run
 * @typedef {import("./api.js").Step} Step
 * @typedef {import("./api.js").Samples} Samples
 * @typedef {import("./state.js").State} State
 * @typedef {"train" | "query"} Side
 */

/** The runs under the log folder. */
export class Book {
  /** @param {import("./api.js").Api} api */
  constructor(api) {
    this.api = api;
    /** @type {Run[]} */
    this.runs = [];
    /** @type {string[]} */
    this.notes = [];
    /** @type {Map<string, Promise<any>>} */
    this.asked = new Map();
    this.loaded = "";
  }

  /** @returns {Promise<boolean>} whether anything is new */
  async refresh() {
    const answer = await this.api.json("runs");
    const loaded = JSON.stringify(answer);
    const isNew = loaded !== this.loaded;
    this.loaded = loaded;
    this.runs = answer.runs;
    this.notes = answer.notes ?? [];
    return isNew;
  }

  /**
   * @param {string} name
   * @returns {Run | undefined}
   */
  run(name) {
    return this.runs.find((run) => run.run === name);
  }

  /** @returns {Run | undefined} the run that was written last, as one that is being trained */
  newest() {
    return this.listed()[0];
  }

  /** @returns {Run[]} those with dumps, the one that was written last first */
  listed() {
    return this.runs.filter((run) => run.steps.length).sort((a, b) => (b.written ?? 0) - (a.written ?? 0));
  }

  /**
   * @param {State} state
   * @returns {{run: Run, step: Step, place: number} | null} null where there is nothing to show
   */

  shown(state) {
    const run = this.run(state.run);
    if (!run?.steps.length) return null;
    const place = placeOf(run, state.step);
    return { run, step: run.steps[place], place };
  }

  /**
   * @param {Run} run
   * @param {Side} side
   * @param {string} [matrix] an observable's may have columns of its own
   * @returns {Promise<Samples>}
   */
  samples(run, side, matrix = "") {
    const of = side === "query" && matrix.includes(":") ? { matrix, step: run.steps[0]?.step } : {};
    return this.#once(`samples ${run.run} ${side} ${run.samples_token} ${of.matrix ?? ""}`, () =>
      this.api.json("samples", { run: run.run, side, ...of, token: run.samples_token }),
    );
  }

  /**
   * @param {Run} run
   * @param {State} state
   * @param {Side} side
   * @returns {Promise<Int32Array>} the row of the dump at each position
   */
  order(run, state, side) {
    const { by, column } = orderOf(run, state, side);
    const parameters = { run: run.run, matrix: state.matrix, side, by, column, at: state.at ?? undefined };
    return this.#once(`order ${JSON.stringify(parameters)} ${run.samples_token}`, async () => {
      const { buffer } = await this.api.binary("order", { ...parameters, token: tokenAt(run, state.at) });
      return new Int32Array(buffer);
    });
  }

  /**
   * @param {string} key
   * @param {() => Promise<any>} ask
   */
  #once(key, ask) {
    let answer = this.asked.get(key);
    if (!answer) {
      answer = ask();
      this.asked.set(key, answer);
      answer.catch(() => this.asked.delete(key));
    }
    return answer;
  }
}

/**
 * @param {Run} run
 * @param {number | null} step null: the newest
 * @returns {number} place in `run.steps`; of a step that is not there, that of the nearest
 */
export function placeOf(run, step) {
  if (step === null) return run.steps.length - 1;
  let best = 0;
  run.steps.forEach((one, place) => {
    if (Math.abs(one.step - step) < Math.abs(run.steps[best].step - step)) best = place;
  });
  return best;
}

/**
 * @param {Run} run
 * @param {number | null} step
 */
export function tokenAt(run, step) {
  return run.steps[placeOf(run, step)]?.token ?? "";
}

/**
 * A token for answers that are made of all dumps of a run.
 * @param {Run} run
 */
export function tokenOfAll(run) {
  let hash = 0;
  const tokens = [...run.steps.map((one) => one.token), run.integrated_token];
  for (const letter of tokens.join(" ")) hash = (hash * 31 + letter.charCodeAt(0)) | 0;
  return `${run.steps.length}-${(hash >>> 0).toString(36)}`;
}

/**
 * @param {Run} run
 * @param {State} state
 * @param {Side} side
 * @returns {{by: string, column: string | undefined}}
 */
export function orderOf(run, state, side) {
  const [asked, column] = side === "train" ? [state.trainBy, state.trainColumn] : [state.queryBy, state.queryColumn];
  const areExamples = side === "train" || !hasOwnColumns(run, state.matrix);
  const usual = areExamples && run.has[`${side}_label`] ? "label" : areExamples ? "cluster" : "dataset";
  const by = (areExamples || !isOfExamples(asked) ? asked : "") || usual;
  return { by, column: by === "column" || by === "user" ? column : undefined };
}

/**
 * Whether a matrix has columns that are not queries, such as the classes of an accuracy.
 * @param {Run} run
 * @param {string} matrix
 */
export function hasOwnColumns(run, matrix) {
  return matrix.includes(":") && (run.own_columns ?? []).includes(matrix.slice(0, matrix.lastIndexOf(":")));
}

/**
 * Orders that need what only examples have.
 * @param {string} by
 */
function isOfExamples(by) {
  return by === "label" || by === "user";
}

/**
 * The parameters of a picture that say in which order it is.
 * @param {Run} run
 * @param {State} state
 */
export function orderParameters(run, state) {
  const [train, query] = [orderOf(run, state, "train"), orderOf(run, state, "query")];
  return {
    train_by: train.by,
    train_column: train.column,
    query_by: query.by,
    query_column: query.column,
    at: state.at,
  };
}

/**
 * Words for an example: "digit 17 (labelled 3)".
 * @param {Samples} samples
 * @param {number} row
 */
export function nameOf(samples, row) {
  return samples.id[row] ?? `row ${row}`;
}
