"""The data sets that come with Trainyard, described without loading them (and without numpy)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pipeline.data.spec import IMAGE_RANGE, DataSpec, Samples, Source


def _breast_cancer(data_dir: Path, seed: int) -> Samples:
    import numpy as np
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    return Samples(x.astype(np.float32), y.astype(np.int64))


def _digits(data_dir: Path, seed: int) -> Samples:
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Samples(np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None], bunch.target.astype(np.int64))


def _moons(data_dir: Path, seed: int, noise: float = 0.5) -> Samples:
    import numpy as np
    from sklearn.datasets import make_moons

    if not 0 <= noise <= 1000:
        raise ValueError(f"noise={noise:g}, a standard deviation, is not from 0 to 1000")
    x, y = make_moons(n_samples=1000, noise=noise, random_state=seed)
    return Samples(x.astype(np.float32), y.astype(np.int64))


def _sine(data_dir: Path, seed: int) -> Samples:
    import numpy as np

    x = np.linspace(-np.pi, np.pi, 2000, dtype=np.float32)[:, None]
    return Samples(x, np.sin(x))


def _mnist(data_dir: Path, seed: int) -> Samples:
    from pipeline.data import mnist

    return mnist.load(data_dir)


def _mnist_files(data_dir: Path) -> list[Path]:
    from pipeline.data import mnist

    return mnist.raw_files(data_dir)


def _mnist_missing(data_dir: Path) -> list[Path]:
    from pipeline.data import mnist

    return mnist.missing(data_dir)


_TEN_DIGITS = tuple("0123456789")


def _images(name: str, side: int) -> DataSpec:
    return DataSpec(
        name=name, task="multiclass", sample_shape=(1, side, side), dtype="uint8", value_range=IMAGE_RANGE, classes=_TEN_DIGITS
    )


SOURCES: Mapping[str, Source] = {
    "breast_cancer": Source(
        summary="569 tumors, 30 measurements each, malignant or benign (scikit-learn)",
        spec=DataSpec(name="breast_cancer", task="binary", sample_shape=(30,), classes=("malignant", "benign")),
        num_train=569,
        load=_breast_cancer,
    ),
    "digits": Source(
        summary="1797 handwritten digits of 8x8 pixels (scikit-learn)",
        spec=_images("digits", 8),
        num_train=1797,
        load=_digits,
    ),
    "moons": Source(
        summary="1000 points of two interleaved half circles, with --data_args noise=0.5 (computed)",
        spec=DataSpec(name="moons", task="binary", sample_shape=(2,), classes=("outer", "inner")),
        num_train=1000,
        load=_moons,
        val_fraction=0.16,
        is_random=True,
    ),
    "sine": Source(
        summary="sin(x) at 2000 points evenly spaced in [-pi, pi] (computed)",
        spec=DataSpec(name="sine", task="regression", sample_shape=(1,)),
        num_train=2000,
        load=_sine,
    ),
    "mnist": Source(
        summary="60 000 + 10 000 handwritten digits of 28x28 pixels (downloaded, or found under --data_dir)",
        spec=_images("mnist", 28),
        num_train=60_000,
        load=_mnist,
        val_fraction=1 / 12,
        has_test_set=True,
        files=_mnist_files,
        missing=_mnist_missing,
    ),
}
