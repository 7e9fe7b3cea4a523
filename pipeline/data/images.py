"""One image file to uint8 pixels, by the same rules wherever it is read: prepared, verified, or asked about.

Needs Pillow and numpy alone. The content decides what a file is, not its ending. The rules:

- JPEG, PNG, WebP, BMP, TIFF and GIF are read; of a file with several frames or pages the first.
- EXIF's orientation is applied, a broken EXIF block counts as none; ICC profiles are not applied.
- Transparency, in an alpha channel, a palette or a colour key, is laid over white.
- A palette becomes its colours, CMYK becomes RGB (Adobe's inverted one too), 1 bit becomes 0 and 255.
- 16 bit become 8 by their upper byte (>> 8), grey and colour alike.
- Colour becomes grey by Pillow's luma (ITU-R 601-2), grey becomes colour by three equal channels.
- Whole numbers of 32 bit (I), floats (F), LAB and others that have no rule are refused by name.
- A file that is cut off is an error, and so is one with more than Pillow's MAX_IMAGE_PIXELS, known from its header.

JPEG's draft mode, which decodes at a half or a quarter of the size, is not used: its pixels are others than those of decoding
the whole and resizing, which the exported graph does. What Pillow does not notice is not noticed here either: a JPEG
whose middle was overwritten decodes with grey in it.
"""

from __future__ import annotations

