"""The figures of a test set from what a model gave for each sample, each with its 95 % interval.

They are the numbers of test.json, told once more as functions of sums over samples, by which they can be drawn again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import calibration, intervals
from pipeline.answers import Answers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Read = Callable[[Array], Array]  # sums (B, Q) to a figure (B,)


@dataclass(frozen=True)
class Estimate:
    """A figure of the whole set, and its interval where it is defined in (nearly) all resamples."""

    value: float
    interval: tuple[float, float] | None


def estimates(found: Answers, *, has_labels: bool) -> dict[str, Estimate]:
    """Return the figures that fit, by name; those of single classes are called `class <number> <figure>`."""
    columns, reads = _values(found) if found.decided is None else _classes(found, has_labels=has_labels)
    whole, drawn = np.asarray(columns.sum(axis=0)).reshape(1, -1), intervals.resampled(columns)
    with np.errstate(invalid="ignore", divide="ignore"):
        told = {name: Estimate(float(read(whole)[0]), intervals.interval(read(drawn))) for name, read in reads.items()}
    if found.decided is not None and found.scores.shape[1] == 1 and len(np.unique(found.target)) == 2:
        area, areas = intervals.roc_auc(found.scores[:, 0], found.target == 1)
        told["roc_auc"] = Estimate(area, intervals.interval(areas))
    return told


def right(found: Answers) -> Array:
    """Return which decisions are right, bool: (N, 1), or (N, K) for labels."""
    assert found.decided is not None
    same: Array = found.decided == found.target
    return same.reshape(len(same), -1)


def per_sample(found: Answers) -> Array:
    """Return what the task's metric is the mean of, (N,) float64: the share of right decisions, or the mean squared error."""
    if found.decided is not None:
        shares: Array = right(found).mean(axis=1)
        return shares
    errors: Array = ((found.scores.astype(np.float64) - found.target) ** 2).mean(axis=1)
    return errors


def metric(means: Array, found: Answers) -> Array:
    """Return the task's metric of means of `per_sample`: accuracy, or RMSE."""
    return means if found.decided is not None else np.sqrt(means)


def losses(found: Answers) -> Array:
    """Return by what samples are ranked, (N,) float64: the negative log-likelihood, or the root of the mean squared error."""
    return (
        np.sqrt(per_sample(found)) if found.decided is None else calibration.negative_log_likelihood(found.scores, found.target)
    )


def _classes(found: Answers, *, has_labels: bool) -> tuple[Any, dict[str, Read]]:
    from scipy import sparse

    same, count = right(found), len(found.target)
    rows = np.arange(count)
    cost = calibration.negative_log_likelihood(found.scores, found.target)
    head = np.stack([same.mean(axis=1), same.all(axis=1), cost], axis=1)
    assert found.decided is not None
    if has_labels:
        num_classes = found.target.shape[1]
        parts = [found.decided * found.target, found.target, found.decided]
    else:
        num_classes = max(2, found.scores.shape[1])

        def one_hot(index: Array, value: Array) -> Any:
            return sparse.coo_array((value.astype(np.float64), (rows, index)), shape=(count, num_classes))

        ones = np.ones(count)
        parts = [one_hot(found.target, same[:, 0]), one_hot(found.target, ones), one_hot(found.decided, ones)]
    sure = calibration.confidence(found.scores, has_labels=has_labels)
    where, each = calibration.bins(sure).ravel(), np.repeat(rows, sure.shape[1])
    for value in (np.ones(sure.size), sure.ravel(), same.ravel().astype(np.float64)):
        parts.append(sparse.coo_array((value, (each, where)), shape=(count, calibration.BINS)))
    columns = sparse.hstack([sparse.csr_array(part) for part in (head, *parts)]).tocsr()

    def of(sums: Array, part: int) -> Array:
        return sums[:, 3 + part * num_classes : 3 + (part + 1) * num_classes]

    def ratio(above: Array, below: Array) -> Array:
        return np.divide(above, below, out=np.zeros_like(above), where=below > 0)

    by_class: dict[str, Read] = {
        "precision": lambda s: ratio(of(s, 0), of(s, 2)), "recall": lambda s: ratio(of(s, 0), of(s, 1)),
        "f1": lambda s: ratio(2 * of(s, 0), of(s, 1) + of(s, 2)),
    }  # fmt: skip

    def balanced(sums: Array) -> Array:
        there = of(sums, 1) > 0
        mean: Array = by_class["recall"](sums).sum(axis=1) / there.sum(axis=1)
        return mean

    def error(sums: Array) -> Array:
        return calibration.expected_error(sums[:, 3 + 3 * num_classes :].reshape(len(sums), 3, calibration.BINS))

    reads: dict[str, Read] = {"accuracy": lambda s: s[:, 0] / count}
    reads |= {"all labels right": lambda s: s[:, 1] / count} if has_labels else {"balanced_accuracy": balanced}
    reads |= {f"{name}_macro": partial(_mean_of, read) for name, read in by_class.items()}
    reads |= {"negative log-likelihood": lambda s: s[:, 2] / count, "calibration error (ECE)": error}
    for k in range(num_classes):
        reads |= {f"class {k} {name}": partial(_one_of, read, k) for name, read in by_class.items()}
    return columns, reads


def _mean_of(read: Read, sums: Array) -> Array:
    mean: Array = read(sums).mean(axis=1)
    return mean


def _one_of(read: Read, k: int, sums: Array) -> Array:
    one: Array = read(sums)[:, k]
    return one


def _values(found: Answers) -> tuple[Any, dict[str, Read]]:
    target = found.target.astype(np.float64)
    off = found.scores - target
    count, width = target.shape
    centered = target - target.mean(axis=0)
    columns = np.concatenate([off**2, np.abs(off), centered, centered**2], axis=1)

    def of(sums: Array, part: int) -> Array:
        return sums[:, part * width : (part + 1) * width]

    def r2(sums: Array) -> Array:
        return 1 - of(sums, 0) / (of(sums, 3) - of(sums, 2) ** 2 / count)

    reads: dict[str, Read] = {
        "rmse": lambda s: np.sqrt(of(s, 0).mean(axis=1) / count), "mae": lambda s: of(s, 1).mean(axis=1) / count,
        "r2": lambda s: r2(s).mean(axis=1),
    }  # fmt: skip
    for k in range(width if width > 1 else 0):
        reads |= {f"class {k} rmse": partial(_one_of, lambda s: np.sqrt(of(s, 0) / count), k)}
        reads |= {f"class {k} r2": partial(_one_of, r2, k)}
    return columns, reads


def calibrations(found: Answers, temperatures: Mapping[str, float], *, has_labels: bool) -> dict[str, Array]:
    """Return the table of bins (3, 15) for each temperature, by its name."""
    sure = {
        name: calibration.confidence(found.scores, has_labels=has_labels, temperature=t) for name, t in temperatures.items()
    }
    return {name: calibration.table(each, right(found)) for name, each in sure.items()}
