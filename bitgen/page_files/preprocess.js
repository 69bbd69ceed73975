// A file as pixels, and pixels as the image encoder takes them.
//
// The resize is that of Pillow, number by number: a bicubic filter that is widened when an image shrinks, applied to
// rows and to columns, with weights as whole numbers of 22 bits behind the point. So a photograph gives the same bytes
// here as in Python.

export const MOST_BYTES = 50e6;
export const MOST_PIXELS = 50e6;

/** A problem to be told to the user as it is. */
export class Refused extends Error {}

const text = (bytes, start, end) => String.fromCharCode(...bytes.subarray(start, end));

// Width and height of a JPEG: in the first segment that starts a frame
function jpegSize(bytes, view) {
  for (let at = 2; at + 9 < bytes.length;) {
    if (bytes[at] !== 0xff) return null;
    const kind = bytes[at + 1];
    if (kind === 0xff) { at += 1; continue; }                         // filling
    const isFrame = kind >= 0xc0 && kind <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(kind);
    if (isFrame) return [view.getUint16(at + 7), view.getUint16(at + 5)];
    at += 2 + view.getUint16(at + 2);
  }
  return null;
}

// Of a WebP: its three kinds keep the size in different places
function webpSize(bytes, view) {
  const three = (at) => bytes[at] | bytes[at + 1] << 8 | bytes[at + 2] << 16;
  const kind = text(bytes, 12, 16);
  if (kind === 'VP8X') return [three(24) + 1, three(27) + 1];
  if (kind === 'VP8 ') return [view.getUint16(26, true) & 0x3fff, view.getUint16(28, true) & 0x3fff];
  if (kind !== 'VP8L') return null;
  const bits = view.getUint32(21, true);
  return [(bits & 0x3fff) + 1, (bits >>> 14 & 0x3fff) + 1];
}

/** Width and height as a file's header says, before anything is decoded; null: not a known format, or cut off. */
export function imageSize(bytes) {
  if (bytes.length < 30) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (text(bytes, 0, 8) === '\x89PNG\r\n\x1a\n') return [view.getUint32(16), view.getUint32(20)];
  if (text(bytes, 0, 3) === 'GIF') return [view.getUint16(6, true), view.getUint16(8, true)];
  if (text(bytes, 0, 2) === 'BM') return [Math.abs(view.getInt32(18, true)), Math.abs(view.getInt32(22, true))];
  if (text(bytes, 0, 4) === 'RIFF' && text(bytes, 8, 12) === 'WEBP') return webpSize(bytes, view);
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return jpegSize(bytes, view);
  return null;
}

/** Refuse, by its size and its header, what should not even be decoded. */
export function checkFile(bytes) {
  if (bytes.length === 0) throw new Refused('This file is empty. Please choose a photograph.');
  const millions = (x) => Math.ceil(x / 1e6);
  if (bytes.length > MOST_BYTES) {
    throw new Refused(`This file has ${millions(bytes.length)} MB; up to ${millions(MOST_BYTES)} MB are opened here. `
      + 'Please choose a smaller one.');
  }
  const size = imageSize(bytes);
  if (!size) {
    throw new Refused('This file is not a photograph that can be opened here. JPEG, PNG, WebP, GIF and BMP can.');
  }
  if (!size[0] || !size[1]) throw new Refused('This picture has no pixels. Please choose another one.');
  if (size[0] * size[1] > MOST_PIXELS) {
    throw new Refused(`This picture has ${millions(size[0] * size[1])} megapixels; up to ${millions(MOST_PIXELS)} are `
      + 'opened here. Please scale it down.');
  }
}

/** {width, height, rgb} of a file: upright, eight bits, what is transparent over white. */
export async function decode(bytes) {
  checkFile(bytes);
  const asItIs = { colorSpaceConversion: 'none', premultiplyAlpha: 'none', imageOrientation: 'from-image' };
  let bitmap;
  try {
    bitmap = await createImageBitmap(new Blob([bytes]), asItIs);
  } catch {
    throw new Refused('This picture cannot be read: its file is broken or cut off. Please choose another one.');
  }
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext('2d', { alpha: false, willReadFrequently: true });
  context.fillStyle = 'white';
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  const rgb = new Uint8Array(3 * width * height);
  for (let i = 0, j = 0; j < rgb.length; i += 4, j += 3) {
    rgb[j] = rgba[i];
    rgb[j + 1] = rgba[i + 1];
    rgb[j + 2] = rgba[i + 2];
  }
  return { width, height, rgb };
}