import logging
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import (  # each registers its format: Pillow would look for them in the middle of threads
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    MpoImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

ENDINGS = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"))
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
_MODES = {1: "L", 3: "RGB"}
_READABLE = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr")  # and those of 16 bit
_NAMES = {"I": "whole numbers of 32 bit", "F": "floats"}
_ORIENTATION = 0x0112  # the tag in EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip

Pixels = NDArray[np.uint8]


class BadImage(ValueError):
    """A file that cannot be read. Its text is what follows the file's name in a sentence: `is cut off (...)`."""


class Header(NamedTuple):
    """What a file says of itself, after EXIF's turn; a PNG's turn only where it stands before the pixels, as is usual."""

    width: int
    height: int
    is_grey: bool  # a palette counts as colour
    is_16_bit: bool
    format: str  # JPEG, MPO, PNG, WEBP, BMP, TIFF or GIF
    mode: str  # Pillow's


def header(file: Path | bytes) -> Header:
    """Return what a file says of itself, without decoding it. Raises BadImage as `decode` does, as far as a header shows it."""
    with _opened(file) as image:
        width, height = image.size
        if _orientation(image, loaded=False) >= 5:
            width, height = height, width
        is_16_bit = _is_16_bit(image) or any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
        is_grey = image.mode in ("1", "L", "LA") or _is_16_bit(image)
        return Header(width, height, is_grey, is_16_bit, image.format or "", image.mode)


def decode(file: Path | bytes, channels: int) -> Pixels:
    """Return the pixels of a file or of its content, uint8 (C, H, W), as grey (1) or RGB (3 channels).

    Raises BadImage where it cannot be read.
    """
    return _array(_read(file, channels))


def resize(image: Pixels, side: int) -> Pixels:
    """Return uint8 (C, H, W) as (C, side, side): Pillow's BILINEAR, antialiased, the aspect not kept."""
    picture = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
    return _array(_resized(picture, side))


def decode_into(out: Pixels, file: Path | bytes) -> None:
    """Write `resize(decode(file, C), side)` into `out` (C, side, side), without the copies in between."""
    channels, side, _ = out.shape
    _write(_resized(_read(file, channels), side), out)


def _read(file: Path | bytes, channels: int) -> Image.Image:
    """Return a file as a picture of mode L or RGB, turned as EXIF says."""
    with _opened(file) as image:
        image.load()
        turn = _TURNS.get(_orientation(image, loaded=True))
        picture = _in_8_bit(image, _MODES[channels])
        return picture if turn is None else picture.transpose(turn)


def _in_8_bit(image: Image.Image, mode: str) -> Image.Image:
    if _is_16_bit(image):
        values = np.asarray(image)
        grey = (values >> 8).astype(np.uint8)
        if isinstance(key := image.info.get("transparency"), int):
            grey[values == key] = 255
        return Image.fromarray(grey).convert(mode)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def _is_16_bit(image: Image.Image) -> bool:
    return image.mode.startswith("I;16")


def _orientation(image: Image.Image, *, loaded: bool) -> int:
    """Return EXIF's number from 1 to 8 for what is still to be done: Pillow itself turns a TIFF."""
    if image.format == "TIFF":
        return 1
    try:  # a PNG's own method would decode it, to look behind the pixels
        found = image.getexif() if loaded else Image.Image.getexif(image)
        number = found.get(_ORIENTATION, 1)
    except Exception:  # a broken block raises nearly anything; the pixels are whole
        return 1
    return number if isinstance(number, int) and 1 <= number <= 8 else 1


def _resized(picture: Image.Image, side: int) -> Image.Image:
    """Return a picture of side x side: first its width, then its height is changed, as `pipeline/data/resize.py` does.

    In one call, Pillow 13 takes the height first where only that shrinks, and earlier versions never do.
    """
    for size in ((side, picture.height), (side, side)):
        picture = picture if picture.size == size else picture.resize(size, Image.Resampling.BILINEAR)
    return picture


def _array(picture: Image.Image) -> Pixels:
    pixels = np.empty((len(picture.getbands()), picture.height, picture.width), np.uint8)
    _write(picture, pixels)
    return pixels


def _write(picture: Image.Image, out: Pixels) -> None:
    for pixels, band in zip(out, picture.split(), strict=True):  # faster than to turn (H, W, C)
        pixels[:] = np.asarray(band)


@contextmanager
def _opened(file: Path | bytes) -> Iterator[Image.Image]:
    """Yield an image whose header was read; whatever goes wrong with it in the block is a BadImage."""
    try:
        if isinstance(file, Path):
            found = file.stat()
            if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
                raise BadImage("is no regular file")
        if not (len(file) if isinstance(file, bytes) else found.st_size):
            raise BadImage("is empty")
        with quiet, Image.open(BytesIO(file) if isinstance(file, bytes) else file, formats=_FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit and image.width * image.height > limit:
                raise BadImage(f"has {image.width}x{image.height} pixels, more than the {limit} that are decoded")
            if image.mode not in _READABLE and not _is_16_bit(image):
                what = f" ({_NAMES[image.mode]})" if image.mode in _NAMES else ""
                raise BadImage(f"is of the mode {image.mode}{what}, for which there is no rule to make it 8 bit")
            yield image
    except BadImage:
        raise
    except Exception as error:  # Pillow raises nearly anything for a broken file
        raise BadImage(_reason(error)) from error


def _reason(error: Exception) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, UnidentifiedImageError):
        return "is no JPEG, PNG, WebP, BMP, TIFF or GIF, or its header is broken"
    if isinstance(error, Image.DecompressionBombError):
        return f"has more than the {Image.MAX_IMAGE_PIXELS} pixels that are decoded"
    if isinstance(error, FileNotFoundError):
        return "is not there, or is a link to nothing"
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({error.strerror or text})"
    return f"is cut off ({text})" if "truncated" in text.lower() else f"is broken ({text})"


class _Quiet:
    """Keeps Pillow's warnings and log off the terminal while any thread is within.

    `warnings.catch_warnings` in each thread would restore the filters of another one, so that the first to come sets them and
    the last to go restores them.
    """

    def __init__(self) -> None:
        self.lock, self.inside, self.before = threading.Lock(), 0, ExitStack()
        self.handler = logging.NullHandler()

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.before.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", module="PIL")
                logging.getLogger("PIL").addHandler(self.handler)
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                logging.getLogger("PIL").removeHandler(self.handler)
                self.before.close()


quiet = _Quiet()
