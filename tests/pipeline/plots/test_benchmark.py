"""The picture of a benchmark: each stated row once on both sides, and how many are not stated."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.plots.benchmark import latency_and_throughput


def _row(name: str, batch: int, threads: int, ms: float | None) -> dict[str, Any]:
    tail = None if ms is None else 2 * ms
    rate = None if ms is None else 1000 * batch / ms
    return {
        "format": name,
        "batch": batch,
        "threads": threads,
        "p50_ms": ms,
        "p95_ms": ms,
        "p99_ms": tail,
        "samples_per_s": rate,
    }


def test_each_stated_row_is_a_point_on_both_sides_with_a_line_to_its_tail() -> None:
    rows = [_row("torch", 1, 1, 0.5), _row("torch", 32, 1, 5.0), _row("onnx", 1, 1, 0.1), _row("onnx", 32, 2, None)]
    figure = latency_and_throughput({"rows": rows, "machine": {"processor": "A processor"}})
    left, right = figure.axes
    points = [float(np.asarray(line.get_xdata())[0]) for line in left.lines if len(np.asarray(line.get_xdata())) == 1]
    tails = [np.asarray(line.get_xdata()).tolist() for line in left.lines if len(np.asarray(line.get_xdata())) == 2]
    assert points == [0.5, 5.0, 0.1] and tails == [[0.5, 1.0], [5.0, 10.0], [0.1, 0.2]]
    assert [float(np.asarray(line.get_xdata())[0]) for line in right.lines] == [2000.0, 6400.0, 10_000.0]
    assert [label.get_text() for label in left.get_yticklabels()] == ["torch", "onnx"]
    assert "1 of 4 rows are not stated" in figure.get_suptitle()
    assert left.get_xscale() == right.get_xscale() == "log"


def test_a_picture_of_nothing_says_so() -> None:
    figure = latency_and_throughput({"rows": [_row("torch", 1, 1, None)], "machine": {"processor": "x"}})
    assert "Nothing is stated" in figure.texts[0].get_text()
