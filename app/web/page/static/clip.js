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
    const plays = kind === "video" && !this.#video.error;
    byId("shots-help").hidden = !plays;
    if (plays) this.#caption(answer.shots);
    this.#list(answer.shots, plays);
  }

  #caption(shots) {
    if (this.#trackUrl) return;
    this.#trackUrl = URL.createObjectURL(new Blob([vttOf(shots)], { type: "text/vtt" }));
    const track = make("track", { kind: "captions", label: "Captions", default: true, src: this.#trackUrl });
    this.#video.replaceChildren(track);
    track.track.mode = "showing"; // where the browser does not heed what comes after the video
  }

  #list(shots, plays) {
    this.#shots = shots;
    this.#buttons = plays ? shots.map((shot) => this.#button(shot)) : [];
    const rows = plays ? this.#buttons : shots.map((shot) => make("div", { className: "shot" }, ...parts(shot)));
    byId("shots").replaceChildren(...rows.map((row) => make("li", {}, row)));
    this.#mark();
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

/** Give the times of a shot, its caption, and how sure it is. */
function parts({ start_s, end_s, caption, confidence }) {
  const times = end_s > start_s ? `${clock(start_s)} – ${clock(end_s)}` : clock(start_s);
  const text = make("span", { className: "text" }, caption ?? "Not sure enough to say");
  const sure = typeof confidence === "number" ? [" ", make("span", { className: "value" }, percent(confidence))] : [];
  return [make("span", { className: "when" }, times), " ", text, ...sure];
}
