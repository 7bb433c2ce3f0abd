/** The sentence, word by word: each shows where the network looked while it is pointed at. */

import { byId, make, percent } from "./dom.js";
import { drawHeat, whereItLooked } from "./heat.js";

const TOUCHES = matchMedia("(pointer: coarse)").matches;
const HINT = TOUCHES
  ? "Tap a word to see where the network looked."
  : "Point at a word, or move with the arrow keys, to see where the network looked.";
const HINT_PLAIN = `${TOUCHES ? "Tap" : "Point at"} a word to see how sure the network was of it.`;

/** The words of one candidate, the heat map over the photo, and the line that explains a word. */
export class Sentence {
  #box = byId("sentence");
  #canvas = byId("heat");
  #look = byId("look");
  #words = [];
  #pinned = null;
  #hint = HINT;

  constructor() {
    this.#box.addEventListener("keydown", (event) => this.#move(event));
  }

  /** Show a candidate, with no word pointed at. */
  show(candidate) {
    const words = candidate.words ?? [];
    this.#hint = words.some(looked) ? HINT : HINT_PLAIN;
    this.#words = words.map((word, n) => this.#button(word, n));
    this.#box.replaceChildren(...(words.length ? this.#words : [candidate.caption]));
    this.#pinned = null;
    this.#rest();
  }

  #button(word, n) {
    const button = make(
      "button",
      { type: "button", tabIndex: n === 0 ? 0 : -1, "aria-pressed": "false", "aria-label": spoken(word) },
      word.text,
    );
    button.style.setProperty("--sure", Math.exp(word.log_prob).toFixed(3));
    button.addEventListener("pointerenter", (event) => event.pointerType !== "touch" && this.#lookAt(word));
    button.addEventListener("pointerleave", () => this.#rest());
    button.addEventListener("focus", () => this.#lookAt(word));
    button.addEventListener("blur", () => this.#rest());
    button.addEventListener("click", () => this.#pin(button, word));
    return button;
  }

  /** Keep a word's heat map; once more lets it go. */
  #pin(button, word) {
    this.#pinned = this.#pinned?.button === button ? null : { button, word };
    this.#words.forEach((each) => each.setAttribute("aria-pressed", String(each === this.#pinned?.button)));
    if (this.#pinned) this.#lookAt(word);
    else this.#rest();
  }

  #lookAt(word) {
    if (looked(word)) drawHeat(this.#canvas, word.attention, 0.4 + 0.6 * (1 - word.sentinel));
    this.#canvas.classList.toggle("on", looked(word));
    this.#look.replaceChildren(...explained(word));
  }

  #rest() {
    if (this.#pinned) {
      this.#lookAt(this.#pinned.word);
      return;
    }
    this.#canvas.classList.remove("on");
    this.#look.replaceChildren(make("p", { className: "hint" }, this.#hint));
  }

  /** One stop of the tab key for the sentence; arrows, Home and End go from word to word. */
  #move(event) {
    const at = this.#words.indexOf(document.activeElement);
    const last = this.#words.length - 1;
    const to = { ArrowLeft: at - 1, ArrowUp: at - 1, ArrowRight: at + 1, ArrowDown: at + 1, Home: 0, End: last }[
      event.key
    ];
    if (at < 0 || to === undefined) return;
    event.preventDefault();
    const next = this.#words[Math.min(last, Math.max(0, to))];
    this.#words.forEach((each) => (each.tabIndex = each === next ? 0 : -1));
    next.focus();
  }
}

/** Say whether the network tells where it looked: not every one does. */
const looked = (word) => Boolean(word.attention) && typeof word.sentinel === "number";

/** What a word's button says to those who listen. */
function spoken(word) {
  const parts = [word.text, `${percent(Math.exp(word.log_prob))} likely`];
  if (looked(word)) {
    parts.push(`${percent(1 - word.sentinel)} from the photo`, `mostly from ${whereItLooked(word.attention)}`);
  }
  return parts.join(", ");
}

function explained(word) {
  const sure = `${percent(Math.exp(word.log_prob))} likely after the words before it`;
  const line = make("p", {}, make("b", {}, `“${word.text}”`), ` ${sure}`);
  if (!looked(word)) return [line];
  const photo = make("span", { className: "photo-share" }, `${percent(1 - word.sentinel)} from the photo`);
  const language = make("span", { className: "language-share" }, `${percent(word.sentinel)} from language`);
  const bar = make("span", { className: "share", "aria-hidden": "true" }, make("i"));
  bar.firstChild.style.width = `${100 * (1 - word.sentinel)}%`;
  return [line, make("p", { className: "shares" }, photo, bar, language)];
}
