"""Image files to tensors, with Pillow and numpy alone: used by prepare, verify and predict alike.

Resizing takes two calls of Pillow, first the width, then the height: in one call the order depends on Pillow's version, and the
exported graph (`export/resize.py`) has this one.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Array = NDArray[Any]


def decode(file: Path | bytes, channels: int) -> Array:
    """Return an image as uint8 (channels, H, W), turned as its EXIF says; of several, the first. Raises ValueError."""
    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def resize(image: Array, side: int) -> Array:
    """Return a uint8 image (C, H, W) as (C, side, side), by Pillow's BILINEAR with antialias, whatever its shape was."""
    if image.shape[1:] == (side, side):
        return image
    pixels = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
    for size in ((side, pixels.height), (side, side)):
        pixels = pixels.resize(size, Image.Resampling.BILINEAR)
    resized = np.asarray(pixels)
    return resized[None] if len(image) == 1 else np.ascontiguousarray(resized.transpose(2, 0, 1))
