"""In Chromium, the page's pixels of an image file are those of `pipeline.data.images`, to the bit; and a curve is right."""

from __future__ import annotations

import base64
import io
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image, ImageCms

from pipeline.cli import main
from pipeline.data import images
from tests.export.web.browser import NARROW, chromium, decided, opened

HEIGHT, WIDTH = 61, 83
DECODE = """async ([text, channels, side]) => {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  try {
    const image = await Pixels.decode(new Blob([bytes]));
    let pixels = Pixels.planes(image, channels);
    if (side) pixels = Pixels.resize(pixels, [channels, image.height, image.width], side);
    return [image.height, image.width, btoa(Array.from(pixels, (value) => String.fromCharCode(value)).join(""))];
  } catch (error) {
    if (error instanceof Pixels.BadImage) return error.message;
    throw error;
  }
}"""


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png_of_16_bit(values: np.ndarray) -> bytes:
    """Return a PNG of colours of 16 bit, which Pillow does not write."""
    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def _profile() -> bytes:
    """Return a colour profile whose red and green have changed places: applied, it would be seen."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", profile[128:132])[0]
    tags = [struct.unpack(">4sII", profile[132 + 12 * k : 144 + 12 * k]) for k in range(count)]
    places = {name: start for name, start, _ in tags}
    red, green = places[b"rXYZ"], places[b"gXYZ"]
    profile[red : red + 20], profile[green : green + 20] = profile[green : green + 20], profile[red : red + 20]
    return bytes(profile)


def _kinds() -> Iterator[tuple[str, bytes]]:
    source = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = np.stack([127 + 100 * np.sin(x / 9 + y / 17), 127 + 100 * np.cos(y / 7), 127 + 90 * np.sin((x + y) / 11)], -1)
    smooth = Image.fromarray(waves.astype(np.uint8))
    noise = Image.fromarray(source.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    seen_through = noise.copy()
    seen_through.putalpha(Image.fromarray(source.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)))
    for name, picture in (("smooth", smooth), ("noise", noise)):
        for kind in ("PNG", "BMP", "WEBP"):
            yield f"{kind} {name}", _saved(picture, kind)
        for sampling in (0, 1, 2):
            yield f"JPEG {sampling} {name}", _saved(picture, "JPEG", quality=85, subsampling=sampling)
        yield f"progressive JPEG {name}", _saved(picture, "JPEG", progressive=True)
        yield f"grey JPEG {name}", _saved(picture.convert("L"), "JPEG")
        yield f"CMYK JPEG {name}", _saved(picture.convert("CMYK"), "JPEG")
        yield f"palette {name}", _saved(picture.quantize(64), "PNG")
        yield f"GIF {name}", _saved(picture.quantize(64), "GIF")
        yield f"black and white {name}", _saved(picture.convert("1"), "PNG")
        yield f"profile {name}", _saved(picture, "PNG", icc_profile=_profile())
        yield f"profile JPEG {name}", _saved(picture, "JPEG", icc_profile=_profile())
    yield "transparent PNG", _saved(seen_through, "PNG")
    yield "transparent WebP", _saved(seen_through, "WEBP", lossless=True, exact=True)
    yield "transparent grey", _saved(seen_through.convert("LA"), "PNG")
    yield "16 bit grey", _saved(Image.fromarray(source.integers(0, 65_536, (HEIGHT, WIDTH)).astype(np.uint16)), "PNG")
    yield "16 bit colour", _png_of_16_bit(source.integers(0, 65_536, (HEIGHT, WIDTH, 3)))
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        for kind in ("JPEG", "PNG", "WEBP"):
            yield f"{kind} turned {turn}", _saved(smooth, kind, exif=exif)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser: Any, sine: Path, tmp_path: Path, cache_dir: Path) -> Iterator[Any]:
    """Return the page of the cubic, as a single file from disk."""
    folder = tmp_path / "one-page"
    words = ["--run", str(sine), "--output", str(folder), "--single_file", "true", "--cache_dir", str(cache_dir)]
    assert main(["web", *words]) == 0
    with opened(browser, (folder / "index.html").as_uri()) as found:
        yield found


def _decoded(page: Any, content: bytes, channels: int, side: int = 0) -> np.ndarray | str:
    found = page.evaluate(DECODE, [base64.b64encode(content).decode(), channels, side])
    if isinstance(found, str):
        return found
    height, width, text = found
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(channels, side or height, side or width)


def test_the_pixels_are_those_of_training_and_so_is_a_resize(page: Any) -> None:
    differing = []
    for name, content in _kinds():
        for channels, side in ((3, 0), (1, 0), (1, 28), (3, 100)):
            want = images.decode(content, channels)
            want = images.resize(want, side) if side else want
            got = _decoded(page, content, channels, side)
            if isinstance(got, str) or not np.array_equal(got, want):
                differing.append((name, channels, side, got if isinstance(got, str) else got.shape))
    assert not differing


def test_what_is_no_image_gets_a_sentence(page: Any) -> None:
    picture = Image.fromarray(np.zeros((40, 40, 3), np.uint8))
    assert "TIFF" in _decoded(page, _saved(picture, "TIFF"), 3)
    assert "is no JPEG" in _decoded(page, b"<svg></svg>", 3) and "is no JPEG" in _decoded(page, b"", 3)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8))
    assert "broken or cut off" in _decoded(page, _saved(noise, "PNG")[:900], 3)


def test_a_curve_says_what_onnxruntime_does_and_fits_a_phone(page: Any, sine: Path) -> None:
    session = onnxruntime.InferenceSession(sine / "export" / "model.onnx", providers=["CPUExecutionProvider"])
    for size in (page.viewport_size, NARROW):
        page.set_viewport_size(size)
        assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert page.locator("#plot svg").count() == 1 and page.locator("#plot polyline").get_attribute("points").count(",") == 201
    page.locator("#field-0").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type("1.25")
    (value,) = session.run(None, {"input": np.array([[1.25]], np.float32)})
    decided(page, f"prediction: {float(value[0, 0]):.6g}"[:18])
    ends = [float(page.locator("input[type=range]").get_attribute(name)) for name in ("min", "max")]
    (curve,) = session.run(None, {"input": np.array(ends, np.float32)[:, None]})
    first, last = (f"{value:.4g}" for value in curve[:, 0].tolist())
    label = page.locator("#plot svg").get_attribute("aria-label")
    assert [f"{float(text):.4g}" for text in re.findall(r"(?:from|to) (\S+) at", label)] == [first, last] and first != last
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("Number(document.getElementById('field-0').value) !== 1.25")
    page.locator("#field-0").fill("")
    page.wait_for_function("!document.getElementById('problem').hidden")
    assert page.inner_text("#problem") == "x is not a number."


def test_what_is_shown_is_of_the_run_and_every_control_has_a_name(page: Any) -> None:
    text = page.inner_text("#about")
    assert page.title() == "polynomial on sine" and "passed on 400 samples (test)" in text and "ONNX file SHA-256" in text
    nameless = page.evaluate(
        "[...document.querySelectorAll('input, select, textarea, button')].filter((each) => !each.labels?.length"
        " && !each.getAttribute('aria-label') && !each.textContent).map((each) => each.outerHTML)"
    )
    assert nameless == [] and page.evaluate("document.documentElement.lang") == "en"
