"""What is to be learnt, under `inspect`: classes with their counts, values with their range, and how the samples are split."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pipeline.data.spec import DataSpec, Samples, Source
from pipeline.inspection.report import Part, number
from pipeline.task import task

_CLASSES = 20  # that are listed
_UNEVEN = 3  # times as many samples in the largest class as in the smallest, from where it is told

Rows = Mapping[str, NDArray[np.int64]]


def cut(source: Source, samples: Samples, rows: Rows) -> Part:
    """Return how many samples each split has, and where it comes from."""
    total = sum(map(len, rows.values()))
    own = set() if samples.split is None else set(np.unique(samples.split).tolist())
    strata = ", each class keeping its share" if task(source.spec.task).has_strata else ""
    chance = f"cut by chance{strata} (--split_seed 0)"
    whose = {name: "as the data says" if name in own else chance for name in rows}
    if any(len(r) and name not in own for name, r in rows.items() if name != "train"):
        whose["train"] = "what is left"
    return Part(
        title="splits", header=("split", "samples", "share", ""), numbers=(1, 2),
        rows=[(name, f"{len(r):,}", f"{len(r) / total:.1%}", whose[name] if len(r) else "") for name, r in rows.items()],
    )  # fmt: skip


def targets(spec: DataSpec, samples: Samples, rows: Rows) -> Part:
    """Return the classes or labels with their counts, or the values that are predicted."""
    y = samples.y
    cells: list[tuple[str, ...]]
    if not task(spec.task).has_decisions:
        values = y.astype(np.float64)
        cells = [
            (name, *(number(float(f(column))) for f in (np.min, np.median, np.max, np.mean, np.std)))
            for name, column in zip(spec.targets or [str(k) for k in range(y.shape[1])], values.T, strict=False)
        ]
        names = ("target", "min", "median", "max", "mean", "deviation")
        return Part(title="targets", header=names, rows=cells[:_CLASSES], numbers=(1, 2, 3, 4, 5))
    has_labels = y.ndim == 2

    def counted(part: NDArray[np.generic]) -> NDArray[np.int64]:
        return part.sum(0).astype(int) if has_labels else np.bincount(part.astype(int), minlength=len(spec.classes))

    counts = counted(y)
    order = np.argsort(-counts, kind="stable")
    shown, rest = order[:_CLASSES], order[_CLASSES:]
    of_split = {name: counted(y[r]) for name, r in rows.items()}
    cells = [
        (spec.classes[k], f"{counts[k]:,}", f"{counts[k] / len(y):.1%}", *(f"{c[k]:,}" for c in of_split.values()))
        for k in shown
    ]
    if len(rest):
        sums = (f"{c[rest].sum():,}" for c in of_split.values())
        cells.append((f"{len(rest):,} more", f"{counts[rest].sum():,}", f"{counts[rest].sum() / len(y):.1%}", *sums))
    header = ("label" if has_labels else "class", "samples", "share", *of_split)
    return Part(title="labels" if has_labels else "classes", header=header, rows=cells, numbers=tuple(range(1, len(header))))


def balance(spec: DataSpec, y: NDArray[np.generic]) -> str:
    """Return how even the classes are; nothing where samples are of none, or of several."""
    if y.ndim > 1 or not spec.classes:
        return ""
    counts = np.bincount(y.astype(int), minlength=len(spec.classes))
    large, small = int(counts.argmax()), int(counts.argmin())
    if not counts[small]:
        return f"none of {spec.classes[small]}"
    ratio = counts[large] / counts[small]
    if ratio < _UNEVEN:
        return f"about even, the largest has {ratio:.1f} times as many samples as the smallest"
    return (
        f"uneven: {spec.classes[large]} has {number(float(f'{ratio:.2g}'))} times as many samples as {spec.classes[small]}; "
        f"who says {spec.classes[large]} every time is right in {counts[large] / counts.sum():.1%}. --class_weights balanced "
        "weighs all classes alike"
    )
