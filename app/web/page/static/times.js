/** The time of each stage, as the service and the clock of the browser tell it. */

import { byId, make } from "./dom.js";

const MEANINGS = {
  cache: "found again",
  decode: "opened the photo",
  queue: "waited for its turn",
  encode: "looked at it",
  search: "chose the words",
  other: "took it in and answered",
  way: "on the way",
};

/**
 * Show the stages as one bar and as a list.
 * @param {Map<string, number>} stages milliseconds; `total` is all that the service took
 * @param {number} tookMs until the page had the answer
 */
export function showTimes(stages, tookMs) {
  const parts = partsOf(stages, tookMs);
  byId("stack").replaceChildren(...parts.map(([stage, ms]) => segment(stage, ms, tookMs)));
  byId("times").replaceChildren(
    ...parts.flatMap(([stage, ms]) => row(stage, MEANINGS[stage] ?? stage, ms)),
    ...row("all", "in all", tookMs),
  );
}

/** Give what adds up to the whole; a stage that a batch shares may overlap with another. */
function partsOf(stages, tookMs) {
  const order = Object.keys(MEANINGS);
  const told = [...stages].filter(([stage]) => stage !== "total");
  told.sort(([one], [other]) => order.indexOf(one) - order.indexOf(other));
  const total = stages.get("total") ?? 0;
  const known = told.reduce((sum, [, ms]) => sum + ms, 0);
  const rest = [
    ["other", total - known],
    ["way", tookMs - Math.max(total, known)],
  ];
  return [...told, ...rest.filter(([, ms]) => stages.size && ms > 0)];
}

function segment(stage, ms, tookMs) {
  const part = make("i", { className: `stage-${stage}` });
  part.style.flexGrow = String(Math.max(ms / tookMs, 0.004));
  return part;
}

function row(stage, meaning, ms) {
  const name = make("dt", { className: `stage-${stage}` }, make("i"), meaning);
  return [name, make("dd", {}, `${ms < 9.95 ? ms.toFixed(1) : Math.round(ms)} ms`)];
}
