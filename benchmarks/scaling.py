"""Rows 5 and 6: two processes against one. `OMP_NUM_THREADS` is set for each side. `uv run python -m benchmarks.scaling`

Each measurement is a job of its own, started as the command starts it: plain DDP over gloo, S4's network, global batch 256.
A job trains four times and counts the fastest of the last three.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.report import Row, pairs, row, run

SAMPLES = 12_800


def _worker(cache_dir: str, data_dir: str, folder: str) -> None:
    """Train on this rank; rank 0 prints samples a second."""
    import time

    from benchmarks.training import build, first
    from pipeline import distributed
    from pipeline.progress import Progress

    flags = {"model": "cnn", "batch_size": "256", "epochs": "1", "cache_dir": cache_dir, "lr": "0.001"}
    flags |= {"dataset": "mnist", "data_dir": data_dir} if data_dir else {"epochs": "9"}
    speeds = []
    with distributed.process_group("cpu") as ranks:
        for number in range(4):
            place = Path(folder) / f"{ranks.rank}-{number}"
            training = build(flags, place, keep=first(SAMPLES), saves=False, ranks=ranks)
            start = time.perf_counter()
            training.fit(Progress())
            speeds.append(training.config.epochs * training.batches.num_samples / (time.perf_counter() - start))
        if ranks.is_main:
            print(f"\nspeed {max(speeds[1:])}", flush=True)


LAUNCH = "import sys; from pipeline.distributed import launch; sys.exit(launch(sys.argv[2:], int(sys.argv[1])))"


def _speed(given: argparse.Namespace, processes: int, threads: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        job = ["benchmarks.scaling", "worker", given.cache_dir, given.data_dir, folder]
        start = ["-c", LAUNCH, str(processes)] if processes > 1 else ["-m"]
        done = subprocess.run(
            [sys.executable, *start, *job], capture_output=True, text=True, timeout=400, check=False,
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
        found = re.search(r"speed ([\d.]+)", done.stdout)
        assert found, done.stdout + done.stderr
        return float(found[1])


def measure(given: argparse.Namespace) -> list[Row]:
    rows = []
    for number, threads, target in ((5, 1, 1.85), (6, 2, 1.0)):
        seen = pairs(
            lambda: _speed(given, 2, 1), lambda t=threads: _speed(given, 1, t), given.pairs, warm_up=False  # type: ignore[misc]
        )  # fmt: skip
        what = f"2 processes x 1 thread and 1 x {threads}"
        rows.append(row(number, what, "samples/s", seen, lambda a, b: a / b, at_least=target))
    return rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        _worker(*sys.argv[2:])
    else:
        run(measure, __doc__)
