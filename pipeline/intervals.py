"""How far a figure of a test set is to be believed: 95 % intervals by the bootstrap, and whether two runs differ.

Every figure here is a function of sums over samples. A resample of the set is a weight for each sample, so all sums of all
resamples are one product of matrices. The seed is fixed: the same answers give the same intervals.

Efron and Tibshirani, "An introduction to the bootstrap", 1993 (percentile intervals). McNemar, Psychometrika 12, 1947, in its
exact form. Holm, Scandinavian Journal of Statistics 6, 1979.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

LEVEL = 0.95
_SEED = 0
_MOST, _LEAST = 2000, 200  # resamples
_DRAWS = 2 * 10**8  # at most, where that leaves `_LEAST` resamples
_CHUNK = 2**22  # weights at once


def num_resamples(count: int) -> int:
    """Return how many resamples of `count` samples are drawn: 2000, and fewer of a very large set."""
    return max(_LEAST, min(_MOST, _DRAWS // max(1, count)))


def weights(count: int) -> Iterator[Array]:
    """Yield how often each of `count` samples is in each resample, (b, N) float64, a few resamples at a time."""
    source, left = np.random.default_rng(_SEED), num_resamples(count)
    while left:
        rows = min(left, max(1, _CHUNK // count))
        drawn = source.integers(0, count, (rows, count), dtype=np.int32)
        yield np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(np.float64)
        left -= rows


def resampled(values: Any) -> Array:
    """Return the sums of values (N, Q), an array or a sparse one, over each resample: (B, Q) float64."""
    return np.concatenate([np.asarray(each @ values) for each in weights(values.shape[0])])


def interval(found: Array) -> tuple[float, float] | None:
    """Return the percentile interval of a figure's resamples (B,); None where it is defined in too few of them."""
    defined = found[np.isfinite(found)]
    if len(defined) < LEVEL * len(found):
        return None
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(defined, [tail, 100 - tail])
    return float(low), float(high)


def roc_auc(scores: Array, is_positive: Array) -> tuple[float, Array]:
    """Return the area under the ROC curve of scores (N,), and that of each resample (B,), NaN where a class is missing."""
    order = np.argsort(scores, kind="stable")
    positive = is_positive[order].astype(np.float64)
    first = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)  # of each group of equal scores

    def area(each: Array) -> Array:
        up, down = (np.add.reduceat(each * kind, first, axis=1) for kind in (positive, 1 - positive))
        below = down.cumsum(axis=1) - down / 2  # a tie counts half
        with np.errstate(invalid="ignore"):
            found: Array = (up * below).sum(axis=1) / (up.sum(axis=1) * down.sum(axis=1))
        return found

    return float(area(np.ones((1, len(scores))))[0]), np.concatenate([area(each[:, order]) for each in weights(len(scores))])


def mcnemar(right: Array, other: Array) -> tuple[int, int, float]:
    """Return how many samples only the first decides right, how many only the second, and the exact two-sided p of so much."""
    from scipy.stats import binomtest

    first, second = int((right & ~other).sum()), int((~right & other).sum())
    return first, second, float(binomtest(first, first + second).pvalue) if first + second else 1.0


def p_value(differences: Array) -> float:
    """Return the two-sided p of no difference, by the share of a paired bootstrap's differences (B,) on either side of 0."""
    count = len(differences)
    share = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (share + 1) / (count + 1))


def holm(values: Sequence[float]) -> list[float]:
    """Return p values that are held to one level together, in the given order: the more were asked, the larger they get."""
    adjusted, largest = [0.0] * len(values), 0.0
    for rank, k in enumerate(sorted(range(len(values)), key=lambda k: values[k])):
        largest = max(largest, min(1.0, (len(values) - rank) * values[k]))
        adjusted[k] = largest
    return adjusted
