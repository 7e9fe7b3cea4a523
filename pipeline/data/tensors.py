"""Arrays to disk: resized, measured, and written at once, or decoded block by block.

A process that decodes after one that was killed goes on where that one was: a block counts as soon as the mark beside the array
says so, which is written after it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.spec import IMAGE_RANGE, Images
from pipeline.files import sha256

Array = NDArray[Any]

_BLOCK = 2048  # rows
_PART = 1 << 18  # bytes that are hashed together, so that they stay in the cache of a core
_AT_ONCE = 1 << 22  # values that are resized together, so that many small images are few calls, and large ones little memory
_CACHE = 1 << 19  # bytes of float64 that are summed together, so that they stay in the cache of a core


def save(path: Path, array: Array) -> dict[str, Any]:
    """Write an array as .npy, and return its entry in the manifest."""
    with path.open("wb") as file:
        array = np.ascontiguousarray(array)
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data.cast("B") if array.size else b"")  # np.save would not say why a disk takes no more
        file.flush()
        os.fsync(file.fileno())
    return entry(path, array)


def save_parts(path: Path, shape: tuple[int, ...], dtype: str, parts: Iterable[Array]) -> dict[str, Any]:
    """Write an array that comes in parts, and return its entry; a part is read while the next one is made, and no longer."""
    start = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(start, header)
    digest = hashlib.sha256(start.getvalue())
    with path.open("wb") as file, ThreadPoolExecutor(1) as hasher:
        file.write(start.getvalue())
        hashed = None
        for part in parts:
            if hashed:
                hashed.result()
            hashed = hasher.submit(digest.update, part.data.cast("B"))
            file.write(part.data.cast("B"))
        file.flush()
        os.fsync(file.fileno())
    return {"file": path.name, "dtype": dtype, "shape": [*shape], "sha256": digest.hexdigest()}


def decode(path: Path, images: Images, rows: NDArray[np.int64]) -> dict[str, Any]:
    """Write these rows of images as .npy, decoded from their files, and return the entry in the manifest."""
    shape, mark = (len(rows), *images.shape[1:]), path.with_suffix(".mark")
    if not len(rows):
        return save(path, np.empty(shape, np.uint8))
    if not mark.exists():
        allocate(path, shape)
        _write(mark, "0")
    size = int(np.prod(shape[1:]))
    first, done = path.stat().st_size - len(rows) * size, min(int(mark.read_text()), len(rows))
    digest = hashlib.sha256()
    with path.open("r+b", buffering=0) as file, ThreadPoolExecutor(1) as behind:

        def keep(start: int, stop: int) -> None:
            """Have a block be on the disk, mark it, and hash it, while the next one is decoded."""
            if start >= done:
                os.fsync(file.fileno())
                _write(mark, str(stop))
            _hash(digest, path, first + start * size if start else 0, first + stop * size)

        kept = [behind.submit(keep, 0, done)] if done else []
        for start in range(done, len(rows), _BLOCK):
            stop = min(start + _BLOCK, len(rows))
            images.fill(FileRows(file.fileno(), first + start * size, size), rows[start:stop])
            for each in kept:
                each.result()
            kept = [behind.submit(keep, start, stop)]
    for each in kept:
        each.result()
    mark.unlink()
    return {"file": path.name, "dtype": "uint8", "shape": [*shape], "sha256": digest.hexdigest()}


class FileRows:
    """Rows of an open file, each written by a call: the pages of a mapped file cost a fault each, and a crash without room."""

    def __init__(self, file: int, first: int, size: int) -> None:
        self.file, self.first, self.size = file, first, size

    def __setitem__(self, place: int, row: NDArray[np.uint8], /) -> None:
        content, at = row.data.cast("B"), self.first + place * self.size
        while content:
            written = os.pwrite(self.file, content, at)
            content, at = content[written:], at + written


def _hash(digest: Any, path: Path, start: int, stop: int) -> None:
    """Add the bytes of a file from `start` to before `stop` to a digest."""
    room = memoryview(bytearray(_PART))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while start < stop:
            if not (number := file.readinto(room[: min(_PART, stop - start)])):
                raise OSError(errno.EIO, f"{path.name} has become shorter")
            digest.update(room[:number])
            start += number


def _write(mark: Path, text: str) -> None:
    """Write a mark that is never seen half written: a kill in between leaves the one before it."""
    new = mark.with_suffix(".new")
    new.write_text(text)
    new.replace(mark)


def allocate(path: Path, shape: tuple[int, ...]) -> int:
    """Have the disk give room for an array of uint8 now, and not when it is late; return where the array begins in its file."""
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        first = file.tell()
        os.posix_fallocate(file.fileno(), first, int(np.prod(shape)))
    return first


def entry(path: Path, array: Array) -> dict[str, Any]:
    return {"file": path.name, "dtype": str(array.dtype), "shape": list(array.shape), "sha256": sha256(path)}


def shaped(x: Array, rows: NDArray[np.int64], shape: tuple[int, ...], *, as_exported: bool) -> Iterator[Array]:
    """Yield some rows of samples as (n, *shape), a few at a time: images are resized, bilinear with antialiasing.

    `as_exported` resizes uint8 images to the bit as an exported file resizes what it is given.
    """
    largest = max(math.prod(x.shape[1:]), math.prod(shape))
    step = max(1, _AT_ONCE // max(1, largest))
    for start in range(0, len(rows), step):
        part = x[rows[start : start + step]]
        if part.shape[1:] != shape and len(shape) > 1:
            part = _as_exported(part, shape) if as_exported else _resized(part, shape)
        yield np.ascontiguousarray(part.reshape(-1, *shape))


def _resized(images: Array, shape: tuple[int, ...]) -> Array:
    import torch
    from torch.nn.functional import interpolate

    large = interpolate(torch.from_numpy(images).float(), size=shape[1:], mode="bilinear", antialias=True)
    return np.asarray(large.round().clamp(*IMAGE_RANGE).byte().numpy())


def _as_exported(images: Array, shape: tuple[int, ...]) -> Array:
    import torch

    from pipeline.data.resize import resize

    return np.asarray(resize(torch.from_numpy(images), shape[-1]).byte().numpy())


def npy(array: Array) -> bytes:
    """Return the bytes of the file that `save` writes."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0))
    return file.getvalue()


