/** The photo or clip that is shown large, and all that was said of it. */

import { Clip } from "./clip.js";
import { CLIP_FORMS, copy, FORMS } from "./copies.js";
import { announce, byId, bytes, make, percent } from "./dom.js";
import { place } from "./heat.js";
import { inPlainWords } from "./problems.js";
import { Sentence } from "./sentence.js";
import { showTimes } from "./times.js";

const COPIED_MS = 1600;

/** Shows the selected photo or clip of a session. */
export class Detail {
  fit = "squeeze";
  #session;
  #service;
  #sentence = new Sentence();
  #photo = byId("photo");
  #clip = new Clip((shown) => this.#played(shown));
  #url = "";

  constructor(session, service) {
    this.#session = session;
    this.#service = service;
    session.addEventListener("select", () => this.#show());
    session.addEventListener("change", ({ detail }) => detail === session.selected && this.#show());
    this.#photo.addEventListener("load", () => this.#seen(true));
    this.#photo.addEventListener("error", () => this.#seen(false));
    byId("again").addEventListener("click", () => session.again(session.selected));
    document.querySelectorAll("[data-copy]").forEach((button) =>
      button.addEventListener("click", () => this.#copy(button)),
    );
  }

  #show() {
    const item = this.#session.selected;
    byId("detail").hidden = !item;
    document.body.dataset.view = item ? "photos" : "empty";
    if (this.#url !== (item?.url ?? "")) this.#showPicture(item);
    if (!item) return;
    byId("working").hidden = !["waiting", "sending"].includes(item.state);
    byId("working").textContent = item.state === "waiting" && item.note ? item.note : "Looking …";
    byId("failure").hidden = item.state !== "failed";
    const isPhoto = item.kind === "photo";
    byId("failure-title").textContent = `No sentence for this ${isPhoto ? "photo" : "clip"}`;
    byId("answer").hidden = item.state !== "done" || !isPhoto;
    const isTold = item.state === "done" || (["sending", "failed"].includes(item.state) && item.shots.length > 0);
    byId("clip-answer").hidden = !isTold || isPhoto;
    byId("detail").setAttribute("aria-labelledby", isPhoto ? "caption" : "clip-summary");
    byId("detail").setAttribute("aria-busy", String(!byId("working").hidden));
    if (item.state === "failed") byId("failure-text").textContent = inPlainWords(item.problem);
    if (item.state === "done") this.#showAnswer(item);
    else if (isTold) this.#clip.showSoFar(item);
  }

  #showPicture(item) {
    const isVideo = item?.kind === "video";
    this.#url = item?.url ?? "";
    this.#clip.unload();
    byId("clip").hidden = !isVideo;
    byId("frame").classList.remove("blank");
    byId("frame").classList.toggle("wide", isVideo);
    byId("unseen").hidden = true;
    const kind = isVideo ? "play this kind of video" : "show this kind of photo";
    byId("unseen").textContent = `This browser cannot ${kind}.`;
    if (!item) return;
    if (isVideo) {
      this.#photo.hidden = true;
      this.#clip.load(item);
    } else {
      this.#photo.src = item.url;
    }
    byId("heat").classList.remove("on");
    byId("filename").textContent = item.file.name;
    byId("facts").textContent = bytes(item.file.size);
  }

  #seen(shown) {
    const item = this.#session.selected;
    if (item?.kind === "video") return;
    this.#photo.hidden = !shown;
    byId("unseen").hidden = shown;
    byId("frame").classList.toggle("blank", !shown);
    if (!item || !shown) return;
    place(byId("heat"), this.#photo, this.fit);
    const { naturalWidth, naturalHeight } = this.#photo;
    byId("facts").textContent = `${naturalWidth} × ${naturalHeight} · ${bytes(item.file.size)}`;
  }

  /** Show the player, or say that the browser has none for this; its shots are told all the same. */
  #played(shown) {
    const item = this.#session.selected;
    if (item?.kind !== "video") return;
    byId("clip").hidden = !shown;
    byId("unseen").hidden = shown;
    byId("frame").classList.toggle("blank", !shown);
    byId("facts").textContent = [...(shown ? this.#clip.facts : []), bytes(item.file.size)].join(" · ");
    if (item.state === "done") this.#showAnswer(item);
  }

  #showAnswer(item) {
    const { result } = item;
    if (item.kind !== "photo") {
      this.#photo.alt = result.caption ?? "";
      this.#clip.show(item);
      return;
    }
    this.#photo.alt = result.caption ?? "";
    this.#showChosen(item);
    showNote("withheld", result.withheld && "The service would rather not say: it is not sure enough. It might be:");
    showNote("warning", warningOf(result));
    showConfidence(result.candidates[item.chosen].confidence ?? (item.chosen ? null : result.confidence));
    showTags(result.tags);
    showTimes(item.stages, item.tookMs);
  }

  #showChosen(item) {
    const { candidates } = item.result;
    byId("caption").textContent = candidates[item.chosen].caption;
    byId("sentence").classList.toggle("unsure", Boolean(item.result.withheld));
    this.#sentence.show(candidates[item.chosen]);
    const most = Math.max(...candidates.map(({ log_prob }) => log_prob));
    byId("candidates").replaceChildren(
      ...candidates.map((candidate, n) => this.#candidateRow(item, candidate, n, most)),
    );
  }

  #candidateRow(item, candidate, n, most) {
    const share = make("span", { className: "value" }, percent(Math.exp(candidate.log_prob)));
    const bar = make("span", { className: "meter", "aria-hidden": "true" }, make("i"));
    bar.firstChild.style.width = `${100 * Math.exp(candidate.log_prob - most)}%`;
    const chosen = String(n === item.chosen);
    const text = make("span", { className: "text" }, candidate.caption);
    const button = make("button", { type: "button", "aria-pressed": chosen }, text, share, bar);
    button.addEventListener("click", () => this.#choose(item, n));
    return make("li", {}, button);
  }

  #choose(item, n) {
    item.chosen = n;
    this.#showAnswer(item);
    byId("candidates").children[n].firstChild.focus();
    announce(item.result.candidates[n].caption);
  }

  async #copy(button) {
    const item = this.#session.selected;
    const candidate = item.result.candidates?.[item.chosen];
    const forms = item.kind === "photo" ? FORMS : CLIP_FORMS;
    const text = forms[button.dataset.copy]({ item, candidate, service: this.#service });
    const done = await copy(text);
    announce(done ? "Copied." : "The browser does not let this page copy.");
    button.dataset.copied = done ? "Copied" : "Not allowed";
    setTimeout(() => delete button.dataset.copied, COPIED_MS);
  }
}

function showNote(id, text) {
  byId(id).hidden = !text;
  byId(id).textContent = text || "";
}

/** A warning is a sentence, or something with one. */
function warningOf({ warning }) {
  return typeof warning === "string" ? warning : warning?.detail;
}

function showConfidence(confidence) {
  const known = typeof confidence === "number";
  byId("confidence").hidden = !known;
  if (!known) return;
  const bar = make("span", { className: "meter", "aria-hidden": "true" }, make("i"));
  bar.firstChild.style.width = `${100 * confidence}%`;
  byId("confidence").replaceChildren(make("b", {}, `${percent(confidence)} sure`), " that this is right", bar);
}

function showTags(tags) {
  byId("tags-section").hidden = !tags?.length;
  const row = ({ label, probability }) => make("li", {}, label, " ", make("b", {}, percent(probability)));
  byId("tags").replaceChildren(...(tags ?? []).map(row));
}
