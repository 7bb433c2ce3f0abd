/** The ways in which photos and clips come: chosen, dropped, pasted, or the drawing that is here. */

import { byId } from "./dom.js";
import { looksLikeVideo } from "./kinds.js";

const NOT_FILES = "There was no photo in that. Save the photo first, then drop or paste the file.";
const PHOTO_NAME = /\.(jpe?g|png|webp|gif|bmp|tiff?|avif|hei[cf])$/i;

/** @param {function(File[]): void} onFiles takes what came */
export function connectIntake(onFiles) {
  const take = (files) => {
    byId("intake-problem").textContent = files.length ? "" : NOT_FILES;
    if (files.length) onFiles(files);
  };
  connectChoosing(take);
  connectDropping(take);
  connectPasting(take);
  connectSample(take);
}

function connectChoosing(take) {
  byId("choose").addEventListener("click", () => byId("files").click());
  byId("files").addEventListener("change", ({ target }) => {
    take([...target.files]);
    target.value = ""; // the same photo may be chosen again
  });
}

/** The whole page takes what is dropped; a photo beside a target must not replace the page. */
function connectDropping(take) {
  let inside = 0;
  const mark = () => byId("dropping").classList.toggle("on", inside > 0);
  addEventListener("dragenter", (event) => {
    event.preventDefault();
    inside += 1;
    mark();
  });
  addEventListener("dragleave", () => {
    inside = Math.max(0, inside - 1);
    mark();
  });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", async (event) => {
    event.preventDefault();
    inside = 0;
    mark();
    take(await filesOf(event.dataTransfer));
  });
}

/** Give what was dropped; of a folder the photos and clips in it, and in the folders in it. */
async function filesOf(transfer) {
  const files = [...transfer.files]; // gone after the first wait
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return files;
  return (await Promise.all(entries.map((entry) => photosIn(entry, false)))).flat();
}

async function photosIn(entry, inFolder = true) {
  if (entry.isFile) {
    const file = await new Promise((done, failed) => entry.file(done, failed));
    return inFolder && !isWanted(file) ? [] : [file];
  }
  const reader = entry.createReader();
  const photos = [];
  for (;;) {
    const some = await new Promise((done, failed) => reader.readEntries(done, failed)); // a hundred at most
    if (!some.length) return photos;
    photos.push(...(await Promise.all(some.map((each) => photosIn(each)))).flat());
  }
}

const isWanted = (file) => file.type.startsWith("image/") || PHOTO_NAME.test(file.name) || looksLikeVideo(file);

function connectPasting(take) {
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    const inField = event.target instanceof HTMLInputElement;
    if (inField && !files.length) return;
    event.preventDefault();
    take(files);
  });
}

function connectSample(take) {
  byId("sample").addEventListener("click", async () => {
    try {
      const answer = await fetch(byId("sample").querySelector("img").src);
      take([new File([await answer.blob()], "dog.jpg", { type: "image/jpeg" })]);
    } catch {
      byId("intake-problem").textContent = "The drawing did not come. Is the service running?";
    }
  });
}
