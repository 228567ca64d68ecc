/**
 * The server's answers. All addresses are relative to the page's base, so they hold under any path prefix.
 *
 * @typedef {Record<string, string | number | null | undefined>} Parameters null and undefined are left out
 * @typedef {{step: number, epoch: number | null, token: string, verdict: string | null, verdict_text: string | null,
 *   created: string}} Step
 * @typedef {object} Run
 * @property {string} run
 * @property {number} num_train
 * @property {number} num_query
 * @property {string[]} matrices
 * @property {string[]} observables
 * @property {string[]} [own_columns] observables whose columns are not queries
 * @property {string} kind of the sampler: "SGLD", "Subspace" or "Pairs"
 * @property {number} written when its latest dump was, in seconds since 1970
 * @property {string} parameters_text
 * @property {Record<string, boolean>} has
 * @property {Record<string, string[]>} sort_columns the user's own, of each side
 * @property {Step[]} steps
 * @property {string} samples_token
 * @property {string} integrated_token of the sums over the training
 * @property {{file: string, why: string}[]} problems
 * @typedef {{id: string[], index: number[], label: number[] | null, label_names: string[] | null,
 *   columns: Record<string, (number | string)[]>, text_head: string[] | null, own_columns?: boolean}} Samples
 *   `own_columns`: those of an observable, not queries
 * @typedef {object} Picture
 * @property {number} height
 * @property {number} width
 * @property {Float32Array} values row by row; NaN where undefined
 * @property {Float32Array | null} errors standard errors, where no cells were pooled
 * @property {boolean} pooled
 * @property {number} scale 99 % of the entries of the whole matrix are at most so large
 * @property {number} largest the size of its largest entry
 * @property {import("./state.js").Window} window
 * @property {Headers} headers
 */

/** A refusal of the server, whose message says what to do. */
export class ServerError extends Error {
  /**
   * @param {number} status
   * @param {string} message
   */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Answers that are kept: those of a few views at all steps of a run of medium length. */
const KEPT = 400;
const RETRIES = 2;
const PAUSE = 400;

/** Asks, and keeps the answers that cannot change. */
export class Api {
  /** @param {Record<string, Promise<Response>>} early answers on their way, by route; each is taken once */
  constructor(early) {
    this.early = new Map(Object.entries(early).map(([route, answer]) => [this.address(route), answer]));
    /** @type {Map<string, Promise<any>>} */
    this.kept = new Map();
  }

  /**
   * @param {string} route
   * @param {Parameters} [parameters]
   * @returns {string} a relative address
   */
  address(route, parameters = {}) {
    const words = new URLSearchParams();
    for (const [name, value] of Object.entries(parameters)) {
      if (value !== null && value !== undefined && name !== "token") words.set(name, String(value));
    }
    if (parameters.token) words.set("token", String(parameters.token));
    const query = words.toString();
    return query ? `./${route}?${query}` : `./${route}`;
  }

  /**
   * @param {string} route
   * @param {Parameters} [parameters] with a `token`, the answer is kept
   * @returns {Promise<any>}
   */
  json(route, parameters = {}) {
    return this.#answer(this.address(route, parameters), Boolean(parameters.token), (response) => response.json());
  }

  /**
   * @param {string} route
   * @param {Parameters} parameters
   * @returns {Promise<string>}
   */
  text(route, parameters) {
    return this.#answer(this.address(route, parameters), false, (response) => response.text());
  }

  /**
   * @param {string} route
   * @param {Parameters} parameters
   * @returns {Promise<{buffer: ArrayBuffer, headers: Headers}>}
   */

  binary(route, parameters) {
    return this.#answer(this.address(route, parameters), Boolean(parameters.token), async (response) => ({
      buffer: await response.arrayBuffer(),
      headers: response.headers,
    }));
  }

  /**
   * @param {string} route "view" or "compare"
   * @param {Parameters} parameters with r0, r1, c0, c1
   * @returns {Promise<Picture>}
   */
  async picture(route, parameters) {
    const { buffer, headers } = await this.binary(route, parameters);
    const [height, width] = (headers.get("X-Shape") ?? "0,0").split(",").map(Number);
    const numbers = new Float32Array(buffer);
    const size = height * width;
    const errors = headers.get("X-Errors") === "1" ? numbers.subarray(size, 2 * size) : null;
    return {
      height,
      width,
      values: numbers.subarray(0, size),
      errors,
      pooled: headers.get("X-Pooled") === "1",
      scale: Number(headers.get("X-Scale")) || 0,
      largest: Number(headers.get("X-Largest")) || 0,
      window: /** @type {any} */ ([parameters.r0, parameters.r1, parameters.c0, parameters.c1]),
      headers,
    };
  }

  /**
   * @param {string} address
   * @param {boolean} keep
   * @param {(response: Response) => Promise<any>} read
   * @returns {Promise<any>}
   */
  #answer(address, keep, read) {
    const known = this.kept.get(address);
    if (keep && known) {
      this.kept.delete(address);
      this.kept.set(address, known);
      return known;
    }
    const early = this.early.get(address);
    this.early.delete(address);
    const asked = ask(address, RETRIES, early).then(read);
    if (!keep) return asked;
    this.kept.set(address, asked);
    asked.catch(() => this.kept.delete(address));
    const oldest = this.kept.keys().next();
    if (this.kept.size > KEPT && !oldest.done) this.kept.delete(oldest.value);
    return asked;
  }
}

/**
 * @param {string} address
 * @param {number} retries left
 * @param {Promise<Response>} [early] the first answer, where it is on its way already
 * @returns {Promise<Response>}
 */
async function ask(address, retries, early) {
  let response;
  try {
    response = await (early ?? fetch(address, { headers: { Accept: "*/*" } }));
  } catch {
    throw new ServerError(0, "TensorBoard does not respond. Is it still running? The page tries again automatically.");
  }
  if (response.ok) return response;
  // 503: the process that reads dumps was busy, or was ended at its time limit and is started anew.
  if (response.status === 503 && retries > 0) {
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
    return ask(address, retries - 1);
  }
  throw new ServerError(response.status, await reason(response));
}

/** @param {Response} response */
async function reason(response) {
  try {
    const answer = await response.json();
    if (typeof answer.error === "string") return answer.error;
  } catch {
    // An answer without a sentence, as of a proxy in between.
  }
  return `The server answered ${response.status} ${response.statusText}.`;
}

/** Of several questions asked one after the other, only the answer to the last one counts. */
export class Latest {
  constructor() {
    this.count = 0;
  }

  /**
   * @template T
   * @param {Promise<T>} asked
   * @param {(answer: T) => void} done
   * @param {(error: Error) => void} failed
   * @returns {Promise<void>}
   */
  async take(asked, done, failed) {
    this.count += 1;
    const mine = this.count;
    try {
      const answer = await asked;
      if (mine === this.count) done(answer);
    } catch (error) {
      if (mine === this.count) failed(/** @type {Error} */ (error));
    }
  }

  /** What is under way no longer counts. */
  drop() {
    this.count += 1;
  }
}
