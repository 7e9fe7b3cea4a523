"""Where the samples come from: scikit-learn, a formula, or torchvision. Everything is returned as numpy arrays.

Images are uint8 (N, C, H, W), vectors float32 (N, D), labels int64 (N,), regression targets float32 (N, 1).
"""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.config import RunConfig, UserError

Array = NDArray[np.generic]

MNIST_FILES = tuple(f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
_DOWNLOAD_TIMEOUT = 20.0  # seconds without an answer from a mirror


class Samples(NamedTuple):
    """All samples of a data set; `test_x` and `test_y` are None where it has no test set of its own."""

    x: Array
    y: Array
    test_x: Array | None = None
    test_y: Array | None = None


def breast_cancer(config: RunConfig) -> Samples:
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    return Samples(x.astype(np.float32), y.astype(np.int64))


def digits(config: RunConfig) -> Samples:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Samples(np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None], bunch.target.astype(np.int64))


def moons(config: RunConfig) -> Samples:
    from sklearn.datasets import make_moons

    x, y = make_moons(n_samples=1000, noise=config.noise, random_state=config.split_seed)
    return Samples(x.astype(np.float32), y.astype(np.int64))


def sine(config: RunConfig) -> Samples:
    x = np.linspace(-np.pi, np.pi, 2000, dtype=np.float32)[:, None]
    return Samples(x, np.sin(x))


def mnist(config: RunConfig) -> Samples:
    from torchvision.datasets import MNIST

    folder = _mnist_folder(config)
    try:
        parts = [MNIST(config.data_dir.expanduser(), train=train) for train in (True, False)]
    except (ValueError, RuntimeError, AssertionError, OSError) as error:
        raise UserError(
            f"data_dir={config.data_dir} holds MNIST files in {folder} that cannot be read ({error}). Delete them to have "
            "them downloaded anew, or use --dataset digits, which is embedded."
        ) from error
    arrays = [a for part in parts for a in (part.data.numpy()[:, None], part.targets.numpy().astype(np.int64))]
    for x, y in (arrays[:2], arrays[2:]):
        if len(x) != len(y) or not len(x) or y.min() < 0 or y.max() > 9:
            raise UserError(
                f"data_dir={config.data_dir}: the MNIST files in {folder} have {len(x)} images and {len(y)} labels "
                f"from {y.min(initial=0)} to {y.max(initial=0)}. Delete them to have them downloaded anew."
            )
    return Samples(*arrays)


def _mnist_folder(config: RunConfig) -> Path:
    return config.data_dir.expanduser() / "MNIST" / "raw"


def raw_files(config: RunConfig) -> list[Path]:
    """Return the raw files that the data set is read from, downloading what is missing; none for embedded data."""
    if config.dataset != "mnist":
        return []
    files = [_mnist_folder(config) / name for name in MNIST_FILES]
    if not all(f.is_file() for f in files):
        _download_mnist(config)
    return files


def _download_mnist(config: RunConfig) -> None:
    from torchvision.datasets import MNIST

    folder = _mnist_folder(config)
    missing = [f for f in (folder, folder.parent, folder.parent.parent) if not f.exists()]
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        MNIST(config.data_dir.expanduser(), download=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong MD5 is a RuntimeError
        for made in missing:
            if made.is_dir() and not any(made.iterdir()):
                made.rmdir()
        raise UserError(
            f"dataset=mnist: its files are not in {folder} and cannot be downloaded "
            f"({str(error).strip().splitlines()[-1]}). Put {', '.join(MNIST_FILES)} there, or use --dataset digits, "
            "which is embedded."
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def fingerprint(files: list[Path]) -> str:
    """Return a digest of the files' names, sizes and times: a cache made from others must not be used for them."""
    stats = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest()
