"""What becomes of each kind of image file; folders of them are in test_folder.py."""

from __future__ import annotations

import io
import logging
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from pipeline.data import images
from pipeline.data.images import BadImage, decode, decode_into, header, resize

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
TURNED = {  # the corners (top left, top right, bottom left, bottom right) of what is stored as 1 2 / 3 4
    1: (1, 2, 3, 4), 2: (2, 1, 4, 3), 3: (4, 3, 2, 1), 4: (3, 4, 1, 2), 5: (1, 3, 2, 4), 6: (3, 1, 4, 2), 7: (4, 2, 3, 1),
    8: (2, 4, 1, 3),
}  # fmt: skip


def content(image: Image.Image, format: str, **more: Any) -> bytes:
    """Return an image as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, format, **more)
    return file.getvalue()


def colours(width: int = 12, height: int = 8) -> Image.Image:
    """Return an RGB image of smooth colours."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, (x + y) * 6], 2).astype(np.uint8))


def _png(width: int, height: int, *, depth: int = 8, kind: int = 2, rows: bytes = b"", extra: bytes = b"") -> bytes:
    """Return a PNG with a header that may say anything."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [chunk(b"IHDR", head), extra and chunk(b"tRNS", extra), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_format_gives_the_pixels_that_pillow_gives(format: str, channels: int, tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(content(colours(), format))
    with Image.open(file) as image:
        theirs = np.asarray(image.convert("RGB" if channels == 3 else "L")).reshape(8, 12, channels).transpose(2, 0, 1)
    for given in (file, file.read_bytes()):
        ours = decode(given, channels)
        assert ours.dtype == np.uint8 and ours.flags.c_contiguous and np.array_equal(ours, theirs)
    assert header(file)[:2] == (12, 8) and header(file).format == format


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_an_image_and_its_header(format: str, orientation: int) -> None:
    small = Image.fromarray(np.array([[50, 100], [150, 200]], np.uint8)).resize((32, 16), Image.Resampling.NEAREST)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = content(small, format, exif=exif)
    pixels = decode(file, 1)[0]
    corners = [round(int(pixels[y, x]) / 50) for y in (1, -2) for x in (1, -2)]
    assert tuple(corners) == TURNED[orientation]
    assert header(file)[:2] == pixels.shape[::-1] == ((32, 16) if orientation < 5 else (16, 32))


@pytest.mark.parametrize("orientation", [0, 9, 77, 60000])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = content(colours(), "JPEG", exif=exif)
    assert decode(file, 3).shape == (3, 8, 12) and header(file)[:2] == (12, 8)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "block", [b"II*\0\xff\xff\xff\xff", b"MM\0*", b"no TIFF", b"II*\0\x08\0\0\0\xff\xff" + bytes(range(60))]
)
def test_a_broken_exif_block_counts_as_none(format: str, block: bytes) -> None:
    file = content(colours(), format, exif=b"Exif\0\0" + block)
    assert np.array_equal(decode(file, 3), decode(content(colours(), format), 3)) and header(file).width == 12


def test_one_bit_becomes_0_and_255() -> None:
    file = content(Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"), "PNG")
    assert decode(file, 1).tolist() == [[[0, 255]]] and decode(file, 3).tolist() == [[[0, 255]]] * 3
    assert header(file).is_grey


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_becomes_its_upper_byte(format: str) -> None:
    values = np.array([[0, 255, 256, 0x1234, 65535]], np.uint16)
    file = content(Image.fromarray(values), format)
    assert decode(file, 1).tolist() == [[[0, 0, 1, 0x12, 255]]] and decode(file, 3)[2].tolist() == [[0, 0, 1, 0x12, 255]]
    found = header(file)
    assert found.is_grey and found.is_16_bit and not header(content(colours(), format)).is_16_bit


def test_16_bit_colour_becomes_its_upper_byte_and_is_told_by_its_header() -> None:
    rows = b"\0" + struct.pack(">6H", 0x12FF, 0x3400, 0x56AB, 65535, 255, 256)
    file = _png(2, 1, depth=16, rows=rows)
    assert decode(file, 3).transpose(1, 2, 0).tolist() == [[[0x12, 0x34, 0x56], [255, 0, 1]]]
    assert header(file).is_16_bit and not header(file).is_grey


def test_alpha_is_laid_over_white() -> None:
    for mode, pixel, expected in (("RGBA", (200, 0, 0, 0), 255), ("RGBA", (0, 0, 0, 51), 204), ("LA", (0, 51), 204)):
        file = content(Image.new(mode, (2, 2), pixel), "PNG")
        assert decode(file, 3).tolist() == [[[expected] * 2] * 2] * 3 and decode(file, 1).tolist() == [[[expected] * 2] * 2]
    assert header(file).is_grey


def test_a_palette_becomes_its_colours_and_its_transparent_entry_white() -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L").convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    for format in ("PNG", "GIF"):
        assert decode(content(image, format), 3).transpose(1, 2, 0).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
        keyed = content(image, format, transparency=1)
        assert decode(keyed, 3).transpose(1, 2, 0).tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]
    shades = content(image, "PNG", transparency=bytes([255, 0, 127]))
    assert decode(shades, 3).transpose(1, 2, 0).tolist() == [[[255, 0, 0], [255, 255, 255], [128, 128, 255]]]


@pytest.mark.parametrize(
    ("depth", "kind", "rows", "key", "expected"),
    [
        (8, 0, b"\0\x05\x06", b"\0\x05", [255, 6]),  # grey
        (16, 0, b"\0\x05\x01\x05\x02", b"\x05\x01", [255, 5]),
        (1, 0, b"\0\x40", b"\0\0", [255, 255]),
        (8, 2, b"\0\1\1\1\2\2\2", b"\0\1\0\1\0\1", [255, 2]),
    ],
)
def test_a_colour_key_is_transparent(depth: int, kind: int, rows: bytes, key: bytes, expected: list[int]) -> None:
    assert decode(_png(2, 1, depth=depth, kind=kind, rows=rows, extra=key), 1).tolist() == [[expected]]


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb_also_as_adobe_inverts_it(format: str) -> None:
    file = content(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), format)  # Pillow writes JPEGs as Adobe does
    assert header(file).mode == "CMYK" and (b"Adobe" in file) == (format == "JPEG")
    assert np.abs(decode(file, 3)[:, 4, 4].astype(int) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_is_read(format: str) -> None:
    first, *others = (Image.new("RGB", (4, 4), (shade, shade, shade)) for shade in (10, 200, 90))
    more = {"lossless": True} if format == "WEBP" else {}
    file = content(first, format, save_all=True, append_images=others, **more)
    assert set(decode(file, 1).ravel().tolist()) == {10}


@pytest.mark.parametrize(("mode", "said"), [("I", "whole numbers of 32 bit"), ("F", "floats"), ("LAB", "of the mode LAB")])
def test_a_mode_without_a_rule_is_refused_by_name(mode: str, said: str) -> None:
    file = content(Image.new(mode, (4, 4)), "TIFF")
    for read in (header, lambda f: decode(f, 3)):
        with pytest.raises(BadImage, match=rf"^is of the mode {mode}.*{said}|^is {said}"):
            read(file)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("share", [0.5, 0.9, 0.97])
def test_a_file_that_is_cut_off_is_an_error(format: str, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    file = content(noise, format)
    with pytest.raises(BadImage, match=r"^is (cut off|broken|no JPEG)") as caught:
        decode(file[: int(len(file) * share)], 3)
    assert "\n" not in str(caught.value) and "0x" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (b"", "is empty"),
        (b"not an image at all", "is no JPEG, PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is no JPEG, PNG"),
        (b"\x89PNG\r\n\x1a\n", "is no JPEG|is broken|is cut off"),
        (b"\xff\xd8\xff\xe0", "is no JPEG|is broken|is cut off"),
        (_png(100_000, 100_000), "100000x100000|more than the"),
        (_png(10_000, 10_000), "has 10000x10000 pixels, more than the 89478485"),
        (_png(0, 5), "is no JPEG|is broken"),
        (_png(1 << 31, 1), "is no JPEG|is broken|more than"),
    ],
)
def test_a_header_that_lies_is_refused_without_decoding(file: bytes, said: str) -> None:
    for read in (header, lambda f: decode(f, 3)):
        with warnings.catch_warnings(), pytest.raises(BadImage, match=rf"^(has |is )?.*({said})"):
            warnings.simplefilter("error")
            read(file)


def test_a_pipe_a_folder_and_a_link_to_nothing_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("nowhere")
    (tmp_path / "round.png").symlink_to("round.png")
    said = {
        "pipe.png": "is no regular file",
        ".": "is no regular file",
        "link.png": "is not there",
        "round.png": "cannot be read",
    }
    for name, text in said.items():
        with pytest.raises(BadImage, match=f"^{text}"):
            decode(tmp_path / name, 3)


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (40, 3), (64, 64), (200, 150)])
@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_is_pillows_and_leaves_a_fitting_image_as_it_is(size: tuple[int, int], channels: int) -> None:
    file = content(colours(*size), "PNG")
    mode = "RGB" if channels == 3 else "L"
    theirs = np.asarray(colours(*size).convert(mode).resize((64, 64), Image.Resampling.BILINEAR))
    theirs = theirs.reshape(64, 64, channels).transpose(2, 0, 1)
    assert np.array_equal(resize(decode(file, channels), 64), theirs)
    out = np.zeros((channels, 64, 64), np.uint8)
    decode_into(out, file)
    assert np.array_equal(out, theirs)


def test_no_warning_and_no_line_of_pillow_reaches_the_terminal_from_any_thread(capfd: pytest.CaptureFixture[str]) -> None:
    large, odd = _png(10_000, 10_000), content(colours(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(range(60)))
    tiff = bytearray(content(colours(), "TIFF"))
    tiff[4:8] = struct.pack("<I", len(tiff) - 4)  # its directory starts where the file ends
    before = list(warnings.filters), logging.getLogger("PIL").handlers[:]

    def look() -> None:
        for file in (large, odd, bytes(tiff)) * 20:
            try:
                decode(file, 3)
            except BadImage:
                continue

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        threads = [threading.Thread(target=look) for _ in range(4)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert warnings.filters[0][0] == "always"  # as it was
    assert (list(warnings.filters), logging.getLogger("PIL").handlers) == before
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_no_line_of_pillows_log_reaches_the_terminal_of_a_process_without_logging(tmp_path: Path) -> None:
    tiff = content(colours(), "TIFF")
    samples = struct.pack("<HHIH", 277, 3, 1, 3)
    assert samples in tiff
    (tmp_path / "x.tif").write_bytes(tiff.replace(samples, struct.pack("<HHIH", 277, 3, 1, 99)))  # samples a pixel
    script = "from pathlib import Path; from pipeline.data.images import header; header(Path('x.tif'))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert "BadImage" in done.stderr and "More samples per pixel" not in done.stderr


def test_pillow_is_never_told_to_take_truncated_files() -> None:
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False and "LOAD_TRUNCATED" not in Path(images.__file__).read_text()


def test_it_needs_neither_torch_nor_anything_else_of_ours() -> None:
    script = (
        "import sys; import pipeline.data.images;"
        "print(*sorted(m for m in sys.modules if m.partition('.')[0] in ('torch', 'sklearn', 'pipeline', 'rich')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert "torch" not in done.stdout and "sklearn" not in done.stdout and "rich" not in done.stdout
