"""Row 12, on a GPU: time to 99.0 % on MNIST, speed of a step in each precision and way, and the share that is no kernel.

`python -m benchmarks.gpu --data_dir DIR`. Ends with 1 where there is no GPU. Clocks stop after a value is read, or after
`synchronize`. Beside ours: the bare step (fused AdamW on a batch that never changes), and Lightning with a
DataLoader.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import accuracy, peers, step
from benchmarks.report import Pair, Row, pairs, row, run
from benchmarks.training import build, first
from pipeline.progress import Progress
from pipeline.train import State, Training

RECORD = 0.76  # s, on a laptop GPU
SEEDS = 10
STEPS = 200


def _synchronized(call: Callable[[], Any]) -> float:
    """Return the seconds that a call and all the work it gave the GPU take."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def reaches(given: argparse.Namespace, precision: str) -> Row:
    """Return the line for the time to 99.0 % over ten seeds; the first training, which is cold, is told apart."""
    options = (given.data_dir, given.cache_dir)
    (cold, _), *reached = [accuracy.ours(*options, seed, precision) for seed in (99, *range(SEEDS))]
    times = [seconds for seconds, _ in reached]
    low, high = (f(a for _, a in reached) for f in (min, max))
    note = f"test accuracy {low:.4f} to {high:.4f}; with the warm-up {cold:.3g} s"
    return Row(12, f"time to 99.0 % on a GPU, {precision}", "s", times, [], times, at_most=RECORD, note=note)


def _training(given: argparse.Namespace, batch_size: int, folder: str, **flags: str) -> Training:
    return build(step._flags(given, batch_size) | flags, Path(folder) / "run", keep=first(step.SAMPLES), saves=False)


def speed(given: argparse.Namespace, batch_size: int, **flags: str) -> Row:
    """Return the line for our loop in one way of computing, against the bare step of the same precision without a graph."""
    with tempfile.TemporaryDirectory() as folder:
        training = _training(given, batch_size, folder, **flags)
        per_epoch, epoch = len(training.batches), 0
        steps = min(STEPS, per_epoch)
        constant = [next(training.batches.epoch(0))] * steps

        def one() -> None:
            nonlocal epoch
            training.state = State(epoch=epoch, step=epoch * per_epoch)
            training.total_steps = training.state.step + steps
            epoch += 1
            training._epoch(Progress())

        def ours() -> float:
            return steps * batch_size / _synchronized(one)

        def bare() -> float:
            return steps * batch_size / _synchronized(lambda: step._bare(training, constant))

        one()
        seen: list[Pair] = pairs(ours, bare, given.pairs)
        kernels = _kernel_seconds(one) / steps
        wall = statistics.median(batch_size / a for a, _ in seen)
        note = f"a step {1e3 * wall:.3g} ms, its kernels {1e3 * kernels:.3g}: {100 * (1 - kernels / wall):.0f} % is no kernel"
        what = " ".join(f"{name}={value}" for name, value in flags.items())
        return row(12, f"batch {batch_size} {what}, and the bare step", "samples/s", seen, lambda a, b: a / b, at_least=0.97,
                   note=note)  # fmt: skip


def _kernel_seconds(call: Callable[[], Any]) -> float:
    """Return the seconds in which kernels and copies of a call ran on the GPU."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        _synchronized(call)
    return sum(event.device_time for event in seen.events() or [] if event.device_type == torch.autograd.DeviceType.CUDA) / 1e6


def measure(given: argparse.Namespace) -> list[Row]:
    if not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device here, so row 12 cannot be measured.")
    print(torch.cuda.get_device_name(), flush=True)
    rows = []

    def add(each: Row) -> None:
        rows.append(each)
        print(f"  {each.what}: {statistics.median(each.ours):.6g} {each.unit}, ratio {each.ratio:.3g}; {each.note}", flush=True)

    for precision in ("fp32", "bf16", "fp16"):
        add(reaches(given, precision))
        for batch_size in (64, 256, 1024):
            add(speed(given, batch_size, precision=precision))
        add(speed(given, 256, precision=precision, cuda_graph="false"))
    add(speed(given, 1024, precision="bf16", augment_shift="2", augment_affine="0.2"))
    add(speed(given, 1024, precision="bf16", compile="true"))
    mine = [peers.ours(given.data_dir, given.cache_dir, 64, "bf16") for _ in range(given.pairs)]
    theirs = [peers.lightning(given.data_dir, 64, "bf16") for _ in range(2)]
    add(row(12, "Lightning, batch 64, bf16", "samples/s", [(a, theirs[-1]) for a in mine], lambda a, b: a / b, at_least=3))
    return rows


if __name__ == "__main__":
    run(measure, __doc__)
