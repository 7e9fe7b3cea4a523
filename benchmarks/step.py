"""Rows 3 and 4: our loop against the bare step, and all of its bookkeeping against none. `uv run python -m benchmarks.step`

The bare step is forward, backward and fused optimizer on one batch that never changes, in the same precision and memory
format. Ours gathers each batch, counts right answers, logs, and looks for losses that are not finite. The sides of row 3 take
turns of 50 steps within one training, so that both see the same machine. Row 4 adds MLflow (SQLite), checkpoints and progress
lines, and holds it against the same batches with nothing of the kind; over a whole epoch of MNIST, as a run's first calls to
MLflow and the checkpoint of an epoch come once, and would count three times as much in a third of it.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from torch.nn import functional as F

from benchmarks.report import Pair, Row, pairs, row, run
from benchmarks.training import build, first
from pipeline.data.loader import Batch
from pipeline.precision import autocast
from pipeline.progress import Progress, show
from pipeline.tracking import runs
from pipeline.tracking.tracker import training_run
from pipeline.train import State, Training

SAMPLES = 60_000
TURN = 50  # steps: our loop looks at its losses once in as many
TURNS = 8  # for one of `--pairs`


def _flags(given: argparse.Namespace, batch_size: int) -> dict[str, str]:
    flags = {"model": "cnn", "epochs": "1", "batch_size": str(batch_size), "cache_dir": given.cache_dir}
    flags |= {"precision": given.precision}
    flags |= {"optimizer": "adamw", "init": "random", "augment_shift": "0"}  # a common step, whatever the recipe
    return flags | ({"dataset": "mnist", "data_dir": given.data_dir} if given.data_dir else {"epochs": "42"})


def _bare(training: Training, steps: Iterable[list[Batch]]) -> None:
    training.model.train()
    for ((x, y),) in steps:
        training.optimizer.zero_grad(set_to_none=True)
        with autocast(training.config.precision, training.ranks.device):
            scores, _ = training.model(x)
        loss = F.cross_entropy(scores.float(), y, label_smoothing=training.config.label_smoothing)
        loss.backward()
        training.optimizer.step()
    loss.item()  # waits for a GPU


def turns(given: argparse.Namespace, batch_size: int) -> list[Pair]:
    """Return samples a second of our loop without tracking and of the bare step, in turn."""
    with tempfile.TemporaryDirectory() as folder:
        training = build(_flags(given, batch_size), Path(folder), keep=first(SAMPLES), saves=False)
        per_epoch, epoch = len(training.batches), 0
        steps = min(TURN, per_epoch)
        samples = min(steps * batch_size, training.batches.num_samples)  # of our side, whose last batch may be a small one
        constant = [next(training.batches.epoch(0))] * steps

        def ours() -> float:
            nonlocal epoch
            training.state = State(epoch=epoch, step=epoch * per_epoch)  # of each epoch the first steps
            training.total_steps = training.state.step + steps
            epoch += 1
            start = time.perf_counter()
            training._epoch(Progress())
            return samples / (time.perf_counter() - start)

        def bare() -> float:
            start = time.perf_counter()
            _bare(training, constant)
            return steps * batch_size / (time.perf_counter() - start)

        return pairs(ours, bare, TURNS * given.pairs)


def row_of_turns(number: int, what: str, seen: list[Pair], at_least: float) -> Row:
    """Return the line for what `turns` saw, with the standard error of the mean ratio."""
    ratios = [a / b for a, b in seen]
    note = f"mean {statistics.mean(ratios):.4f}, standard error {statistics.stdev(ratios) / len(ratios) ** 0.5:.4f}"
    return row(number, what, "samples/s", seen, lambda a, b: a / b, at_least=at_least, note=note)


def _watch(training: Training, sender: threading.Thread) -> list[tuple[float, float]]:
    """Return a list to which each coming step adds when it began, and what `sender` had computed until then (s)."""
    seen, step, clock = [], training._step, time.pthread_getcpuclockid(sender.ident or 0)

    def watched(*arguments: Any, **more: Any) -> Any:
        seen.append((time.perf_counter(), time.clock_gettime(clock)))
        return step(*arguments, **more)

    training._step = watched  # type: ignore[method-assign]
    return seen


def _share_of_sending(seen: list[tuple[float, float]]) -> float:
    """Return by how much steps during which figures were sent exceed the median of the others, as a share of the time."""
    quiet: list[float] = []
    busy: list[float] = []
    for (start, before), (end, after) in itertools.pairwise(seen):
        (busy if after - before > 1e-4 else quiet).append(end - start)
    return sum(seconds - statistics.median(quiet) for seconds in busy) / (seen[-1][0] - seen[0][0])


def everything(given: argparse.Namespace) -> tuple[list[Pair], list[float]]:
    """Return samples a second with MLflow, checkpoints and progress lines, and of the bare step on the same batches.

    With it for each training with everything on the share of its time that sending figures took.
    """
    shares: list[float] = []

    def on() -> float:
        with tempfile.TemporaryDirectory() as folder:
            training = build(_flags(given, 64), Path(folder), run_id=runs.create_run(), keep=first(SAMPLES))
            c, steps = training.config, len(training.batches)
            dataset = {"name": "x", "digest": "0" * 36, "source": "x"}
            with (
                training_run(training.run, {}, dataset=dataset) as training.tracker,
                redirect_stdout(io.StringIO()),
                show(epochs=c.epochs, steps_per_epoch=steps, first_step=0, is_main=True) as progress,
            ):
                steps_seen = _watch(training, training.tracker._sender._thread)
                start = time.perf_counter()
                training.fit(progress)
                seconds = time.perf_counter() - start
                shares.append(_share_of_sending(steps_seen))
                return c.epochs * training.batches.num_samples / seconds

    def off() -> float:
        with tempfile.TemporaryDirectory() as folder:
            training = build(_flags(given, 64), Path(folder), keep=first(SAMPLES), saves=False)
            epochs = training.config.epochs
            start = time.perf_counter()
            for epoch in range(epochs):
                _bare(training, training.batches.epoch(epoch))
            return epochs * training.batches.num_samples / (time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as base:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{base}/mlflow.db"
        runs.configure()
        return pairs(on, off, given.pairs), shares


def measure(given: argparse.Namespace) -> list[Row]:
    what = f"our loop and the bare step, {given.precision}, batch"
    rows = [row_of_turns(3, f"{what} {n}", turns(given, n), 0.97) for n in (64, 256)]
    seen, shares = everything(given)
    note = f"steps that coincide with sending are slower; that is {100 * statistics.median(shares):.1f} % of the time"
    what = f"everything on, and all off, {given.precision}, batch 64"
    return [*rows, row(4, what, "samples/s", seen, lambda a, b: b / a, at_most=1.03, note=note)]


if __name__ == "__main__":
    run(measure, __doc__)
