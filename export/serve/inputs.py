"""What `predict` is asked about: images, tables of them, tables and arrays, found by name first, then read a block at a time.

What is wrong with a name is told before anything is answered. A file that cannot be read, or a row of one, is a failed input,
which is told, and the rest goes on. At most one window of decoded images is in memory, however many there are.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from export.serve import image_tables, tables
from export.serve.model import Array, Model
from pipeline.errors import UserError
from pipeline.values import shown

IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif")
ARRAYS = (".npy", ".npz")
_WINDOW = 1 << 25  # bytes of decoded images
_VALUES = 1 << 22  # of a batch: 16 MB as float32. More at once is slower, and takes memory

Fail = Callable[[str, str], None]
"""Takes the name of an input that failed, and why: what follows the name in a sentence."""


class Entry(NamedTuple):
    """A file, and how it is read: as an image, a table, an array, or an image table."""

    path: Path
    kind: str


class Chunk(NamedTuple):
    """Samples in their order: their names, and for each group of one shape their places and the model's inputs."""

    names: list[str]
    groups: list[tuple[Array, list[Array]]]


def find(given: Sequence[str], model: Model) -> tuple[list[Entry], list[str]]:
    """Return all files, and what else is to be told. Raises UserError with every name that this model can do nothing with."""
    entries: list[Entry] = []
    problems: list[str] = []
    notes: list[str] = []
    for text in given:
        path, what = Path(text), f"input={shown(text)}"
        if path.is_dir():
            found, passed = _in_folder(path, model)
            entries += found
            if not found:
                problems.append(f"{what} holds no file that this model takes ({takes(model)}). Give another folder.")
            elif passed:
                endings = ", ".join(f"{ending or 'no ending'}: {count}" for ending, count in passed.most_common(5))
                notes.append(f"{what}: {passed.total()} files of other kinds are passed over ({endings})")
        elif not path.exists():
            problems.append(f"{what} is not there. Give a file or a folder.")
        elif kind := _kind(path, model, is_named=True):
            entries.append(Entry(path, kind))
        else:
            problems.append(f"{what} is nothing that this model takes: it takes {takes(model)}. Give another file.")
    for entry in entries:
        try:
            if entry.kind == "image table":
                image_tables.check(entry.path)
            elif entry.kind == "table" and (note := tables.check(entry.path, model)):
                notes.append(note)
        except UserError as error:
            problems += error.messages
    if problems:
        raise UserError(*problems)
    return entries, notes


def takes(model: Model) -> str:
    """Return what a model can be asked about, in words."""
    shape = "x".join(map(str, model.input_shape))
    if model.columns:
        return f"tables with its {len(model.columns)} columns ({', '.join(tables.ENDINGS)})"
    if model.is_image:
        return f"images ({', '.join(IMAGES)}), Parquet files with a column of them, and arrays of them (.npy, .npz)"
    table = f"tables of {shape} columns of numbers ({', '.join(tables.ENDINGS)}) and " if len(model.input_shape) == 1 else ""
    return f"{table}arrays whose samples are {shape} (.npy, .npz)"


def _kind(path: Path, model: Model, *, is_named: bool) -> str:
    """Return how a file is read; empty for one that this model does not take. One that was named may be an image by content."""
    ending = path.suffix.lower()
    if ending in tables.ENDINGS:
        if model.columns or len(model.input_shape) == 1:
            return "table"
        is_one = model.is_image and ending == ".parquet" and (is_named or image_tables.may_be(path))
        return "image table" if is_one else ""
    if ending in ARRAYS:
        return "" if model.columns else "array"
    return "image" if model.is_image and (is_named or ending in IMAGES) else ""


def _in_folder(folder: Path, model: Model) -> tuple[list[Entry], Counter[str]]:
    """Return the files below a folder that the model takes, sorted, and the endings of all others. Hidden ones do not count.

    Links are followed, each folder once.
    """
    entries: list[Entry] = []
    passed: Counter[str] = Counter()
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else sorted(n for n in folders if not n.startswith(".") and n != "__MACOSX")
        if real in seen:
            continue
        seen.add(real)
        for name in sorted(n for n in names if not n.startswith(".")):
            path = Path(place, name)
            if kind := _kind(path, model, is_named=False):
                entries.append(Entry(path, kind))
            else:
                passed[path.suffix.lower()] += 1
    return sorted(entries), passed


def read(entries: Sequence[Entry], model: Model, *, batch_size: int, fail: Fail) -> Iterator[Chunk]:
    """Yield all samples in order; rows are counted from 1, and named with their file where there are several."""
    for kind, group in groupby(entries, key=lambda entry: entry.kind):
        if kind == "image":
            yield from _images(((name_of(entry.path), entry.path) for entry in group), model, batch_size, fail)
            continue
        blocks = tables.blocks if kind == "table" else _array_blocks
        for entry in group:
            prefix = f"{name_of(entry.path)}:" if len(entries) > 1 else ""
            if kind == "image table":
                yield from _images_in_rows(entry.path, prefix, model, batch_size, fail)
                continue

            def fail_row(row: int, reason: str, prefix: str = prefix) -> None:
                fail(f"{prefix}{row + 1}" if prefix else f"row {row + 1}", reason)

            try:
                for rows, inputs in blocks(entry.path, model, fail_row):
                    names = [f"{prefix}{row + 1}" for row in rows.tolist()]
                    yield Chunk(names, [(np.arange(len(names)), inputs)])
            except tables.Unreadable as error:
                fail(name_of(entry.path), str(error))


