"""Row 23: batches and trainings from shards. `python -m benchmarks.shards`, which needs moto[server] of the development group.

The data are uint8 images 3 x 64 x 64, drawn, `--images` of them. "batches" is a pass over an epoch in batches of 256, with
nothing done with them: from one shard, from shards of 16 MB, and from the tensors of the same samples. "epoch" is one of the
`cnn` at 28 pixels, from a bucket (a server on loopback that shares the cores), and from the same shards on the disk: the first,
in which all is fetched, and the second.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Row, pairs, row, run

BATCH = 256


@contextmanager
def _bucket(folder: Path) -> Iterator[None]:
    """Run an S3 server on loopback with an empty bucket, to which the environment leads."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (folder / "server.log").open("w") as log, subprocess.Popen(words, stdout=log, stderr=log) as server:
        try:
            os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_EC2_METADATA_DISABLED": "true"}
            os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
            for _ in range(600):
                with socket.socket() as probe:
                    if not probe.connect_ex(("127.0.0.1", port)):
                        break
                time.sleep(0.1)
            import boto3

            boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1").create_bucket(Bucket="bucket")
            yield
        finally:
            server.kill()


def _write(config: Any, place: str, size: int) -> str:
    from pipeline.data.shards.places import Place
    from pipeline.data.shards.write import write

    if "://" not in place:
        Path(place).mkdir()
    write(config, Place(place), num_bytes=size)
    return place


def _pass(dataset: str, cache: Path, *, window: int = 0, side: int = 64) -> float:
    """Return the images a second of a pass over an epoch."""
    import torch

    from pipeline.data.loader import Batches, open_split
    from pipeline.data.prepare import prepare
    from pipeline.resolve import resolve

    config = resolve({"model": "torchvision:resnet18", "dataset": dataset, "image_size": str(side), "cache_dir": str(cache)})
    split = open_split(prepare(config), "train")
    batches = Batches(split, batch_size=BATCH, grad_accum_steps=1, seed=0, rank=0, world_size=1, device=torch.device("cpu"),
                      window=window)  # fmt: skip
    for _ in batches.epoch(0):
        pass
    start = time.perf_counter()
    for epoch in (1, 2, 3):
        for _ in batches.epoch(epoch):
            pass
    return 3 * len(split) / (time.perf_counter() - start)


def _epochs(dataset: str, cache: Path) -> tuple[float, float]:
    """Return the seconds of the first and the second epoch of a training on what is not in the cache yet."""
    from pipeline.progress import Progress
    from pipeline.resolve import resolve
    from tests.trainings import begin

    with tempfile.TemporaryDirectory(dir=cache.parent) as own:
        config = resolve({"model": "cnn", "dataset": dataset, "cache_dir": f"{own}/cache", "precision": "fp32", "epochs": "2",
                          "batch_size": str(BATCH), "num_workers": "0"})  # fmt: skip
        training = begin(config, Path(own) / "run")
        ends = [time.perf_counter()]

        def noted(found: Any) -> bool:
            ends.append(time.perf_counter())
            return False

        training.fit(Progress(), noted)
        return ends[1] - ends[0], ends[2] - ends[1]


def measure(given: Any) -> list[Row]:
    from pipeline.resolve import resolve

    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder, cache = Path(name), Path(name) / "cache"
        rng = np.random.default_rng(0)
        np.savez(folder / "x.npz", x=rng.integers(0, 256, (given.images, 3, 64, 64), np.uint8), y=np.arange(given.images) % 10)
        flags = {"model": "torchvision:resnet18", "dataset": str(folder / "x.npz"), "image_size": "64", "cache_dir": str(cache)}
        one = _write(resolve(flags), f"{name}/one", 10**12)
        many = _write(resolve(flags), f"{name}/many", 16 * 10**6)
        tensors = str(folder / "x.npz")
        for what, place, window, least in (("one shard", one, 0, 0.97), ("shards of 16 MB", many, 0, 0.0),
                                           ("the same, in windows of 4096", many, 4096, 0.0)):  # fmt: skip
            seen = pairs(partial(_pass, place, cache, window=window), partial(_pass, tensors, cache), given.pairs)
            rows.append(row(23, f"batches from {what}, and from tensors", "images/s", seen, lambda a, b: a / b, at_least=least))
        with _bucket(folder):
            small = resolve(flags | {"model": "cnn", "image_size": "28"})
            disk, bucket = _write(small, f"{name}/disk", 10**6), _write(small, "s3://bucket/x", 10**6)
            turns = [(_epochs(bucket, cache), _epochs(disk, cache)) for _ in range(given.pairs)]
            for k, which in enumerate(("first", "second")):
                sides = [(ours[k], theirs[k]) for ours, theirs in turns]
                what = f"the {which} epoch from a bucket, and from the disk"
                rows.append(row(23, what, "s", sides, lambda a, b: b / a, at_least=0.9))
    return rows


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=20_000)


if __name__ == "__main__":
    run(measure, __doc__, flags=_flags)
