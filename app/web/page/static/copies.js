/** The answer in the forms that people paste elsewhere. */

import { vttOf } from "./tracks.js";

/** Give the text of a candidate in one of the forms. */
export const FORMS = {
  text: ({ candidate }) => candidate.caption,
  alt: ({ candidate }) => `alt="${escaped(candidate.caption)}"`,
  json: ({ item }) => pretty(item.answer),
  curl: ({ item, service }) =>
    curlOf("image", item.file.name, `${service.address("v1/captions")}?${service.query}`, service),
};

/** Give a clip in one of the forms. */
export const CLIP_FORMS = {
  text: ({ item }) => item.answer.summary,
  vtt: ({ item }) => vttOf(item.answer.shots),
  json: ({ item }) => pretty(item.answer),
  curl: ({ item, service }) => curlOf("file", item.file.name, `${service.address("v1/clips")}`, service),
};

const escaped = (text) =>
  text.replace(/[&"<>]/g, (sign) => ({ "&": "&amp;", '"': "&quot;", "<": "&lt;", ">": "&gt;" })[sign]);

/** Indent, but keep rows of numbers in a line. */
function pretty(answer) {
  return JSON.stringify(answer, null, 2).replace(/\[\s+(-?\d[^[\]{}]*?)\s+\]/g, (_, numbers) =>
    `[${numbers.replace(/\s+/g, " ")}]`,
  );
}

/** Give the command that asks the same; a key stays out of it. */
function curlOf(field, filename, address, service) {
  const name = filename.replace(/[\\"]/g, "\\$&");
  const part = /[,;"\\]/.test(filename) ? `${field}=@"${name}"` : `${field}=@${filename}`;
  const key = service.key ? ` -H "Authorization: Bearer $CAPTION_API_KEY"` : "";
  return `curl${key} -F ${quoted(part)} ${quoted(address)}`;
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** Put text on the clipboard, also where a page without TLS may not use it directly. */
export async function copy(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // refused to this page: the old way may still be allowed
    }
  }
  return copyOldWay(text);
}

function copyOldWay(text) {
  const focused = document.activeElement;
  const area = document.createElement("textarea");
  area.className = "visually-hidden";
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}
