"""Row 13: images decoded for `prepare` against plain Pillow, and memory against their number. `python -m benchmarks.decode`

JPEGs of about 500x375, generated, to squares of 224, in turns of 250. Plain Pillow is `open`, `convert`, `resize` on all cores,
first in a process for each core, then in threads, without keeping the pixels; ours writes them into a file, and looks whether
an image was changed. Memory is what a process of its own has for itself (`RssAnon`) at the most while it looks at a
folder and decodes all of it. `ru_maxrss` would not do: it counts the pages of the file that is filled, which may be dropped at
any time, and a child begins with that of its parent.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.report import Row, pairs, row, run
from pipeline.data import tensors
from pipeline.data.folder import source
from pipeline.data.spec import DataOptions, Samples

COUNT, MANY = 1_000, 5_000
TURN = 250  # images: both sides then see the same machine
SIDE = 224
CORES = len(os.sched_getaffinity(0))
BLOCK = 16


def _write(folder: Path, count: int, *, classes: str = "ab", seed: int = 0) -> None:
    """Write JPEGs of a class for each letter, of smooth and of fine structure, of 480 to 520 by 360 to 390 pixels."""
    generator = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
    for number in range(count):
        width, height = int(generator.integers(480, 521)), int(generator.integers(360, 391))
        coarse = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noise = generator.normal(0, 12, (height, width, 1))
        pixels = np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / classes[number % len(classes)] / f"{number:05d}.jpg", quality=85)


def _samples(folder: Path) -> Samples:
    return source(folder, DataOptions(image_size=SIDE)).load(data_dir=folder, seed=0)


def _fill(folder: Path, samples: Samples, count: int) -> None:
    """Decode the first images into a new file, as `prepare` does."""
    path, shape = folder.parent / "pixels.npy", samples.x.shape[1:]
    assert not isinstance(samples.x, np.ndarray)
    first = tensors.allocate(path, (count, *shape))
    with path.open("r+b", buffering=0) as file:
        samples.x.fill(tensors.FileRows(file.fileno(), first, math.prod(shape)), np.arange(count))
    path.unlink()


def _plain(files: Sequence[Path]) -> int:
    for file in files:
        with Image.open(file) as image:
            image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    return len(files)


def _rate(work: Callable[[], object], busy: list[float]) -> float:
    """Return images a second, and add to `busy` the processor's seconds of this process."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    busy.append(time.process_time() - cpu)
    return TURN / (time.perf_counter() - start)


def _memory(folder: Path) -> None:
    """Decode a folder, and print the most private memory seen, in MB."""
    largest, done = 0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while not done.wait(0.01):
            largest = max(largest, int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]))

    watcher = threading.Thread(target=watch)
    watcher.start()
    samples = _samples(folder)
    _fill(folder, samples, len(samples.x))
    done.set()
    watcher.join()
    print(largest / 1024)


def _memory_of(folder: Path) -> float:
    words = [sys.executable, "-m", "benchmarks.decode", "memory", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=600)
    return float(done.stdout.splitlines()[-1])


def measure(given: argparse.Namespace) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as base:
        few, many = Path(base) / f"{COUNT}", Path(base) / f"{MANY}"
        _write(few, COUNT)
        _write(many, MANY)
        files = sorted(few.glob("*/*.jpg"))
        samples, blocks = _samples(few), [files[i : min(i + BLOCK, TURN)] for i in range(0, TURN, BLOCK)]

        def against(pool: Executor, what: str) -> Row:
            mine: list[float] = []
            theirs: list[float] = []
            seen = pairs(
                lambda: _rate(lambda: _fill(few, samples, TURN), mine),
                lambda: _rate(lambda: sum(pool.map(_plain, blocks)), theirs),
                COUNT // TURN * given.pairs,
            )
            times = [statistics.median(busy) / TURN * 1e3 for busy in (mine, theirs)]
            note = f"{times[0]:.2f} ms of the processor for an image" + (f", and {times[1]:.2f}" if what == "threads" else "")
            what = f"decoding, and plain Pillow in {what}"
            return row(13, what, "images/s", seen, lambda a, b: a / b, at_least=0.9, note=note)

        with ProcessPoolExecutor(CORES, multiprocessing.get_context("spawn")) as processes:
            rows.append(against(processes, "processes"))
        with ThreadPoolExecutor(CORES) as threads:
            rows.append(against(threads, "threads"))
        seen = pairs(lambda: _memory_of(many), lambda: _memory_of(few), min(2, given.pairs), warm_up=False)
        note = f"{(seen[0][0] - seen[0][1]) / (MANY - COUNT) * 1e3:.1f} kB more for each image: names, times, headers, hashes"
        what = f"private memory, {MANY} images and {COUNT}"
        rows.append(row(13, what, "MB", seen, lambda a, b: a / b, at_most=1.25, note=note))
    return rows


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        _memory(Path(sys.argv[2]))
    else:
        run(measure, __doc__)
