/** The camera: of the phone, or of the computer where the browser lets a page have it. */

import { byId } from "./dom.js";

const QUALITY = 0.95;

/**
 * Open the camera when asked to.
 * @param {function(File[]): void} onFiles takes each photo
 */
export function connectCamera(onFiles) {
  const dialog = byId("camera");
  const view = byId("camera-view");
  let taken = 0;

  byId("photograph").addEventListener("click", async () => {
    if (hasItsOwnCameraProgram() || !navigator.mediaDevices) {
      byId("snapshot").click();
      return;
    }
    taken = 0;
    byId("camera-count").textContent = "";
    dialog.showModal();
    await start(view);
  });
  byId("snapshot").addEventListener("change", ({ target }) => {
    onFiles([...target.files]);
    target.value = "";
  });
  byId("shoot").addEventListener("click", async () => {
    onFiles([await shoot(view)]);
    taken += 1;
    byId("camera-count").textContent = `${taken} taken`;
  });
  byId("camera-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => stop(view));
}

/** On a phone the input opens the camera's own program, which takes better photos. */
const hasItsOwnCameraProgram = () => matchMedia("(pointer: coarse)").matches;

async function start(view) {
  const wanted = { width: { ideal: 4096 }, height: { ideal: 2160 }, facingMode: "environment" };
  byId("camera-problem").textContent = "";
  byId("shoot").disabled = true;
  try {
    view.srcObject = await navigator.mediaDevices.getUserMedia({ video: wanted });
    await view.play();
    byId("shoot").disabled = false;
    byId("shoot").focus();
  } catch (error) {
    byId("camera-problem").textContent =
      error.name === "NotAllowedError"
        ? "The browser does not let this page use the camera. Allow it beside the address, then open this again."
        : "There is no camera that can be used. Choose a photo instead.";
  }
}

function stop(view) {
  view.srcObject?.getTracks().forEach((track) => track.stop());
  view.srcObject = null;
}

/** Take what the camera shows, in its full size. */
async function shoot(view) {
  const canvas = document.createElement("canvas");
  canvas.width = view.videoWidth;
  canvas.height = view.videoHeight;
  canvas.getContext("2d").drawImage(view, 0, 0);
  const photo = await new Promise((done) => canvas.toBlob(done, "image/jpeg", QUALITY));
  const time = new Date().toTimeString().slice(0, 8).replaceAll(":", "-");
  return new File([photo], `photo-${time}.jpg`, { type: "image/jpeg" });
}
