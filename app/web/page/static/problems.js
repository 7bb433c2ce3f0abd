/** What went wrong -> one plain sentence that says what would work. */

import { bytes } from "./dom.js";

/** Something that the service, or the way to it, did not do. */
export class Problem extends Error {
  /** @param {Object} details problem details of RFC 9457; `code` decides */
  constructor(details) {
    super(details.detail ?? details.title ?? details.code);
    Object.assign(this, details);
  }
}

const MEANINGS = {
  no_answer: ({ size, thing }) =>
    "No answer came. Check that you are connected and that the service is running, then try again." +
    (size > 10e6 ? ` The ${thing} has ${bytes(size)}; the service may have refused so much.` : ""),
  unreadable_file: ({ thing }) =>
    `The browser cannot read this file any more. Choose it again; a folder is no ${thing}.`,
  empty_file: ({ thing }) => `There is nothing in this file. Choose the ${thing} itself, or another copy of it.`,
  not_understood: ({ status }) =>
    `Something between here and the service answered with ${status}. Try again, or ask its operator.`,
  unauthorized: () => "The service asks for a key. Enter one above.",
  body_too_large: ({ limit, size, thing }) =>
    `The ${thing} has ${bytes(size)}, and the service takes ${bytes(limit)}. Send a smaller copy.`,
  too_many_pixels: ({ limit }) =>
    limit
      ? `The photo has too many pixels: the service takes ${Math.round(limit / 1e6)} megapixels. Send a smaller copy.`
      : "The photo has too many pixels. Send a smaller copy.",
  unsupported_image: ({ detail }) => `This file is no photo that the service can read (${detail}).`,
  unsupported_media_type: ({ detail }) => `The service cannot read this file. ${detail}`,
  undecodable_image: () => "The photo is damaged or cut short. Try another copy of it.",
  too_costly: () => "Opening this photo takes too long. Save it as an ordinary JPEG, and send that.",
  slow_body: ({ thing }) => `The ${thing} arrived too slowly. Try again, or send a smaller copy.`,
  too_many_requests: ({ thing }) => `You have sent many ${thing}s at once. Wait a moment, then try again.`,
  rate_exceeded: ({ thing }) => `You send ${thing}s too often. Wait a moment, then try again.`,
  overloaded: () => "The service is busy. Wait a moment, then try again.",
  not_ready: () => "The service is starting or stopping. Wait a moment, then try again.",
  deadline_exceeded: () => "The service was too busy to answer in time. Try again.",
  internal_error: ({ request_id }) => `Something broke in the service. Tell its operator this number: ${request_id}`,
};

/** What is different where a clip was sent: its details are written for people. */
const MEANINGS_OF_CLIPS = {
  no_clips: () => "This service takes no clips. Send a photo of it instead, or ask its operator.",
  clip_too_long: ({ detail }) => sentence(detail),
  too_many_pixels: ({ detail }) => `${sentence(detail)} Send a smaller copy.`,
  unsupported_image: ({ detail }) => sentence(`The service cannot read this clip: ${detail}`),
  undecodable_image: ({ detail }) => sentence(`The service cannot read this clip: ${detail}`),
  too_costly: () => "Reading this clip takes too long. Send a part of it, or a smaller copy.",
  deadline_exceeded: () => "The service could not describe the clip in time. Send a part of it, or try again.",
};

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1).replace(/\.$/, "")}.`;

/** Give the sentence for a problem; one that is not known here speaks for itself. */
export function inPlainWords(problem) {
  const { code, thing = "photo" } = problem;
  const meaning = (thing === "clip" && MEANINGS_OF_CLIPS[code]) || MEANINGS[code];
  if (meaning) return meaning({ ...problem, thing });
  const mistakes = (problem.errors ?? []).map(({ field, message }) => `${field}: ${message}`);
  return [problem.message, ...mistakes].join(" ");
}

/** Say whether waiting alone may help. */
export const passes = ({ code }) => ["overloaded", "not_ready", "too_many_requests", "rate_exceeded"].includes(code);
