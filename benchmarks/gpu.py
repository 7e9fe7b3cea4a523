"""Row 12: on a GPU, time to 99.0 % on MNIST, and our loop against the bare step at batch 1024. Ends with 1 where there is none.

`uv run python -m benchmarks.gpu --data_dir DIR`. Both clocks stop after a value is read, which waits for the GPU.
"""

from __future__ import annotations

import argparse
import sys

import torch

from benchmarks import accuracy, step
from benchmarks.report import Row, run

RECORD = 0.76  # s, on a laptop GPU


def measure(given: argparse.Namespace) -> list[Row]:
    if not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device here, so row 12 cannot be measured.")
    options = (given.data_dir, given.cache_dir)
    (cold, _), *reached = [accuracy.ours(*options, seed, given.precision) for seed in range(given.pairs + 1)]
    assert min(a for _, a in reached) >= accuracy.GOAL, f"not every seed reached {accuracy.GOAL}: {reached}"
    times = [seconds for seconds, _ in reached]
    note = f"test accuracy {min(a for _, a in reached):.4f} to {max(a for _, a in reached):.4f}; with the warm-up {cold:.3g} s"
    rows = [Row(12, "time to 99.0 % on the test set, on a GPU", "s", times, [], times, at_most=RECORD, note=note)]
    seen = step.turns(given, 1024)
    return [*rows, step.row_of_turns(12, "our loop and the bare step, batch 1024, on a GPU", seen, 0.95)]


if __name__ == "__main__":
    run(measure, __doc__)
