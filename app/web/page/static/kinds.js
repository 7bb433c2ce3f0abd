/** What a file is: a photo, an image that moves, or a video. */

const VIDEO_NAME = /\.(mp4|m4v|mov|webm|mkv|avi|mpe?g|wmv|flv|ogv|3gp)$/i;
const HEAD_BYTES = 65_536;
const GIF_HEAD_BYTES = 13;

/** Say whether a file calls itself a video; some browsers know no type for some of them. */
export const looksLikeVideo = ({ type, name }) => (type ? type.startsWith("video/") : VIDEO_NAME.test(name));

/**
 * Say whether an image moves: a GIF, WebP, PNG or AVIF of several pictures.
 * @param {File} file one that cannot be read does not move
 */
export async function moves(file) {
  try {
    const head = new Uint8Array(await file.slice(0, HEAD_BYTES).arrayBuffer());
    const text = new TextDecoder("latin1").decode(head);
    if (text.startsWith("GIF8")) return gifMoves(new Uint8Array(await file.arrayBuffer()));
    if (text.startsWith("RIFF") && text.startsWith("WEBPVP8X", 8)) return Boolean(head[20] & 2);
    if (text.startsWith("PNG", 1)) return text.split("IDAT", 1)[0].includes("acTL");
    return text.startsWith("ftypavis", 4);
  } catch {
    return false;
  }
}

/** Look for a second picture; reference: GIF89a, sections 18 to 26. */
function gifMoves(data) {
  let pictures = 0;
  let at = GIF_HEAD_BYTES + coloursOf(data[10]);
  for (;;) {
    if (data[at] === 0x2c) {
      pictures += 1;
      if (pictures > 1) return true;
      at = afterBlocks(data, at + 11 + coloursOf(data[at + 9]));
    } else if (data[at] === 0x21) {
      at = afterBlocks(data, at + 2);
    } else {
      return false; // the trailer, or the end of what is there
    }
  }
}

/** Give the bytes of a table of colours. */
const coloursOf = (flags) => (flags & 0x80 ? 3 << ((flags & 7) + 1) : 0);

function afterBlocks(data, begin) {
  let at = begin;
  while (data[at]) at += data[at] + 1;
  return at + 1;
}