// Keys' cubic with a = -1/2
function cubic(x) {
  const d = Math.abs(x);
  if (d < 1) return (1.5 * d - 2.5) * d * d + 1;
  if (d < 2) return (((d - 5) * d + 8) * d - 4) * -0.5;
  return 0;
}

const BITS = 22;

// For each position of the result: where its window begins, and its weights as whole numbers
function windows(from, to) {
  const scale = from / to;
  const wide = Math.max(scale, 1);
  const support = 2 * wide;
  return Array.from({ length: to }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(center - support + 0.5), 0);
    const last = Math.min(Math.trunc(center + support + 0.5), from);
    const weights = Array.from({ length: last - first }, (_, k) => cubic((k + first - center + 0.5) * (1 / wide)));
    const total = weights.reduce((a, b) => a + b, 0);
    const whole = weights.map((w) => {
      const x = (total === 0 ? w : w / total) * 2 ** BITS;
      return Math.trunc(x < 0 ? x - 0.5 : x + 0.5);
    });
    return { first, weights: Int32Array.from(whole) };
  });
}

// One pass: along rows (step 3 bytes) or along columns (step one row)
function pass({ width, height, rgb }, to, alongRows) {
  const [w, h] = alongRows ? [to, height] : [width, to];
  const out = new Uint8ClampedArray(3 * w * h);
  const step = alongRows ? 3 : 3 * width;
  const spans = windows(alongRows ? width : height, to);
  for (let y = 0, at = 0; y < h; y += 1) {
    for (let x = 0; x < w; x += 1) {
      const { first, weights } = spans[alongRows ? x : y];
      const start = alongRows ? 3 * (y * width + first) : 3 * (first * width + x);
      for (let c = 0; c < 3; c += 1, at += 1) {
        let sum = 1 << (BITS - 1);
        for (let k = 0, from = start + c; k < weights.length; k += 1, from += step) sum += rgb[from] * weights[k];
        out[at] = sum >> BITS;
      }
    }
  }
  return { width: w, height: h, rgb: out };
}

/**
 * A resized image, as Pillow's `resize` with BICUBIC gives it: rows first, then columns. Pillow 13 begins with the
 * columns where the height shrinks by over twice as much as the width. Bytes are rounded in between, so it matters.
 */
export function resize(image, width, height) {
  const along = (img, rows) => {
    const to = rows ? width : height;
    return (rows ? img.width : img.height) === to ? img : pass(img, to, rows);
  };
  const lost = image.height - height;
  const rowsFirst = lost <= 0 || lost <= 2 * (image.width - width);
  return along(along(image, rowsFirst), !rowsFirst);
}

// Python's `round`: a half goes to the even neighbour
function roundHalfEven(x) {
  const below = Math.floor(x);
  if (x - below !== 0.5) return Math.round(x);
  return below % 2 === 0 ? below : below + 1;
}

// The middle of an image
function cut({ width, height, rgb }, w, h) {
  const left = roundHalfEven((width - w) / 2);
  const top = roundHalfEven((height - h) / 2);
  const out = new Uint8Array(3 * w * h);
  for (let y = 0; y < h; y += 1) {
    const start = 3 * ((top + y) * width + left);
    out.set(rgb.subarray(start, start + 3 * w), 3 * w * y);
  }
  return { width: w, height: h, rgb: out };
}

/** The square in the middle, (3,size,size) bytes: all red ones, all green ones, all blue ones. */
export function centerSquare(image, size, cropPct) {
  const most = 16 * Math.min(image.width, image.height);
  let img = image;
  if (Math.max(img.width, img.height) > most) img = cut(img, Math.min(img.width, most), Math.min(img.height, most));
  const short = roundHalfEven(size / cropPct);
  const { width: w, height: h } = img;
  if (Math.min(w, h) !== short) {
    const to = w <= h ? [short, Math.trunc(short * h / w)] : [Math.trunc(short * w / h), short];
    img = resize(img, ...to);
  }
  const { rgb } = cut(img, size, size);
  const out = new Uint8Array(rgb.length);
  const area = size * size;
  for (let i = 0; i < area; i += 1) {
    for (let c = 0; c < 3; c += 1) out[c * area + i] = rgb[3 * i + c];
  }
  return out;
}
