/** The service, as this page asks it. */

import { linesOf } from "./lines.js";
import { Problem } from "./problems.js";

const MOST_CANDIDATES = 5;

/** One service and the key that it may ask for. */
export class Service {
  #key = sessionStorage.getItem("key") ?? "";
  nBest = 1;

  /** Addresses are beside the page, wherever a proxy has put it. */
  address(path) {
    return new URL(path, document.baseURI);
  }

  get key() {
    return this.#key;
  }

  set key(value) {
    this.#key = value;
    if (value) sessionStorage.setItem("key", value);
    else sessionStorage.removeItem("key");
  }

  /** The query that every photo is sent with. */
  get query() {
    return new URLSearchParams({ n_best: this.nBest, attention: true }).toString();
  }

  /** Give the status of `/readyz`: ready, starting, warming, draining or failed. */
  async health() {
    const answer = await this.#fetch("readyz");
    return (await readJson(answer)).status;
  }

  /** Give the checkpoint that is served. */
  async model() {
    const answer = await this.#fetch("v1/models");
    if (!answer.ok) throw await problemOf(answer);
    const [model] = (await readJson(answer)).models;
    this.nBest = Math.min(MOST_CANDIDATES, model.search.beam_width);
    return model;
  }

  /**
   * Have one photo captioned; it is sent as it is.
   * @param {File} file
   * @returns {Promise<{answer: Object, stages: Map<string, number>, tookMs: number}>}
   * @throws {Problem}
   */
  caption(file) {
    return this.#post(`v1/captions?${this.query}`, "image", file);
  }

  /**
   * Have the shots of a clip described; it is sent as it is.
   * @param {File} file a video, or an image that moves
   * @param {function(Object[]): void} onShots told the shots so far, whenever there is one more
   * @returns {Promise<{answer: Object, stages: Map<string, number>, tookMs: number}>}
   * @throws {Problem} of a clip; its code is `no_clips` where the service takes none
   */
  async describe(file, onShots) {
    try {
      return await this.#post("v1/clips?format=ndjson", "file", file, (answer) => readShots(answer, onShots));
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      const code = problem.code === "not_found" ? "no_clips" : problem.code;
      throw Object.assign(problem, { code, thing: "clip" });
    }
  }

  async #post(path, field, file, read = readJson) {
    await check(file);
    const form = new FormData();
    form.append(field, file, file.name);
    const beganMs = performance.now();
    const answer = await this.#fetch(path, { method: "POST", body: form }, file.size);
    if (!answer.ok) throw await problemOf(answer, file.size);
    const told = await read(answer);
    return { answer: told, stages: stagesOf(answer), tookMs: performance.now() - beganMs };
  }

  async #fetch(path, options = {}, size = 0) {
    const headers = this.#key ? { authorization: `Bearer ${this.#key}` } : {};
    try {
      return await fetch(this.address(path), { cache: "no-store", ...options, headers });
    } catch {
      throw new Problem({ code: "no_answer", size });
    }
  }
}

/** A file that is gone, or a folder, breaks the request as a lost connection does: look first. */
async function check(file) {
  if (file.size === 0) throw new Problem({ code: "empty_file" });
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Problem({ code: "unreadable_file" });
  }
}

async function readJson(answer) {
  try {
    return await answer.json();
  } catch {
    throw new Problem({ code: "not_understood", status: answer.status });
  }
}

/** Read the shots of a clip as they come; the last line has what is known at its end. */
async function readShots(answer, onShots) {
  const shots = [];
  const lines = linesOf(answer.body);
  for (;;) {
    const { value, done } = await lines.next().catch(() => ({ done: true }));
    if (done) throw new Problem({ code: "no_answer" }); // the connection ended before the answer did
    const told = parsed(value, answer.status);
    if ("problem" in told) throw new Problem(told.problem);
    if ("duration_s" in told) return { ...told, shots };
    shots.push(told);
    onShots([...shots]);
  }
}

function parsed(text, status) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Problem({ code: "not_understood", status });
  }
}

async function problemOf(answer, size = 0) {
  const details = await readJson(answer);
  if (!details.code) return new Problem({ code: "not_understood", status: answer.status });
  return new Problem({ ...details, size });
}

/** Read `Server-Timing`: milliseconds by stage. */
function stagesOf(answer) {
  const header = answer.headers.get("server-timing") ?? "";
  const stages = new Map();
  for (const [, stage, duration] of header.matchAll(/([\w-]+);dur=([\d.]+)/g)) {
    stages.set(stage, Number(duration));
  }
  return stages;
}
