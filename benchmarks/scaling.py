"""Rows 5, 6 and 20: two processes against one. `OMP_NUM_THREADS` is set for each side. `uv run python -m benchmarks.scaling`

Two more sides show what the two cores give at most: two processes that train half the batch each and never talk, and two that
only wait for each other in each step, with the sum of a single number, and exchange no gradients.

Each measurement is a job of its own, started as the command starts it: plain DDP over gloo, S4's network, global batch 256.
A job trains four times and counts the fastest of the last three. Row 20 is one network (`benchmarks/nets.py`) without batch
normalization and with it, whose running statistics two ranks bring together.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import nets
from benchmarks.report import Row, pairs, row, run

SAMPLES = 12_800


def _worker(
    cache_dir: str, data_dir: str, folder: str, precision: str, batch_size: str, samples: str, way: str, *model: str
) -> None:
    """Train on this rank, or alone; rank 0 prints samples a second."""
    import time

    import torch

    from benchmarks.training import build, first
    from pipeline import distributed
    from pipeline.progress import Progress

    def meet(*_: object) -> None:
        distributed.all_reduce_sum(torch.zeros(1))

    flags = {"model": "cnn", "batch_size": batch_size, "epochs": "1", "cache_dir": cache_dir, "lr": "0.001"}
    flags |= {"optimizer": "adamw", "init": "random", "augment_shift": "0"}  # a common step, whatever the recipe
    flags |= {"precision": precision} | dict(zip(("model", "model_args"), model, strict=False))
    flags |= {"dataset": "mnist", "data_dir": data_dir} if data_dir else {"epochs": "9"}
    speeds = []
    with distributed.process_group("cpu") as ranks:
        for number in range(4):
            place = Path(folder) / f"{ranks.rank}-{number}"
            training = build(flags, place, keep=first(int(samples)), saves=False, ranks=ranks)
            if way == "meet":
                training.ddp_model = training.model  # instead of DistributedDataParallel
                training.optimizer.register_step_pre_hook(meet)
            start = time.perf_counter()
            training.fit(Progress())
            speeds.append(training.config.epochs * training.batches.num_samples / (time.perf_counter() - start))
        if ranks.is_main:
            print(f"\nspeed {max(speeds[1:])}", flush=True)


LAUNCH = "import sys; from pipeline.distributed import launch; sys.exit(launch(sys.argv[2:], int(sys.argv[1])))"


def _speed(
    given: argparse.Namespace,
    processes: int,
    threads: int,
    *,
    alone: int = 0,
    way: str = "ddp",
    model: Sequence[str] = ("cnn",),
) -> float:
    """Return samples a second of a job, or the sum over `alone` jobs that run at the same time and share its work.

    With `way` "meet" its processes only wait for each other.
    """
    with tempfile.TemporaryDirectory() as base:
        jobs = []
        for number in range(alone or 1):
            place = Path(base) / f"{number}"
            place.mkdir()
            work = [str(total // (alone or 1)) for total in (256, SAMPLES)]
            job = [
                "benchmarks.scaling",
                "worker",
                given.cache_dir,
                given.data_dir,
                str(place),
                given.precision,
                *work,
                way,
                *model,
            ]
            start = ["-c", LAUNCH, str(processes)] if processes > 1 else ["-m"]
            environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
            jobs.append(subprocess.Popen([sys.executable, *start, *job], text=True, env=environment, **pipes))  # type: ignore[call-overload]
        total = 0.0
        for process in jobs:
            output = process.communicate(timeout=400)[0]
            found = re.search(r"speed ([\d.]+)", output)
            assert found, output
            total += float(found[1])
        return total


def measure(given: argparse.Namespace) -> list[Row]:
    rows, limits = [], []

    def both() -> float:
        limits.append((_speed(given, 1, 1, alone=2), _speed(given, 2, 1, way="meet")))
        return _speed(given, 2, 1)

    for number, threads, target in ((5, 1, 1.85), (6, 2, 1.0)):
        limits.clear()
        seen = pairs(both, lambda t=threads: _speed(given, 1, t), given.pairs, warm_up=False)  # type: ignore[misc]
        what = f"2 processes x 1 thread and 1 x {threads}, {given.precision}"
        most = [statistics.median(limit[k] / single for limit, (_, single) in zip(limits, seen, strict=True)) for k in (0, 1)]
        note = f"two that never talk: {most[0]:.2f}; that only wait for each other: {most[1]:.2f}"
        rows.append(row(number, what, "samples/s", seen, lambda a, b: a / b, at_least=target, note=note))
    for norm in ("false", "true"):
        net = (f"{Path(nets.__file__)}:Net", f"norm={norm}")
        seen = pairs(
            lambda net=net: _speed(given, 2, 1, model=net),  # type: ignore[misc]
            lambda net=net: _speed(given, 1, 1, model=net),  # type: ignore[misc]
            given.pairs,
            warm_up=False,
        )
        what = f"2 processes x 1 thread and 1 x 1, {'with' if norm == 'true' else 'without'} BatchNorm, {given.precision}"
        rows.append(row(20, what, "samples/s", seen, lambda a, b: a / b))
    return rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        _worker(*sys.argv[2:])
    else:
        run(measure, __doc__)
