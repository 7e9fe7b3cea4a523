"""Times of calls to the figures of a row, or to the reason why none is stated.

A figure counts only where the rounds agree, and where other processes left the cores that it needs: on a busy machine a call of
0.3 ms may take 80, each round again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.benchmark import machine

Array = NDArray[Any]

MAX_SPREAD = 0.25  # by which the slowest of the rounds may be slower than the fastest
MAX_LOAD_SPREAD = 0.5  # the same of what is done once in a process: to load
_PERCENTILES = {"p50_ms": (50, 1), "p95_ms": (95, 20), "p99_ms": (99, 100)}  # and of how many calls there is one


@dataclass(frozen=True)
class Slice:
    """The times in s of the calls in one round, how long all took, and how many cores other processes had meanwhile."""

    times: Array
    elapsed: float
    others: float


def spread(values: Sequence[float]) -> float:
    """Return by which share the largest is larger than the smallest."""
    return max(values) / min(values) - 1


def _spread(slices: Sequence[Slice]) -> float:
    """Return the spread over the rounds: that of the median of a call, or of the mean, which a few slow ones move."""
    medians = [float(np.median(each.times)) for each in slices]
    means = [each.elapsed / len(each.times) for each in slices]
    return max(spread(medians), spread(means))


def _trouble(slices: Sequence[Slice], threads: int) -> str:
    """Return why so many rounds in a row do not count, or nothing."""
    room, most = machine.room(threads), max(each.others for each in slices)
    count = len(machine.cores())
    if most > room:
        return f"the machine was busy: other processes took {most:.1f} of {count} cores while it was measured"
    if (found := _spread(slices)) > MAX_SPREAD:
        medians = sorted(1000 * float(np.median(each.times)) for each in slices)
        return (
            f"the machine was busy: the rounds differ by {found:.0%} (medians from {medians[0]:.3g} to {medians[-1]:.3g} ms); "
            f"{MAX_SPREAD:.0%} is allowed"
        )
    return ""


def _windows(slices: Sequence[Slice], rounds: int) -> Iterator[Sequence[Slice]]:
    yield from (slices[start : start + rounds] for start in range(len(slices) - rounds + 1))


def refusal(slices: Sequence[Slice], threads: int, rounds: int) -> str:
    """Return why no figure can be stated of what was measured so far; nothing where `rounds` in a row agree."""
    if len(slices) < rounds:
        return f"only {len(slices)} of {rounds} rounds came to an end"
    troubles = [_trouble(window, threads) for window in _windows(slices, rounds)]
    return troubles[-1] if all(troubles) else ""


def row(name: str, *, batch: int, threads: int, slices: Sequence[Slice], failure: str, rounds: int) -> dict[str, Any]:
    """Return a row of the report. Its figures are None where there is a `reason`; `failed`: it could not run at all."""
    failure = failure if len(slices) < rounds else ""  # one that did not last is none
    reason = failure or refusal(slices, threads, rounds)
    found: dict[str, Any] = {"format": name, "batch": batch, "threads": threads}
    found |= dict.fromkeys((*_PERCENTILES, "samples_per_s", "spread", "calls"))
    if not reason:
        kept = next(window for window in _windows(slices, rounds) if not _trouble(window, threads))
        times = np.concatenate([each.times for each in kept])
        for key, (percent, needed) in _PERCENTILES.items():
            if len(times) >= needed:
                found[key] = 1000 * float(np.percentile(times, percent))
        found["samples_per_s"] = batch * len(times) / sum(each.elapsed for each in kept)
        found |= {"spread": _spread(kept), "calls": len(times)}
    return found | {"reason": reason or None, "failed": bool(failure)}


def load_ms(times: Sequence[float]) -> tuple[float | None, str]:
    """Return the median of the times to load in ms, or why there is none."""
    if not times:
        return None, ""
    if (found := spread(times)) > MAX_LOAD_SPREAD:
        return None, (
            f"the machine was busy: the times to load differ by {found:.0%} (from {min(times):.3g} to {max(times):.3g} ms); "
            f"{MAX_LOAD_SPREAD:.0%} is allowed"
        )
    return float(np.median(times)), ""
