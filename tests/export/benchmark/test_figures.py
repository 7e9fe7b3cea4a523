"""Which figures are stated: those of rounds that agree, on cores that nobody else had."""

from __future__ import annotations

import numpy as np
import pytest

from export.benchmark import figures, machine
from export.benchmark.figures import Slice


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: [0, 1])


def _slice(ms: float, *, calls: int = 200, others: float = 0.0) -> Slice:
    return Slice(np.full(calls, ms / 1000), calls * ms / 1000, others)


def _row(slices: list[Slice], *, threads: int = 1, failure: str = "") -> dict[str, object]:
    return figures.row("onnx", batch=4, threads=threads, slices=slices, failure=failure, rounds=3)


def test_rounds_that_agree_are_stated_over_all_their_calls() -> None:
    times = np.concatenate([np.full(95, 0.001), np.full(5, 0.002)])
    row = _row([Slice(times, float(times.sum()), 0.0)] * 3)
    assert row["reason"] is None and row["failed"] is False and row["calls"] == 300
    assert (row["p50_ms"], row["p99_ms"]) == (pytest.approx(1.0), pytest.approx(2.0))
    assert row["samples_per_s"] == pytest.approx(4 * 300 / (3 * times.sum()))


def test_a_machine_on_which_the_rounds_differ_has_no_figure_and_the_reason_says_by_how_much() -> None:
    row = _row([_slice(0.3), _slice(79.9), _slice(0.31)])
    assert [row[key] for key in ("p50_ms", "p95_ms", "p99_ms", "samples_per_s", "spread")] == [None] * 5
    assert "the rounds differ by" in str(row["reason"]) and "from 0.3 to 79.9 ms" in str(row["reason"])
    assert row["failed"] is False


def test_a_few_slow_calls_that_leave_the_median_alone_are_found_by_the_mean() -> None:
    slow = np.concatenate([np.full(190, 0.001), np.full(10, 0.05)])
    assert "differ by 245%" in str(_row([_slice(1), Slice(slow, float(slow.sum()), 0.0), _slice(1)])["reason"])


@pytest.mark.parametrize(
    ("threads", "others", "stated"), [(1, 1.1, True), (1, 1.3, False), (2, 0.1, True), (2, 0.3, False), (2, 2.0, False)]
)
def test_others_may_have_the_cores_that_a_call_leaves_and_no_more(threads: int, others: float, stated: bool) -> None:
    """Slowed in each round alike, the rounds agree: that they do proves nothing."""
    row = _row([_slice(80), _slice(80, others=others), _slice(80)], threads=threads)
    assert (row["p50_ms"] is not None) == stated
    assert stated or f"other processes took {others:.1f} of 2 cores" in str(row["reason"])


def test_what_was_disturbed_counts_once_as_many_rounds_in_a_row_agree() -> None:
    slices = [_slice(1), _slice(9), _slice(1)]
    assert figures.refusal(slices, 1, 3) and figures.refusal([*slices, _slice(1.1)], 1, 3)
    assert figures.refusal([*slices, _slice(1.1), _slice(1.2)], 1, 3) == ""
    row = _row([*slices, _slice(1.1), _slice(1.2)])
    assert row["p50_ms"] == pytest.approx(1.1) and row["calls"] == 600


def test_a_percentile_needs_enough_calls() -> None:
    few, some = _row([_slice(1, calls=6)] * 3), _row([_slice(1, calls=7)] * 3)
    assert few["p50_ms"] and few["p95_ms"] is None and some["p95_ms"] and some["p99_ms"] is None


def test_what_cannot_run_has_its_own_reason_and_one_that_lasted_not() -> None:
    row = _row([], failure="RuntimeError: no compiler")
    assert row["failed"] is True and row["reason"] == "RuntimeError: no compiler"
    row = _row([_slice(1)] * 3, failure="it did not finish within 600 s")
    assert row["failed"] is False and row["p50_ms"] == pytest.approx(1)


def test_times_to_load_that_differ_are_not_stated() -> None:
    assert figures.load_ms([10.0, 11.0, 14.0]) == (11.0, "") and figures.load_ms([]) == (None, "")
    stated, reason = figures.load_ms([10.0, 16.0])
    assert stated is None and "differ by 60%" in reason
