"""Numbers: an artifact's outputs against torch's, for single batches and for all samples of a split.

Relative error means nothing near zero, so a value agrees within `ATOL * max(1, M) + RTOL * |torch|`, where M is the largest
|torch| of the same output for the same sample: rounding errors of a sum are in proportion to what is added up, so a logit near
zero beside logits of 20 is no more exact than those. Targets of a regression have units of their own: there M is 1. Decisions
are counted besides. A value that is not finite never agrees, also where torch gives the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.task import Task

Array = NDArray[Any]

RTOL, ATOL = 1e-3, 1e-5


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One output of one case, `want` being torch's; `allowed` is the tolerance in words.

    `largest` and `mean` are over the values finite in both.
    """

    output: str
    shape: tuple[int, ...]
    want_shape: tuple[int, ...]
    allowed: str
    largest: float | None = None
    mean: float | None = None
    num_outside: int = 0
    num_not_finite: int = 0
    torch_not_finite: int = 0

    @property
    def agrees(self) -> bool:
        return self.shape == self.want_shape and not self.num_outside and not self.num_not_finite


@dataclass(frozen=True, kw_only=True)
class Score:
    """All samples: how many are decided otherwise (None without decisions), and the task's metric here and in torch."""

    flips: int | None
    value: float
    want: float

    @property
    def agrees(self) -> bool:
        return not self.flips and bool(np.isclose(self.value, self.want, rtol=RTOL, atol=ATOL))


@dataclass
class Comparison:
    """All differences, by case, and the score where the first output is of use."""

    differences: dict[str, list[Difference]] = field(default_factory=dict)
    score: Score | None = None

    @property
    def agrees(self) -> bool:
        return bool(self.score and self.score.agrees) and all(d.agrees for case in self.differences.values() for d in case)

    def largest(self, case: str | None = None) -> float | None:
        """Return the largest absolute difference of a case, or of all."""
        cases = self.differences if case is None else {case: self.differences.get(case, [])}
        return max((d.largest for differences in cases.values() for d in differences if d.largest is not None), default=None)

    def mean(self, case: str) -> float | None:
        """Return the mean absolute difference of a case, each output weighing the same."""
        means = [d.mean for d in self.differences.get(case, []) if d.mean is not None]
        return float(np.mean(means)) if means else None


def matches(got: Array, want: Array) -> bool:
    """Tell whether two arrays agree in shape and within the tolerance."""
    return got.shape == want.shape and bool(np.isclose(got, want, rtol=RTOL, atol=ATOL).all())


def allowed(task: Task) -> str:
    """Return the tolerance in words."""
    return f"{ATOL:g}{' x max(1, largest |torch| of the sample)' if task.has_decisions else ''} + {RTOL:g} x |torch|"


def compare(
    got: Mapping[str, Sequence[Array]],
    want: Mapping[str, Sequence[Array]],
    *,
    names: Sequence[str],
    labels: Array,
    task: Task,
) -> Comparison:
    """Compare outputs by case and position; `names` are the outputs' names, `labels` those of all samples."""
    comparison = Comparison()
    for case, values in want.items():
        if case in got:
            pairs = zip(names, got[case], values, strict=False)
            comparison.differences[case] = [_difference(*pair, task) for pair in pairs]
    if "all" in got and got["all"] and got["all"][0].shape == want["all"][0].shape:
        comparison.score = score(got["all"][0], want["all"][0], labels, task)
    return comparison


def _difference(name: str, got: Array, want: Array, task: Task) -> Difference:
    found = Difference(output=name, shape=got.shape, want_shape=want.shape, allowed=allowed(task))
    if got.shape != want.shape:
        return found
    here, there = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(here) & np.isfinite(there)
    distance = np.abs(here[finite] - there[finite])
    scale = np.ones(len(there))
    if task.has_decisions and there.size:
        scale = np.maximum(scale, np.where(np.isfinite(there), np.abs(there), 0).reshape(len(there), -1).max(axis=1))
    tolerance = (ATOL * scale).reshape(-1, *[1] * (there.ndim - 1)) + RTOL * np.where(np.isfinite(there), np.abs(there), 0)
    return replace(
        found,
        largest=float(distance.max()) if distance.size else None,
        mean=float(distance.mean()) if distance.size else None,
        num_outside=int((distance > tolerance[finite]).sum()),
        num_not_finite=int((~np.isfinite(here)).sum()),
        torch_not_finite=int((~np.isfinite(there)).sum()),
    )


def score(got: Array, want: Array, labels: Array, task: Task) -> Score:
    """Return how the first output of all samples does against the labels, and against torch."""
    if not task.has_decisions:  # squared errors, added up in float64 by numpy, whose order of adding every report has had
        error, want_error = (float(np.sqrt(np.mean((a.astype(np.float64) - labels) ** 2))) for a in (got, want))
        return Score(flips=None, value=error, want=want_error)
    decided, want_decided = (task.decide(torch.from_numpy(a.astype(np.float64))).numpy() for a in (got, want))
    accuracy, want_accuracy = (float((d == labels).mean()) for d in (decided, want_decided))
    flipped = (decided != want_decided).reshape(len(decided), -1).any(axis=1)
    return Score(flips=int(flipped.sum()), value=accuracy, want=want_accuracy)
