"""Rows 3 and 4: our loop against the bare step, and all of its bookkeeping against none. `uv run python -m benchmarks.step`

The bare step is forward, backward and fused optimiser on one batch that never changes, in the same precision and memory format.
Ours gathers each batch, counts right answers, logs, and looks for losses that are not finite. Row 4 adds MLflow (SQLite),
checkpoints, progress lines, and holds it against the same batches with nothing of the kind.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

from torch.nn import functional as F

from benchmarks.report import Row, pairs, row, run
from benchmarks.training import build, first
from pipeline.progress import Progress, show
from pipeline.tracking import runs
from pipeline.tracking.tracker import training_run
from pipeline.train import Training

SAMPLES = 19_200


def _flags(given: argparse.Namespace, batch_size: int) -> dict[str, str]:
    flags = {"model": "cnn", "epochs": "1", "batch_size": str(batch_size), "cache_dir": given.cache_dir}
    flags |= {"optimizer": "adamw", "init": "random", "augment_shift": "0"}  # a common step, whatever the recipe
    return flags | ({"dataset": "mnist", "data_dir": given.data_dir} if given.data_dir else {"epochs": "13"})


def _bare(training: Training, *, constant: bool) -> float:
    """Return samples a second of the step alone, over as many samples: on one batch, or on those of the epochs."""
    size, total = training.config.batch_size, training.config.epochs * training.batches.num_samples
    only = [next(training.batches.epoch(0))] * (total // size)
    training.model.train()
    start = time.perf_counter()
    for epoch in range(1 if constant else training.config.epochs):
        for ((x, y),) in only if constant else training.batches.epoch(epoch):
            training.optimizer.zero_grad(set_to_none=True)
            with training.autocast():
                scores, _ = training.model(x)
            loss = F.cross_entropy(scores.float(), y, label_smoothing=training.config.label_smoothing)
            loss.backward()
            training.optimizer.step()
    loss.item()  # waits for a GPU
    return (total // size * size if constant else total) / (time.perf_counter() - start)


def _ours(training: Training, progress: Progress | None = None) -> float:
    start = time.perf_counter()
    training.fit(progress or Progress())
    return training.config.epochs * training.batches.num_samples / (time.perf_counter() - start)


def sides(given: argparse.Namespace, batch_size: int, *, constant: bool = True) -> tuple[Callable[[], float], ...]:
    """Return two functions that train anew and give samples a second: our loop without tracking, and the bare step."""

    def new(folder: str) -> Training:
        return build(_flags(given, batch_size), Path(folder), keep=first(SAMPLES), saves=False)

    def ours() -> float:
        with tempfile.TemporaryDirectory() as folder:
            return _ours(new(folder))

    def bare() -> float:
        with tempfile.TemporaryDirectory() as folder:
            return _bare(new(folder), constant=constant)

    return ours, bare


def _everything(flags: dict[str, str]) -> float:
    """Return samples a second with MLflow, checkpoints and progress lines."""
    with tempfile.TemporaryDirectory() as folder:
        training = build(flags, Path(folder), run_id=runs.begin(), keep=first(SAMPLES))
        dataset = {"name": "x", "digest": "0" * 36, "source": "x"}
        with training_run(training.run, {}, dataset=dataset) as training.tracker, redirect_stdout(io.StringIO()):
            c, steps = training.config, len(training.batches)
            with show(epochs=c.epochs, steps_per_epoch=steps, first_step=0, is_main=True) as progress:
                return _ours(training, progress)


def measure(given: argparse.Namespace) -> list[Row]:
    rows = []
    for size in (64, 256):
        loop, bare = sides(given, size)
        seen = pairs(loop, bare, given.pairs)
        what = f"our loop and the bare step, batch {size}"
        rows.append(row(3, what, "samples/s", seen, lambda a, b: a / b, at_least=0.97))
    with tempfile.TemporaryDirectory() as base:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{base}/mlflow.db"
        runs.configure()
        bare = sides(given, 64, constant=False)[1]
        seen = pairs(lambda: _everything(_flags(given, 64)), bare, given.pairs)
    return [*rows, row(4, "everything on, and all off, batch 64", "samples/s", seen, lambda a, b: b / a, at_most=1.03)]


if __name__ == "__main__":
    run(measure, __doc__)
