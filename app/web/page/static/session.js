/** The photos of this session, and the few that are under way at a time. */

import { Problem, passes } from "./problems.js";

const AT_ONCE = 4;
const MOST_TRIES = 30;
const LONGEST_WAIT_S = 10;

/**
 * @typedef {Object} Item
 * @property {File} file
 * @property {string} url where the browser shows the photo from
 * @property {"waiting"|"sending"|"done"|"failed"} state
 * @property {string} note why it waits
 * @property {Object} answer what the service said, as it said it
 * @property {Object} result of this photo in the answer
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
    Object.assign(item, { state: "sending", tries: item.tries + 1 });
    this.#changed(item);
    try {
      Object.assign(item, await this.#service.caption(item.file));
      item.result = item.answer.results[0];
      item.state = "done";
    } catch (problem) {
      this.#failed(item, problem);
    }
    this.#sending -= 1;
    this.#changed(item);
    this.#sendNext();
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
    Object.assign(item, { state: "waiting", delayed: true, note: "The service is busy; this photo waits." });
    setTimeout(() => {
      item.delayed = false;
      this.#sendNext();
    }, 1000 * seconds);
  }

  #changed(item) {
    if (this.items.includes(item)) this.dispatchEvent(new CustomEvent("change", { detail: item }));
  }
}
