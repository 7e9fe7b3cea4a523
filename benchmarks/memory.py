"""Row 10: private memory of a training against the size of its data. `uv run python -m benchmarks.memory`

Synthetic uint8 images of 0.05, 0.5 and 5 GB are laid out as prepared tensors; a process of its own trains 300 steps on each and
reads its anonymous resident memory (`RssAnon`), which leaves out pages of files that the system may drop at any time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np

from benchmarks.report import Row, run

SIZES = (0.05, 0.5, 5.0)  # GB


def _train(data: str, cache_dir: str, folder: str) -> None:
    """Train 300 steps on the images in `data`, and print the most private memory seen, in MB."""
    import torch

    from benchmarks.training import build
    from pipeline.data.loader import Batches, Split

    training = build({"model": "cnn", "cache_dir": cache_dir}, Path(folder), saves=False)
    x, y = (torch.from_numpy(np.load(f"{data}/{name}.npy", mmap_mode="c")) for name in "xy")
    cpu = torch.device("cpu")
    batches = Batches(Split(x, y), batch_size=64, grad_accum_steps=1, seed=0, rank=0, world_size=1, device=cpu)
    largest = 0
    for step, parts in enumerate(islice(batches.epoch(0), 300)):
        training._step(parts, 64)
        if step % 50 == 49:
            status = Path("/proc/self/status").read_text()
            largest = max(largest, int(status.partition("RssAnon:")[2].split()[0]))
    print(largest / 1024)


def _write(folder: Path, gigabytes: float) -> None:
    """Write random images (N, 1, 28, 28) and labels, a block at a time."""
    count = int(gigabytes * 1e9 / 784)
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.uint8, (count, 1, 28, 28))
    y = np.lib.format.open_memmap(folder / "y.npy", "w+", np.int64, (count,))
    generator = np.random.default_rng(0)
    for start in range(0, count, 100_000):
        block = x[start : start + 100_000]
        block[:] = generator.integers(0, 256, block.shape, dtype=np.uint8)
        y[start : start + 100_000] = generator.integers(0, 10, len(block))


def measure(given: argparse.Namespace) -> list[Row]:
    seen: dict[float, list[float]] = {size: [] for size in SIZES}
    with tempfile.TemporaryDirectory() as base:
        for size in SIZES:
            folder = Path(base) / f"{size}"
            folder.mkdir()
            _write(folder, size)
            for number in range(given.pairs):
                place = f"{base}/{number}-{size}"
                words = [sys.executable, "-m", "benchmarks.memory", "train", str(folder), given.cache_dir, place]
                done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=600)
                seen[size].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"{size} GB: {seen[size]} MB", flush=True)
            shutil.rmtree(folder)
    small, *larger = SIZES
    return [
        Row(10, f"private memory, {size} GB of data and {small} GB", "MB", seen[size], seen[small],
            [a / b for a, b in zip(seen[size], seen[small], strict=True)], at_most=1.05)
        for size in larger
    ]  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        _train(*sys.argv[2:])
    else:
        run(measure, __doc__)
