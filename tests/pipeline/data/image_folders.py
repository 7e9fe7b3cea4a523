"""Folders of images for tests, and what comes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.data.spec import DataOptions, Samples, Source
from tests.pipeline.data.test_images import content

Make = Callable[[Path], object]
SMALL = DataOptions(image_size=8)
SKIP = DataOptions(image_size=8, skip_bad=True)


def picture(number: int, *, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> Image.Image:
    """Return an image of noise, another for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def put(path: Path, number: int = 0, **more: Any) -> Path:
    """Write `picture(number)` as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content(picture(number, **more), "PNG"))
    return path


def classes(root: Path, *names: str, count: int = 3, first: int = 0) -> Path:
    """Write `count` images of each class, all different."""
    for k, name in enumerate(names):
        for i in range(count):
            put(root / name / f"{i}.png", first + k * 100 + i)
    return root


def splits(root: Path, *names: str) -> Path:
    """Write the classes cat and dog in each split, all images different."""
    for k, name in enumerate(names):
        classes(root / name, "cat", "dog", first=1000 * k)
    return root


def load(found: Source) -> Samples:
    return found.load(data_dir=Path("data"), seed=0)


def filled(samples: Samples) -> np.ndarray:
    out = np.zeros(samples.x.shape, np.uint8)
    samples.x.fill(out, np.arange(len(out)))
    return out
