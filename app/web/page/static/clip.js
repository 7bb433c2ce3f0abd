/** A clip: the player with its captions, its summary, and its shots. */

import { byId, make, percent } from "./dom.js";
import { clock, vttOf } from "./tracks.js";

/** At the very time of a cut browsers show the cues of both shots. */
const PAST_CUT_S = 0.01;

/** Shows one clip; a video plays, an image that moves does so by itself. */
export class Clip {
  #video = byId("clip");
  #trackUrl = "";
  #shots = [];
  #buttons = [];
  #plays = false;

  /** @param {function(boolean): void} onSeen told whether the browser can play the video */
  constructor(onSeen) {
    this.#video.addEventListener("loadedmetadata", () => onSeen(true));
    this.#video.addEventListener("error", () => this.#video.hasAttribute("src") && onSeen(false));
    for (const event of ["timeupdate", "seeked"]) this.#video.addEventListener(event, () => this.#mark());
  }

  /** Give the size and the length of the video. */
  get facts() {
    const { videoWidth, videoHeight, duration } = this.#video;
    return [`${videoWidth} × ${videoHeight}`, ...(Number.isFinite(duration) ? [clock(duration)] : [])];
  }

  /** Show a video, before anything is said of it. */
  load(item) {
    this.unload();
    this.#video.src = item.url;
    this.#video.setAttribute("aria-label", item.file.name);
  }

  /** Let go of the video, which plays on otherwise, and of its track. */
  unload() {
    if (this.#trackUrl) URL.revokeObjectURL(this.#trackUrl);
    this.#trackUrl = "";
    this.#shots = [];
    this.#buttons = [];
    this.#video.replaceChildren();
    if (!this.#video.hasAttribute("src")) return;
    this.#video.pause();
    this.#video.removeAttribute("src");
    this.#video.load();
  }

  /** Show what was said of it. */
  show({ kind, answer }) {
    byId("clip-summary").textContent = answer.summary ?? "Not sure enough to say";
    byId("clip-summary").classList.toggle("unsure", !answer.summary);
    byId("clip-text").hidden = !answer.summary;
    byId("clip-warning").hidden = !answer.warning;
    byId("clip-warning").textContent = answer.warning ?? "";
    byId("clip-copies").hidden = false;
    const plays = this.#list(kind, answer.shots);
    if (plays) this.#caption(answer.shots);
  }

  /** Show the shots that are known while the service still looks. */
  showSoFar({ kind, shots }) {
    byId("clip-summary").textContent = shots.length === 1 ? "One shot so far" : `${shots.length} shots so far`;
    byId("clip-summary").classList.add("unsure");
    byId("clip-warning").hidden = true;
    byId("clip-copies").hidden = true;
    this.#list(kind, shots);
  }

  #caption(shots) {
    if (this.#trackUrl) return;
    this.#trackUrl = URL.createObjectURL(new Blob([vttOf(shots)], { type: "text/vtt" }));
    const track = make("track", { kind: "captions", label: "Captions", default: true, src: this.#trackUrl });
    this.#video.replaceChildren(track);
    track.track.mode = "showing"; // where the browser does not heed what comes after the video
  }

  /** List the shots; those that are listed stay, so that the one with the focus keeps it. */
  #list(kind, shots) {
    const plays = kind === "video" && !this.#video.error;
    const stay = plays === this.#plays && shots.length >= this.#shots.length ? this.#shots.length : 0;
    const rows = shots.slice(stay).map((shot) => (plays ? this.#button(shot) : still(shot)));
    [...byId("shots").children].slice(stay).forEach((row) => row.remove());
    byId("shots").append(...rows.map((row) => make("li", {}, row)));
    byId("shots-help").hidden = !plays;
    this.#buttons = plays ? [...this.#buttons.slice(0, stay), ...rows] : [];
    this.#shots = shots;
    this.#plays = plays;
    this.#mark();
    return plays;
  }

  #button(shot) {
    const button = make("button", { type: "button", className: "shot" }, ...parts(shot));
    button.addEventListener("click", () => (this.#video.currentTime = shot.start_s + PAST_CUT_S));
    return button;
  }

  /** Mark the shot that is played. */
  #mark() {
    const { currentTime } = this.#video;
    this.#buttons.forEach((button, n) => {
      const { start_s, end_s } = this.#shots[n];
      const isLast = n === this.#shots.length - 1;
      if (start_s <= currentTime && (currentTime < end_s || isLast)) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    });
  }
}

/** A shot of a picture that nothing can be sought in. */
function still(shot) {
  return make("div", { className: "shot" }, ...parts(shot));
}

/** Give the times of a shot, its caption, and how sure it is. */
function parts({ start_s, end_s, caption, confidence }) {
  const times = end_s > start_s ? `${clock(start_s)} – ${clock(end_s)}` : clock(start_s);
  const text = make("span", { className: "text" }, caption ?? "Not sure enough to say");
  const sure = typeof confidence === "number" ? [" ", make("span", { className: "value" }, percent(confidence))] : [];
  return [make("span", { className: "when" }, times), " ", text, ...sure];
}
