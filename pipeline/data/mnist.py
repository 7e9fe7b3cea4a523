"""MNIST: the four raw files, downloaded where they are missing, and read as they are."""

from __future__ import annotations

import math
import socket
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data.spec import Samples
from pipeline.errors import UserError

FILES = tuple(f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
_DOWNLOAD_TIMEOUT = 20.0  # seconds without an answer from a mirror


def load(data_dir: Path) -> Samples:
    """Return what the four raw files hold, and nothing else: torchvision's class would prefer an old `processed/` folder."""
    arrays = []
    for file in raw_files(data_dir):
        try:
            values = read_idx(file, ndim=3 if "images" in file.name else 1)
        except (OSError, ValueError) as error:
            raise UserError(
                f"data_dir={data_dir} holds MNIST files in {file.parent} that cannot be read ({error}). Delete them to "
                "have them downloaded anew, or use --dataset digits, which is embedded."
            ) from error
        arrays.append(values[:, None] if values.ndim == 3 else values.astype(np.int64))
    for x, y in (arrays[:2], arrays[2:]):
        if len(x) != len(y) or not len(x) or y.max() > 9:
            raise UserError(
                f"data_dir={data_dir}: the MNIST files in {_folder(data_dir)} have {len(x)} images and {len(y)} "
                f"labels from {y.min(initial=9)} to {y.max(initial=0)}. Delete them to have them downloaded anew."
            )
    x, y, test_x, test_y = arrays
    return Samples(
        np.concatenate([x, test_x]), np.concatenate([y, test_y]),
        split=np.repeat(["train", "test"], [len(x), len(test_x)]),
    )  # fmt: skip


def read_idx(path: Path, *, ndim: int) -> NDArray[np.uint8]:
    """Return the bytes of an IDX file (LeCun's format) as an array of `ndim` axes.

    Raises ValueError where its header is another, or promises more or less than there is.
    """
    content = np.fromfile(path, np.uint8)
    start = 4 + 4 * ndim
    header = content[:start].tobytes()
    if header[:4] != bytes((0, 0, 8, ndim)) or len(header) < start:
        raise ValueError(f"{path.name} does not begin as an IDX file of bytes with {ndim} axes does")
    shape = struct.unpack(f">{ndim}I", header[4:])
    if math.prod(shape) != len(content) - start:
        raise ValueError(f"{path.name} says that it holds {' x '.join(map(str, shape))} bytes, and has {len(content) - start}")
    return content[start:].reshape(shape)


def _folder(data_dir: Path) -> Path:
    return data_dir.expanduser() / "MNIST" / "raw"


def raw_files(data_dir: Path) -> list[Path]:
    """Return the four raw files, downloading what is missing."""
    if missing(data_dir):
        _download(data_dir)
    return [_folder(data_dir) / name for name in FILES]


def missing(data_dir: Path) -> list[Path]:
    """Return those of the four raw files that are not there."""
    return [file for name in FILES if not (file := _folder(data_dir) / name).is_file()]


def _download(data_dir: Path) -> None:
    """Fetch and unpack the files that are missing, or unpack their archives that are there; what is there stays as it is."""
    from torchvision.datasets import MNIST

    folder = _folder(data_dir)
    made = [f for f in (folder, folder.parent, folder.parent.parent) if not f.exists()]
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        for archive, md5 in MNIST.resources:
            if not (folder / archive.removesuffix(".gz")).is_file():
                _fetch(archive, md5, mirrors=MNIST.mirrors, folder=folder)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong MD5 is a RuntimeError
        for empty in made:
            if empty.is_dir() and not any(empty.iterdir()):
                empty.rmdir()
        raise UserError(
            f"dataset=mnist: its files are not in {folder} and cannot be downloaded "
            f"({str(error).strip().splitlines()[-1]}). Put {', '.join(FILES)} there, or use --dataset digits, "
            "which is embedded."
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _fetch(archive: str, md5: str, *, mirrors: list[str], folder: Path) -> None:
    """Have an archive from the first mirror that gives it. Raises what the last one does."""
    from torchvision.datasets.utils import download_and_extract_archive

    for mirror in mirrors:
        try:
            return download_and_extract_archive(f"{mirror}{archive}", str(folder), filename=archive, md5=md5)
        except (OSError, RuntimeError):
            if mirror == mirrors[-1]:
                raise
