/**
 * The diverging map: blue where an example helps, orange where it hurts, paper at zero. Of an observable, of which nobody
 * knows whether less is better, purple lowers and green raises. Blue against orange, and purple against green, is told
 * apart with every common form of colour blindness, and lightness alone says how far from zero a value is: the map is
 * computed in OKLCh, with lightness a straight line in |value|, so that equal steps look equal. In the dark theme the
 * line runs the other way, from the dark paper to light ends.
 */

/** @typedef {[number, number, number]} Rgb 0 to 255 */

const HALF = 255;
/** @typedef {"loss" | "observable"} Palette */
const HUES = { loss: { above: 255, below: 50 }, observable: { above: 312, below: 148 } };
const THEMES = {
  light: { paper: 0.99, end: 0.37, chroma: 0.17, undefined: /** @type {Rgb} */ ([222, 222, 222]) },
  dark: { paper: 0.235, end: 0.87, chroma: 0.15, undefined: /** @type {Rgb} */ ([72, 72, 76]) },
};

/** Okabe and Ito's colours for lines; yellow is left out, as it is too pale on white. */
const LINES = {
  light: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#444444"],
  dark: ["#56b4e9", "#ff8c3a", "#2fd0a0", "#e6a3c8", "#8fa8ff", "#f0c75e", "#dddddd"],
};

/** @type {Map<string, Uint8ClampedArray>} */
const tables = new Map();

/**
 * @param {boolean} dark
 * @param {Palette} [palette]
 * @returns {Uint8ClampedArray} red, green, blue of 2·255 + 1 values from −1 (hurts) to 1 (helps)
 */
export function table(dark, palette = "loss") {
  const key = `${palette} ${dark}`;
  let made = tables.get(key);
  if (!made) {
    made = new Uint8ClampedArray(3 * (2 * HALF + 1));
    for (let at = -HALF; at <= HALF; at += 1) made.set(computed(at / HALF, dark, HUES[palette]), 3 * (at + HALF));
    tables.set(key, made);
  }
  return made;
}

/**
 * @param {number} value from −1 (hurts) to 1 (helps); beyond them it is the end's colour; NaN is undefined
 * @param {boolean} dark
 * @param {Palette} [palette]
 * @returns {Rgb}
 */
export function colour(value, dark, palette = "loss") {
  if (Number.isNaN(value)) return undefinedColour(dark);
  const at = 3 * (Math.round(Math.min(Math.max(value, -1), 1) * HALF) + HALF);
  const made = table(dark, palette);
  return [made[at], made[at + 1], made[at + 2]];
}

/** @param {boolean} dark */
export function undefinedColour(dark) {
  return THEMES[dark ? "dark" : "light"].undefined;
}

/** @param {Rgb} rgb */
export function css([red, green, blue]) {
  return `rgb(${red}, ${green}, ${blue})`;
}

/**
 * Black or white, whichever is read more easily on the colour.
 * @param {Rgb} rgb
 */
export function inkOn([red, green, blue]) {
  return 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "#111" : "#fff";
}

/**
 * @param {number} place of the curve
 * @param {boolean} dark
 */
export function lineColour(place, dark) {
  const colours = LINES[dark ? "dark" : "light"];
  return colours[place % colours.length];
}

/**
 * @param {number} value
 * @param {boolean} dark
 * @param {{above: number, below: number}} hues in degrees
 * @returns {Rgb}
 */
function computed(value, dark, hues) {
  const { paper, end, chroma } = THEMES[dark ? "dark" : "light"];
  const size = Math.abs(value);
  const lightness = paper + (end - paper) * size;
  const hue = (value > 0 ? hues.above : hues.below) * (Math.PI / 180);
  // The most colour that both the value and the screen allow at this lightness.
  let strength = chroma * Math.min(1, 1.7 * size ** 0.85);
  let rgb = toRgb(lightness, strength, hue);
  while (strength > 0.001 && rgb.some((part) => part < 0 || part > 1)) {
    strength *= 0.98;
    rgb = toRgb(lightness, strength, hue);
  }
  return /** @type {Rgb} */ (rgb.map((part) => Math.round(255 * Math.min(Math.max(part, 0), 1))));
}

/**
 * OKLCh to sRGB (Ottosson 2020), each part 0 to 1 where the screen can show it.
 * @param {number} lightness
 * @param {number} chroma
 * @param {number} hue radians
 */
function toRgb(lightness, chroma, hue) {
  const [a, b] = [chroma * Math.cos(hue), chroma * Math.sin(hue)];
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ].map((part) => (part <= 0.0031308 ? 12.92 * part : 1.055 * Math.max(part, 0) ** (1 / 2.4) - 0.055));
}
