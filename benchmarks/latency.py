"""Row 11: one image through the exported CNN with onnxruntime, and through torch. `uv run python -m benchmarks.latency`"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch

from benchmarks.report import Row, pairs, row, run
from benchmarks.training import build
from export.formats import onnx as onnx_format
from export.formats import pt2
from export.module import ExportModule, example_input


def _milliseconds(call: Callable[[], object], count: int = 500) -> float:
    """Return the median time of a call."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1000 * sorted(times)[count // 2]


def measure(given: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory() as base:
        training = build({"model": "cnn", "cache_dir": given.cache_dir}, Path(base) / "run", saves=False)
        model = ExportModule(training.model, task=training.run.task).eval().requires_grad_(False)
        program = pt2.capture(model, example_input(training.run))
        exported = onnx_format.build(program, {}, outputs=training.run.task.outputs)
        session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
        x = training.val.x[:1].clone()
        fed = {"input": x.numpy()}
        with torch.inference_mode():
            seen = pairs(
                lambda: _milliseconds(lambda: session.run(None, fed)), lambda: _milliseconds(lambda: model(x)), given.pairs
            )
    return [row(11, "one image, onnxruntime and torch eager", "ms", seen, lambda a, b: b / a, at_least=4.0)]


if __name__ == "__main__":
    run(measure, __doc__)
