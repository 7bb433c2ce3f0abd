/** The page: wires the service, the session and what shows them. */

import { Service } from "./api.js";
import { connectCamera } from "./camera.js";
import { Detail } from "./detail.js";
import { announce, byId, percent } from "./dom.js";
import { History } from "./history.js";
import { connectIntake } from "./intake.js";
import { connectKeys } from "./keys.js";
import { inPlainWords, Problem } from "./problems.js";
import { Session } from "./session.js";

const HEALTH = {
  ready: "Ready",
  starting: "Starting …",
  warming: "Starting …",
  draining: "Going away",
  failed: "Out of order",
  away: "No answer",
};
const LOOK_AGAIN_MS = 1500;

let nextLook = 0;

const service = new Service();
const session = new Session(service);
new History(session);
const detail = new Detail(session, service);
const askForKey = connectKeys(service, getToKnow);
const take = (files) => session.add(files);
connectIntake(take);
connectCamera(take);
session.pause(); // until the service is known: how many candidates it has decides what is asked
session.addEventListener("key", askForKey);
session.addEventListener("change", ({ detail: item }) => tell(item));
watchHealth();

/** Look until the service is ready, then learn what it is; who asks again while it looks changes nothing. */
async function watchHealth() {
  clearTimeout(nextLook);
  const state = await service.health().catch(() => "away");
  byId("health").dataset.state = state;
  const words = HEALTH[state] ?? state;
  if (byId("health").textContent !== words) byId("health").textContent = words;
  if (state === "ready") await getToKnow();
  else lookAgain();
}

function lookAgain() {
  clearTimeout(nextLook);
  nextLook = setTimeout(watchHealth, LOOK_AGAIN_MS);
}

async function getToKnow() {
  try {
    const model = await service.model();
    detail.fit = model.image?.fit ?? "squeeze";
    byId("model").textContent = `${model.name}, version ${model.version}`;
    session.resume();
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    if (problem.code === "unauthorized") askForKey();
    else lookAgain();
  }
}

/** Say what became of a photo. */
function tell(item) {
  if (item.state === "failed") announce(`${item.file.name}: ${inPlainWords(item.problem)}`);
  if (item.problem?.code === "no_answer") watchHealth();
  if (item.state !== "done") return;
  const { caption, confidence } = item.result;
  const sure = typeof confidence === "number" ? `, ${percent(confidence)} sure` : "";
  announce(`${item.file.name}: ${caption ?? "not sure enough to say"}${sure}`);
}
