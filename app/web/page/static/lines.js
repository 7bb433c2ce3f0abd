/** A body -> its lines, as they come. */

/**
 * Give each line of text, without its end, as soon as it is there; a line without an end was cut off.
 * @param {ReadableStream<Uint8Array>} body
 * @yields {string}
 */
export async function* linesOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    yield* lines;
  }
}