def steps(inputs: Sequence[Array], batch_size: int) -> Iterator[slice]:
    """Yield the batches into which a group is cut: of large samples, fewer at once."""
    count, values = len(inputs[0]), sum(array[0].size for array in inputs if len(array))
    step = max(1, min(batch_size, _VALUES // max(1, values)))
    yield from (slice(start, start + step) for start in range(0, count, step))


def name_of(path: Path) -> str:
    """Return a path as text that a file in UTF-8 can hold."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _images_in_rows(path: Path, prefix: str, model: Model, batch_size: int, fail: Fail) -> Iterator[Chunk]:
    """Decode the images in a Parquet file as those in files."""

    def rows() -> Iterator[tuple[str, bytes | None]]:
        try:
            for number, content in enumerate(image_tables.contents(path), start=1):
                yield f"{prefix}{number}", content
        except tables.Unreadable as error:  # what was read before it is answered
            fail(name_of(path), str(error))

    return _images(rows(), model, batch_size, lambda name, reason: fail(name if prefix else f"row {name}", reason))


def _images(items: Iterable[tuple[str, Path | bytes | None]], model: Model, batch_size: int, fail: Fail) -> Iterator[Chunk]:
    """Decode named images on all cores and yield windows, in each of which those of equal size are together."""
    names: list[str] = []
    pixels: list[Array] = []
    for name, found in _decoded(items, model):
        if isinstance(found, str):
            fail(name, found)
            continue
        names.append(name)
        pixels.append(found)
        if len(names) >= 4 * batch_size or sum(image.nbytes for image in pixels) >= _WINDOW:
            yield _grouped(names, pixels)
            names, pixels = [], []
    if names:
        yield _grouped(names, pixels)


def _grouped(names: list[str], pixels: list[Array]) -> Chunk:
    shapes: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, image in enumerate(pixels):
        shapes[image.shape].append(place)
    groups = [(np.array(places), [np.stack([pixels[place] for place in places])]) for places in shapes.values()]
    return Chunk(names, groups)


def _decoded(items: Iterable[tuple[str, Path | bytes | None]], model: Model) -> Iterator[tuple[str, Array | str]]:
    """Yield each name with the pixels (C, H, W), or with why there are none; a few are decoded ahead."""
    from pipeline.data import images

    channels, height, width = model.input_shape

    def decode(file: Path | bytes | None) -> Array | str:
        if file is None:
            return "has no image"
        try:
            image = images.decode(file, channels)
            if not model.any_size and height == width:
                image = images.resize(image, height)
        except ValueError as error:
            return str(error)
        if not model.any_size and image.shape != model.input_shape:
            return f"is {image.shape[2]}x{image.shape[1]}, and the model takes {width}x{height} alone"
        return image

    workers = len(os.sched_getaffinity(0))
    waiting: deque[tuple[str, Future[Array | str]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for name, file in items:
            waiting.append((name, pool.submit(decode, file)))
            if len(waiting) > 2 * workers:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()


def _array_blocks(path: Path, model: Model, fail: Callable[[int, str], None]) -> Iterator[tuple[Array, list[Array]]]:
    """Yield the numbers of some rows, and the rows: of an .npy file without reading all of it. Raises Unreadable."""
    try:
        x = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(x, np.lib.npyio.NpzFile):
            with x as held:
                name = "x" if "x" in held.files else held.files[0] if len(held.files) == 1 else ""
                if not name:
                    raise tables.Unreadable(f"holds the arrays {', '.join(held.files)[:200]}, and none is called x")
                x = held[name]
    except (OSError, ValueError, EOFError) as error:
        raise tables.Unreadable(f"is no whole array ({str(error).splitlines()[0] if str(error) else 'it is empty'})") from error
    x = _channels_first(x, model) if model.is_image else x
    shape = (model.input_shape[0], *x.shape[-2:]) if model.any_size and x.ndim >= 3 else model.input_shape
    if x.shape == shape:
        x = x[None]
    if x.shape[1:] != shape or not x.size:
        raise tables.Unreadable(f"has the shape {x.shape}, and the model takes (N, {', '.join(map(str, model.input_shape))})")
    if x.dtype.kind not in "fiub" or (model.dtype == "uint8" and x.dtype != np.uint8):
        raise tables.Unreadable(f"holds {x.dtype}, and the model takes {model.dtype}")
    step = max(1, min(4096, _VALUES // x[0].size))
    for start in range(0, len(x), step):
        block = np.array(x[start : start + step], model.dtype)
        yield np.arange(start, start + len(block)), [block]


def _channels_first(x: Array, model: Model) -> Array:
    """Return images (N, H, W) and (N, H, W, C), as a data set may have them too, as (N, C, H, W)."""
    channels, *size = model.input_shape
    if x.ndim == 3 and channels == 1 and len(x) > 1 and (model.any_size or [*x.shape[1:]] == size):
        return x[:, None]
    if x.ndim == 4 and x.shape[1] != channels == x.shape[3]:
        return np.moveaxis(x, 3, 1)
    return x
