"""How far probabilities can be trusted: the expected calibration error, and the temperature that brings it down.

Guo et al., "On calibration of modern neural networks", ICML 2017; the error is that of Naeini et al., AAAI 2015: samples go by
their confidence, the probability of what was decided, into 15 bins of equal width, and the gap between the mean confidence and
the share of right decisions counts by the number of samples. Of several labels each decision counts for itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

BINS = 15
RANGE = (0.01, 100.0)  # of temperatures
_DIGITS = 4  # of a temperature: the last bits of the scores must not move it


def of_classes(scores: Array) -> Array:
    """Return scores (N, 1) of class 1 of two as logits (N, 2) in float64, and others (N, K) as they are."""
    wide: Array = scores.astype(np.float64)
    return np.concatenate([np.zeros_like(wide), wide], axis=1) if wide.shape[1] == 1 else wide


def negative_log_likelihood(scores: Array, target: Array, *, temperature: float = 1.0) -> Array:
    """Return what each sample's target costs by scores (N, K), (N,) float64, in nats; of labels (N, K), on average."""
    if target.ndim == 2:
        logits = scores.astype(np.float64) / temperature
        cost: Array = (np.logaddexp(0, logits) - logits * target).mean(axis=1)
        return cost
    logits = of_classes(scores) / temperature
    logits -= logits.max(axis=1, keepdims=True)
    each: Array = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), target]
    return each


def confidence(scores: Array, *, has_labels: bool, temperature: float = 1.0) -> Array:
    """Return the probability of what scores (N, K) decide, float64: (N, 1), or (N, K) for labels, each of which is decided."""
    if has_labels:
        sure: Array = 1 / (1 + np.exp(-np.abs(scores.astype(np.float64)) / temperature))
        return sure
    logits = of_classes(scores) / temperature
    largest: Array = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True)
    return largest


def bins(sure: Array) -> Array:
    """Return the bin of each confidence, int64: the first is [0, 1/15], the second (1/15, 2/15], and so on."""
    found: Array = np.clip(np.ceil(sure * BINS).astype(np.int64) - 1, 0, BINS - 1)
    return found


def table(sure: Array, right: Array) -> Array:
    """Return for each bin how many there are, and the sums of their confidences and of right decisions: (3, 15) float64."""
    where, flat = bins(sure).ravel(), sure.ravel()
    weights = (np.ones_like(flat), flat, right.ravel().astype(np.float64))
    return np.stack([np.bincount(where, weights=w, minlength=BINS) for w in weights])


def expected_error(sums: Array) -> Array:
    """Return the expected calibration error of tables (..., 3, 15) as `table` gives them, or of their sums."""
    count = sums[..., 0, :].sum(axis=-1)
    error: Array = np.abs(sums[..., 1, :] - sums[..., 2, :]).sum(axis=-1) / count
    return error


def fit_temperature(scores: Array, target: Array) -> float:
    """Return the temperature by which scores (N, K) / temperature make the targets most likely, to four digits.

    Raises ValueError where none is best: the sharper, the better, as where each of the samples is decided right.
    """
    from scipy.optimize import minimize_scalar

    low, high = np.log(RANGE)

    def cost(logarithm: float) -> float:
        return float(negative_log_likelihood(scores, target, temperature=float(np.exp(logarithm))).mean())

    found = float(minimize_scalar(cost, bounds=(low, high), method="bounded", options={"xatol": 1e-8}).x)
    if cost(low) <= cost(found) or cost(high) <= cost(found) or min(found - low, high - found) < 0.05:
        what = "all of them are decided right, so that no probability is too large" if found < 0 else "the scores say nothing"
        raise ValueError(f"no temperature fits the {len(scores)} validation samples best: {what}")
    return float(f"{np.exp(found):.{_DIGITS}g}")
