/** Where the network looked for a word: a few rows and columns -> light and shade over the photo. */

const CELL_PX = 24;
const SHADE = [14, 11, 22];
const GLOW = [255, 122, 24];

/**
 * Draw over a photo: what was looked at glows, the rest is in the shade.
 * @param {HTMLCanvasElement} canvas lies exactly over the photo
 * @param {number[][]} rows how much each region was looked at
 * @param {number} strength 0..1, less for words that hardly looked
 */
export function drawHeat(canvas, rows, strength) {
  const across = rows[0].length;
  canvas.width = across * CELL_PX;
  canvas.height = rows.length * CELL_PX;
  const smooth = smoothed(rows, canvas.width, canvas.height);
  const highest = Math.max(...smooth) || 1;
  const context = canvas.getContext("2d");
  const picture = context.createImageData(canvas.width, canvas.height);
  smooth.forEach((value, n) => picture.data.set(pixel(value / highest, strength), 4 * n));
  context.putImageData(picture, 0, 0);
}

/** Mix a shade, deeper where less was looked at, and a glow over it. */
function pixel(share, strength) {
  const shade = 0.62 * strength * (1 - share) ** 1.5;
  const glow = 0.55 * strength * share ** 1.6;
  const alpha = glow + shade * (1 - glow);
  const mixed = GLOW.map((each, n) => (glow * each + shade * (1 - glow) * SHADE[n]) / (alpha || 1));
  return [...mixed, 255 * alpha];
}

/** Enlarge with cubic B-splines, which neither overshoot nor show the regions' borders. */
function smoothed(rows, width, height) {
  const wide = rows.map((row) => enlarged(row, width));
  const columns = Array.from({ length: width }, (_, x) =>
    enlarged(wide.map((row) => row[x]), height),
  );
  return Float32Array.from({ length: width * height }, (_, n) => columns[n % width][Math.floor(n / width)]);
}

function enlarged(values, length) {
  const last = values.length - 1;
  return Float32Array.from({ length }, (_, n) => {
    const place = ((n + 0.5) * values.length) / length - 0.5;
    const whole = Math.floor(place);
    return splineWeights(place - whole).reduce(
      (sum, weight, k) => sum + weight * values[Math.min(last, Math.max(0, whole + k - 1))],
      0,
    );
  });
}

function splineWeights(t) {
  return [(1 - t) ** 3, 3 * t ** 3 - 6 * t ** 2 + 4, -3 * t ** 3 + 3 * t ** 2 + 3 * t + 1, t ** 3].map(
    (weight) => weight / 6,
  );
}

/**
 * Lay the canvas over that part of the photo which the network saw.
 * @param {HTMLCanvasElement} canvas
 * @param {HTMLImageElement} photo
 * @param {"squeeze"|"crop"|"pad"} fit how the photo became the network's square
 */
export function place(canvas, photo, fit) {
  const { naturalWidth: width, naturalHeight: height } = photo;
  let side = null;
  if (fit === "crop") side = Math.min(width, height);
  if (fit === "pad") side = Math.max(width, height);
  const across = side ? side / width : 1;
  const down = side ? side / height : 1;
  Object.assign(canvas.style, {
    width: `${100 * across}%`,
    height: `${100 * down}%`,
    left: `${50 * (1 - across)}%`,
    top: `${50 * (1 - down)}%`,
  });
}

/** Name the region that was looked at most: "the lower left". */
export function whereItLooked(rows) {
  const flat = rows.flat();
  const peak = flat.indexOf(Math.max(...flat));
  const across = rows[0].length;
  const down = ["upper", "", "lower"][third(Math.floor(peak / across), rows.length)];
  const side = ["left", "", "right"][third(peak % across, across)];
  if (!down && !side) return "the middle";
  return `the ${[down, side].filter(Boolean).join(" ")}${down && side ? "" : " part"}`;
}

const third = (index, count) => Math.min(2, Math.floor((3 * (index + 0.5)) / count));
