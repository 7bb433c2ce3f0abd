/** The shots of a clip -> a WebVTT track, as `POST /v1/clips` writes it for `text/vtt`. */

const LEAST_CUE_S = 1;

/**
 * Write the track; a shot whose caption is withheld has no cue.
 * @param {{start_s: number, end_s: number, caption: string?}[]} shots
 */
export function vttOf(shots) {
  const cues = shots.filter(({ caption }) => caption).map((shot) => `${timesOf(shot)}\n${escaped(shot.caption)}\n`);
  return ["WEBVTT\n", ...cues].join("\n");
}

/** A cue ends after it begins: that of a picture that does not move, too. */
function timesOf({ start_s, end_s }) {
  const end = end_s - start_s >= 0.001 ? end_s : start_s + LEAST_CUE_S;
  return `${timeOf(start_s)} --> ${timeOf(end)}`;
}

function timeOf(seconds) {
  const ms = Math.round(1000 * seconds);
  const [h, m, s] = [ms / 3_600_000, (ms / 60_000) % 60, (ms / 1000) % 60].map((each) => padded(Math.floor(each), 2));
  return `${h}:${m}:${s}.${padded(ms % 1000, 3)}`;
}

const padded = (number, digits) => String(number).padStart(digits, "0");

const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

/** Write a time as players do, with a decimal where there is one: 1:04.5 */
export function clock(seconds) {
  const tenths = Math.round(10 * seconds);
  const rest = padded(Math.floor((tenths % 600) / 10), 2);
  return `${Math.floor(tenths / 600)}:${rest}${tenths % 10 ? `.${tenths % 10}` : ""}`;
}
