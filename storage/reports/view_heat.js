// Scores as colours: maps arrive as float16 and are coloured here, so that the sliders work on every map at once.

const LEVELS = 256;
const FAINTEST = 64; // alpha of the lowest level over a picture, as in reports: the tissue shows through

const HALVES = Float32Array.from({ length: 65536 }, (_, bits) => {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return exponent ? sign * 2 ** (exponent - 15) * (1 + fraction / 1024) : sign * 2 ** -24 * fraction;
});

export const format = (value) => (value === null || Number.isNaN(value) ? "–" : Number(value.toPrecision(4)).toString());

/** The colours of one layer: all 65,536 values of a float16 as pixels, below the cut and where nothing was scored transparent. */
export class Palette {
  constructor(colours, [low, high]) {
    this.colours = colours; // hexadecimal, six digits a level
    this.low = low;
    this.high = high;
    this.cut = -Infinity;
    this.tables = {};
  }

  /** Hide what is below; -Infinity hides nothing. */
  hideBelow(cut) {
    this.cut = cut;
    this.tables = {};
  }

  rgb(level) {
    return [0, 2, 4].map((place) => parseInt(this.colours.substr(6 * level + place, 2), 16));
  }

  table(fading) {
    return (this.tables[fading] ??= Uint32Array.from(HALVES, (value) => {
      if (Number.isNaN(value) || value < this.cut) return 0;
      const level = Math.round(Math.min(1, Math.max(0, (value - this.low) / (this.high - this.low))) * (LEVELS - 1));
      const [red, green, blue] = this.rgb(level);
      const alpha = fading ? FAINTEST + Math.round(((255 - FAINTEST) * level) / (LEVELS - 1)) : 255;
      return ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;
    }));
  }

  /** Draw the scores on a canvas of their size. */
  paint(canvas, heat, fading) {
    canvas.width = heat.width;
    canvas.height = heat.bits.length / heat.width;
    const context = canvas.getContext("2d");
    const image = context.createImageData(canvas.width, canvas.height);
    const pixels = new Uint32Array(image.data.buffer), table = this.table(fading);
    for (let place = 0; place < pixels.length; place++) pixels[place] = table[heat.bits[place]];
    context.putImageData(image, 0, 0);
    return context;
  }

  paintBar(canvas) {
    canvas.width = LEVELS;
    canvas.height = 1;
    const context = canvas.getContext("2d");
    for (let level = 0; level < LEVELS; level++) {
      context.fillStyle = `rgb(${this.rgb(level).join()})`;
      context.fillRect(level, 0, 1, 1);
    }
  }
}

/** Scores from an address: their float16 bits, row by row, and the width. */
export async function fetchHeat(address, signal) {
  const answer = await fetch(address, { signal });
  if (!answer.ok) throw new Error(await answer.text());
  return { width: Number(answer.headers.get("X-Width")), bits: new Uint16Array(await answer.arrayBuffer()) };
}

export const valueAt = (heat, x, y) => HALVES[heat.bits[y * heat.width + x]];
