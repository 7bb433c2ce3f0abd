/** The photo that is shown large, and all that was said of it. */

import { copy, FORMS } from "./copies.js";
import { announce, byId, bytes, make, percent } from "./dom.js";
import { place } from "./heat.js";
import { inPlainWords } from "./problems.js";
import { Sentence } from "./sentence.js";
import { showTimes } from "./times.js";

const COPIED_MS = 1600;

/** Shows the selected photo of a session. */
export class Detail {
  fit = "squeeze";
  #session;
  #service;
  #sentence = new Sentence();
  #photo = byId("photo");

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
    if (!item) return;
    if (this.#photo.getAttribute("src") !== item.url) this.#showPhoto(item);
    byId("working").hidden = !["waiting", "sending"].includes(item.state);
    byId("working").textContent = item.state === "waiting" && item.note ? item.note : "Looking …";
    byId("failure").hidden = item.state !== "failed";
    byId("answer").hidden = item.state !== "done";
    byId("detail").setAttribute("aria-busy", String(!byId("working").hidden));
    if (item.state === "failed") byId("failure-text").textContent = inPlainWords(item.problem);
    if (item.state === "done") this.#showAnswer(item);
  }

  #showPhoto(item) {
    this.#photo.src = item.url;
    byId("heat").classList.remove("on");
    byId("filename").textContent = item.file.name;
    byId("facts").textContent = bytes(item.file.size);
  }

  #seen(shown) {
    const item = this.#session.selected;
    this.#photo.hidden = !shown;
    byId("unseen").hidden = shown;
    byId("frame").classList.toggle("blank", !shown);
    if (!item || !shown) return;
    place(byId("heat"), this.#photo, this.fit);
    const { naturalWidth, naturalHeight } = this.#photo;
    byId("facts").textContent = `${naturalWidth} × ${naturalHeight} · ${bytes(item.file.size)}`;
  }

  #showAnswer(item) {
    const { result } = item;
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
    const candidate = item.result.candidates[item.chosen];
    const text = FORMS[button.dataset.copy]({ item, candidate, service: this.#service });
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
