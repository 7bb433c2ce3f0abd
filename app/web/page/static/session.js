/** The photos and clips of this session, and the few that are under way at a time. */

import { looksLikeVideo, moves } from "./kinds.js";
import { Problem, passes } from "./problems.js";

const AT_ONCE = 4;
const MOST_TRIES = 30;
const LONGEST_WAIT_S = 10;

/**
 * @typedef {Object} Item
 * @property {File} file
 * @property {string} url where the browser shows it from
 * @property {"photo"|"animation"|"video"} kind an image is a photo until it was looked at
 * @property {"waiting"|"sending"|"done"|"failed"} state
 * @property {string} note why it waits
 * @property {Object[]} shots of a clip, as many as are known while it is sent
 * @property {Object} answer what the service said, as it said it
 * @property {Object} result of this photo in the answer; of a clip its summary
 * @property {Problem} problem
 * @property {number} chosen which candidate is shown
 */

/** Fires `change` with the item in `detail`, `select`, and `key` when the service asks for one. */
export class Session extends EventTarget {
  /** @type {Item[]} newest first */
  items = [];
  selected = null;
  #service;
  #sending = 0;
  #paused = false;

  constructor(service) {
    super();
    this.#service = service;
  }

  /** Take photos; the first of them is shown. */
  add(files) {
    const items = [...files].map((file) => ({
      file,
      url: URL.createObjectURL(file),
      kind: looksLikeVideo(file) ? "video" : "photo",
      state: "waiting",
      note: "",
      tries: 0,
      chosen: 0,
    }));
    this.items.unshift(...items);
    items.forEach((item) => this.#changed(item));
    if (items.length) this.select(items[0]);
    this.#sendNext();
  }

  select(item) {
    this.selected = item;
    this.dispatchEvent(new CustomEvent("select", { detail: item }));
  }

  /** Try a photo again. */
  again(item) {
    Object.assign(item, { state: "waiting", note: "", tries: 0, problem: undefined });
    this.#changed(item);
    this.#sendNext();
  }

  /** Forget everything. */
  clear() {
    this.items.forEach((item) => URL.revokeObjectURL(item.url));
    this.items = [];
    this.select(null);
  }

  /** Keep photos back until there is a key. */
  pause() {
    this.#paused = true;
  }

  resume() {
    this.#paused = false;
    this.#sendNext();
  }

  #sendNext() {
    while (!this.#paused && this.#sending < AT_ONCE) {
      const next = this.items.find((item) => item.state === "waiting" && !item.delayed);
      if (!next) return;
      this.#send(next);
    }
  }

  async #send(item) {
    this.#sending += 1;
    Object.assign(item, { state: "sending", tries: item.tries + 1, shots: [] });
    this.#changed(item);
    try {
      Object.assign(item, await this.#ask(item), { state: "done" });
    } catch (problem) {
      this.#failed(item, problem);
    }
    this.#sending -= 1;
    this.#changed(item);
    this.#sendNext();
  }

  async #ask(item) {
    if (item.kind === "photo" && (await moves(item.file))) item.kind = "animation";
    if (item.kind === "photo") return this.#caption(item);
    try {
      const told = await this.#service.describe(item.file, (shots) => {
        item.shots = shots;
        this.#changed(item);
      });
      return { ...told, result: { caption: told.answer.summary } };
    } catch (problem) {
      if (item.kind !== "animation" || problem.code !== "no_clips") throw problem;
      item.kind = "photo"; // which its first picture is
      return this.#caption(item);
    }
  }

  async #caption(item) {
    const told = await this.#service.caption(item.file);
    return { ...told, result: told.answer.results[0] };
  }

  #failed(item, problem) {
    if (!(problem instanceof Problem)) throw problem;
    if (problem.code === "unauthorized") {
      Object.assign(item, { state: "waiting", note: "Waits for a key." });
      this.pause();
      this.dispatchEvent(new CustomEvent("key"));
    } else if (passes(problem) && item.tries < MOST_TRIES) {
      this.#delay(item, Math.min(problem.retry_after ?? 1, LONGEST_WAIT_S));
    } else {
      Object.assign(item, { state: "failed", problem });
    }
  }

  #delay(item, seconds) {
    const thing = item.kind === "photo" ? "photo" : "clip";
    Object.assign(item, { state: "waiting", delayed: true, note: `The service is busy; this ${thing} waits.` });
    setTimeout(() => {
      item.delayed = false;
      this.#sendNext();
    }, 1000 * seconds);
  }

  #changed(item) {
    if (this.items.includes(item)) this.dispatchEvent(new CustomEvent("change", { detail: item }));
  }
}
