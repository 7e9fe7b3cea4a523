"use strict";
// An image file to uint8 pixels, by the rules of pipeline/data/images.py: the browser decodes it, and changes nothing else.
// Colour profiles are not applied, transparency is laid over white, EXIF's turn is. A canvas never resizes.

const Pixels = (() => {
  const MOST = 2 ** 25; // pixels of an image: each takes 16 bytes and more in the graph
  const ONE = 2 ** 22; // the whole number that stands for a weight of 1 in Pillow

  class BadImage extends Error {}

  // { width, height, data }: RGBA of a file. Raises BadImage.
  async function decode(blob) {
    const head = new Uint8Array(await blob.slice(0, 16).arrayBuffer());
    const kind = kindOf(head);
    if (!kind) throw new BadImage("is no JPEG, PNG, WebP, BMP or GIF.");
    if (kind === "TIFF") throw new BadImage("is a TIFF, which browsers do not read. Save it as PNG.");
    const turn = kind === "WebP" ? webpTurn(new DataView(await blob.arrayBuffer())) : 1;
    const options = {
      colorSpaceConversion: "none", premultiplyAlpha: "none",
      imageOrientation: kind === "WebP" ? "none" : "from-image", // not every browser turns a WebP
    };
    let bitmap;
    try {
      bitmap = await createImageBitmap(blob, options);
    } catch {
      throw new BadImage(`is a ${kind} that is broken or cut off.`);
    }
    try {
      return turned(read(bitmap), turn);
    } finally {
      bitmap.close();
    }
  }

  function kindOf(head) {
    const text = String.fromCharCode(...head);
    if (text.startsWith("\xff\xd8\xff")) return "JPEG";
    if (text.startsWith("\x89PNG")) return "PNG";
    if (text.startsWith("GIF8")) return "GIF";
    if (text.startsWith("BM")) return "BMP";
    if (text.startsWith("RIFF") && text.slice(8, 12) === "WEBP") return "WebP";
    return text.startsWith("II*\0") || text.startsWith("MM\0*") ? "TIFF" : "";
  }

  // RGBA of whatever can be drawn, in its own size.
  function read(source, width = source.width, height = source.height) {
    if (width * height > MOST) throw new BadImage(`has ${width}x${height} pixels, more than the ${MOST} that are taken.`);
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
    context.drawImage(source, 0, 0);
    return context.getImageData(0, 0, width, height);
  }

  // EXIF's number from 1 to 8 in a WebP.
  function webpTurn(view) {
    try {
      for (let at = 12; at + 8 <= view.byteLength; at += 8 + size(view, at) + (size(view, at) % 2)) {
        if (tag(view, at) === "EXIF") return exifTurn(new DataView(view.buffer, at + 8, size(view, at)));
      }
    } catch (error) {
      if (!(error instanceof RangeError)) throw error; // a broken block counts as none
    }
    return 1;
  }

  const size = (view, at) => view.getUint32(at + 4, true);
  const tag = (view, at) => String.fromCharCode(...[0, 1, 2, 3].map((k) => view.getUint8(at + k)));

  function exifTurn(view) {
    const start = tag(view, 0) === "Exif" ? 6 : 0;
    const isLittle = view.getUint16(start) === 0x4949;
    const first = start + view.getUint32(start + 4, isLittle);
    for (let k = 0; k < view.getUint16(first, isLittle); k += 1) {
      const at = first + 2 + 12 * k;
      if (view.getUint16(at, isLittle) === 0x0112) {
        const number = view.getUint16(at + 8, isLittle);
        return number >= 1 && number <= 8 ? number : 1;
      }
    }
    return 1;
  }

  function turned(image, turn) {
    if (turn === 1) return image;
    const { width, height } = image;
    const [w, h] = turn >= 5 ? [height, width] : [width, height];
    const from = { // where the pixel (x, y) of the result comes from
      2: (x, y) => [w - 1 - x, y], 3: (x, y) => [w - 1 - x, h - 1 - y], 4: (x, y) => [x, h - 1 - y], 5: (x, y) => [y, x],
      6: (x, y) => [y, w - 1 - x], 7: (x, y) => [h - 1 - y, w - 1 - x], 8: (x, y) => [h - 1 - y, x],
    }[turn];
    const source = new Uint32Array(image.data.buffer);
    const result = new ImageData(w, h);
    const target = new Uint32Array(result.data.buffer);
    for (let y = 0; y < h; y += 1) {
      for (let x = 0; x < w; x += 1) {
        const [column, row] = from(x, y);
        target[y * w + x] = source[row * width + column];
      }
    }
    return result;
  }

  const over = (value, alpha) => (alpha === 255 ? value : Math.round((value * alpha + 255 * (255 - alpha)) / 255));

  // Uint8Array (C, H, W) of RGBA: over white, then grey by Pillow's luma or the three colours.
  function planes({ width, height, data }, channels) {
    const count = width * height;
    const out = new Uint8Array(channels * count);
    for (let k = 0; k < count; k += 1) {
      const alpha = data[4 * k + 3];
      const r = over(data[4 * k], alpha);
      const g = over(data[4 * k + 1], alpha);
      const b = over(data[4 * k + 2], alpha);
      if (channels === 1) {
        out[k] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
      } else {
        out[k] = r;
        out[count + k] = g;
        out[2 * count + k] = b;
      }
    }
    return out;
  }

  // (C, H, W) as (C, side, side), as `predict` does it for a model of one size: Pillow's BILINEAR to the bit, width first.
  function resize(pixels, [channels, height, width], side) {
    let image = pixels;
    if (width !== side) image = across(image, channels * height, width, side);
    if (height !== side) {
      const flipped = new Uint8Array(channels * side * height);
      swap(image, flipped, channels, height, side);
      const short = across(flipped, channels * side, height, side);
      image = new Uint8Array(channels * side * side);
      swap(short, image, channels, side, side);
    }
    return image;
  }

  function swap(from, to, channels, height, width) {
    for (let c = 0; c < channels; c += 1) {
      for (let y = 0; y < height; y += 1) {
        for (let x = 0; x < width; x += 1) to[(c * width + x) * height + y] = from[(c * height + y) * width + x];
      }
    }
  }

  function across(rows, count, width, side) {
    const weights = Array.from({ length: side }, (_, k) => triangle(k, width, side));
    const out = new Uint8Array(count * side);
    for (let row = 0; row < count; row += 1) {
      for (let k = 0; k < side; k += 1) {
        const [first, parts] = weights[k];
        let sum = ONE / 2;
        for (let i = 0; i < parts.length; i += 1) sum += parts[i] * rows[row * width + first + i];
        out[row * side + k] = Math.min(255, Math.floor(sum / ONE));
      }
    }
    return out;
  }

  // The first pixel that counts for pixel k, and the weights from there on, as whole numbers of ONE.
  function triangle(k, width, side) {
    const reach = 2 * Math.max(width, side);
    const heights = [];
    let first = 0;
    for (let i = 0; i < width; i += 1) {
      const part = reach - Math.abs((2 * i + 1) * side - (2 * k + 1) * width);
      if (part <= 0) continue;
      if (!heights.length) first = i;
      heights.push(part);
    }
    const total = heights.reduce((sum, part) => sum + part, 0);
    return [first, heights.map((part) => Math.floor((part / total) * ONE + 0.5))];
  }

  return { decode, read, planes, resize, BadImage };
})();
