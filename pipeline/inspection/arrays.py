"""Arrays under `inspect`: vectors, and images that are in memory."""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.data.images import resize
from pipeline.data.spec import Samples, Source
from pipeline.inspection.columns import SHOWN, described, draw, part
from pipeline.inspection.images import repeated
from pipeline.inspection.report import Found

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def of_vectors(source: Source, samples: Samples) -> Found:
    """Return what vectors (N, D) float32 have to say."""
    x = samples.x
    assert isinstance(x, np.ndarray)
    num_rows, width = x.shape
    hashes = Counter(hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in x)
    equal = sum(count - 1 for count in hashes.values())
    named = ((f"feature {k}", np.where(np.isfinite(x[:, k]), x[:, k], np.nan).astype(np.float64)) for k in range(width))
    values = {name: column for (name, column), _ in zip(named, range(SHOWN), strict=False)}
    rows = [described(name, column, "number", "", num_rows) for name, column in values.items()]
    return Found(
        kind="vectors", source=source, samples=samples, parts=[part("features", rows, width)],
        facts=[
            ("samples", f"{num_rows:,} of {width:,} {'features' if width > 1 else 'feature'}, float32"),
            ("duplicates", f"{equal:,} equal another" if equal else "none"),
        ],
        draw=partial(draw, source, samples, values, (), {}),
    )  # fmt: skip


def of_images(source: Source, samples: Samples) -> Found:
    """Return what images (N, C, H, W) uint8 have to say."""
    x = samples.x
    assert isinstance(x, np.ndarray)
    _, channels, height, width = x.shape
    hashes = Counter(hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in x)
    facts = [
        ("images", f"{len(x):,} in memory, as an array of uint8"),
        ("size", f"{width}x{height} pixels, {'grey' if channels == 1 else 'RGB'}"),
        ("values", f"from {x.min()} to {x.max()}, mean {x.mean():.1f}"),
        ("duplicates", repeated(hashes)),
    ]
    return Found(
        kind="images in arrays", facts=facts, source=source, samples=samples, side=min(height, width),
        draw=partial(draw_images, source, samples),
    )  # fmt: skip


def draw_images(source: Source, samples: Samples, side: int) -> Figure:
    """Draw images (N, C, H, W) uint8 that are in memory, those of a class in a row."""
    from pipeline.plots.data import image_rows

    spec, x = source.spec, samples.x
    assert isinstance(x, np.ndarray)
    names = spec.classes or spec.targets

    def tile(row: int) -> tuple[str, NDArray[np.uint8]]:
        y = np.atleast_1d(samples.y[row])
        has = [name for name, value in zip(names, y, strict=False) if value]
        text = f"row {row}" if samples.y.ndim == 1 else ", ".join(has) if spec.classes else ", ".join(f"{v:.4g}" for v in y)
        return text, resize(x[row], side)

    if samples.y.ndim == 1:
        return image_rows(samples.y, tile, classes=spec.classes, side=side)
    return image_rows(np.zeros(len(x), int), tile, classes=("",), side=side)