def statistics(x: Array, *, is_image: bool) -> tuple[list[float], list[float]]:
    """Return mean and deviation of each channel (images) or feature (vectors), summed in float64."""
    return of_histogram(histogram(x)) if is_image else _of_features(x)


def histogram(x: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how often each value is there in each channel of images (N, C, H, W), as (C, 256), without a float copy."""
    counts = np.zeros((x.shape[1], 256), np.int64)
    step = max(1, _PART // int(np.prod(x.shape[1:])))
    for start in range(0, len(x), step):
        counts += [_histogram(channel) for channel in np.moveaxis(x[start : start + step], 1, 0)]
    return counts


def of_histogram(counts: NDArray[np.int64]) -> tuple[list[float], list[float]]:
    """Return mean and deviation of the channels that have such a `histogram`."""
    values = np.arange(256, dtype=np.float64)
    mean = [float(c @ values / c.sum()) for c in counts]
    return mean, [float(np.sqrt(c @ (values - m) ** 2 / c.sum())) for c, m in zip(counts, mean, strict=True)]


def _histogram(values: Array) -> list[int]:
    """Return how often each of 256 values is there; np.bincount would make int64 of them first."""
    from PIL import Image

    flat = np.ascontiguousarray(values).reshape(-1)
    return Image.frombuffer("L", (flat.size, 1), flat, "raw", "L", 0, 1).histogram()


def _of_features(x: Array) -> tuple[list[float], list[float]]:
    if x.ndim != 2 or x.shape[1] == 1 or not len(x):
        return x.mean(0, dtype=np.float64).tolist(), x.std(0, dtype=np.float64).tolist()
    mean = _summed(x, lambda rows: None) / len(x)

    def square(rows: Array) -> None:
        rows -= mean
        rows *= rows

    return mean.tolist(), np.sqrt(_summed(x, square) / len(x)).tolist()


def _summed(x: Array, change: Callable[[Array], None]) -> NDArray[np.float64]:
    """Return the sum over the rows (N, D) in float64, each block of them changed first.

    It goes on from what came before, row by row, as numpy's own does, and has its bits; but nothing of it leaves the cache.
    """
    step = max(16, _CACHE // (8 * x.shape[1]))
    room = np.zeros((1 + step, x.shape[1]))
    for start in range(0, len(x), step):
        end = 1 + min(step, len(x) - start)
        room[1:end] = x[start : start + step]
        change(room[1:end])
        room[0] = room[0 if start else 1 : end].sum(0)
    return room[0].copy()
