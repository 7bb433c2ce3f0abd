/** The list of this session's photos and clips. */

import { byId, make, percent } from "./dom.js";

const STATES = { waiting: "Waits", sending: "Being looked at …", failed: "No sentence" };

/** Keeps one button a photo, newest first. */
export class History {
  #session;
  #buttons = new Map();

  constructor(session) {
    this.#session = session;
    session.addEventListener("change", ({ detail }) => this.#update(detail));
    session.addEventListener("select", () => this.#mark());
    byId("clear").addEventListener("click", () => {
      session.clear();
      byId("choose").focus();
    });
  }

  #update(item) {
    if (!this.#buttons.has(item)) this.#add(item);
    const button = this.#buttons.get(item);
    button.dataset.state = item.state;
    button.querySelector(".line").textContent = lineOf(item);
    button.querySelector(".sub").textContent = subOf(item);
  }

  #add(item) {
    const picture = pictureOf(item);
    picture.addEventListener("error", () => picture.remove());
    const thumb = make("span", { className: "thumb" }, picture);
    const text = make("span", {}, make("span", { className: "line" }), make("span", { className: "sub" }));
    const button = make("button", { type: "button" }, thumb, text);
    button.addEventListener("click", () => {
      this.#session.select(item);
      bringIntoView(byId("detail"));
    });
    this.#buttons.set(item, button);
    const list = byId("history-list");
    list.insertBefore(make("li", {}, button), list.children[this.#session.items.indexOf(item)] ?? null);
  }

  #mark() {
    if (!this.#session.items.length) {
      this.#buttons.clear();
      byId("history-list").replaceChildren();
    }
    for (const [item, button] of this.#buttons) {
      if (item === this.#session.selected) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
    byId("history").hidden = this.#session.items.length === 0;
  }
}

function pictureOf({ kind, url }) {
  if (kind !== "video") return make("img", { src: url, alt: "", loading: "lazy", decoding: "async" });
  return make("video", { src: url, muted: true, playsInline: true, preload: "metadata", "aria-hidden": "true" });
}

/** On a narrow screen the photo stands above the list. */
function bringIntoView(element) {
  if (element.getBoundingClientRect().top < 0) element.scrollIntoView();
}

function lineOf(item) {
  if (item.state !== "done") return STATES[item.state];
  return item.result.caption ?? "Not sure enough to say";
}

function subOf(item) {
  const confidence = item.result?.confidence;
  return [item.file.name, ...(typeof confidence === "number" ? [`${percent(confidence)} sure`] : [])].join(" · ");
}
