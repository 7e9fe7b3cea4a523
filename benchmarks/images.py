"""Rows 14 to 16: own photographs, from their files to a trained resnet18. `python -m benchmarks.images`

JPEGs as in row 13. Row 14 is a pass over all images of 224 x 224, ours from the prepared tensors, the other side torchvision's
ImageFolder through a DataLoader of two processes: both end with a batch on the device as the model takes it, ours of uint8, as
it standardizes them itself, and once more with that. Row 15 is a whole job of three
epochs with resnet18 at 64 px, preparing included, against a plain loop as torchvision's documentation has it, with the same
network, optimizer, batches and number of steps, in float32 and with `--precision auto` on our side. Row 16 is the training step
itself at 224 px, against the bare step: data on the device, no tracking, no checkpoint.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.decode import _write
from benchmarks.report import Row, pairs, row, run
from benchmarks.training import build

COUNT, EPOCHS, BATCH = 2_000, 3, 64
_FLAGS = {
    "model": "torchvision:resnet18", "optimizer": "adamw", "lr": "0.001", "weight_decay": "0", "label_smoothing": "0",
    "scheduler": "constant", "warmup_ratio": "0", "epochs": str(EPOCHS), "batch_size": str(BATCH), "val_split": "0",
    "test_split": "0",
}  # fmt: skip
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _flags(folder: Path, cache: Path, side: int, precision: str) -> dict[str, str]:
    return _FLAGS | {
        "dataset": str(folder), "cache_dir": str(cache), "image_size": str(side), "precision": precision,
    }  # fmt: skip


def _theirs(folder: Path, side: int) -> Any:
    from torchvision import datasets, transforms

    steps = [transforms.Resize((side, side)), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.25] * 3)]
    images = datasets.ImageFolder(str(folder), transforms.Compose(steps))
    return torch.utils.data.DataLoader(images, batch_size=BATCH, shuffle=True, num_workers=2, pin_memory=DEVICE.type == "cuda")


def _pass(batches: Iterator[Any]) -> float:
    """Return images a second of going through batches."""
    start, count = time.perf_counter(), 0
    for x in batches:
        count += len(x)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return count / (time.perf_counter() - start)


def _ours_pass(training: Any, *, standardized: bool) -> float:
    change = training.model.standardized if standardized else lambda x: x
    return _pass(change(x) for parts in training.batches.epoch(0) for x, _ in parts)


def _our_job(folder: Path, cache: Path, precision: str) -> float:
    """Return the seconds of preparing and training, the cache being empty."""
    import shutil

    from pipeline.progress import Progress

    shutil.rmtree(cache, ignore_errors=True)
    with tempfile.TemporaryDirectory() as base:
        start = time.perf_counter()
        training = build(_flags(folder, cache, 64, precision), Path(base) / "run", saves=False)
        training.fit(Progress())
        return time.perf_counter() - start


def _their_job(folder: Path) -> float:
    """Return the seconds of the same training in a plain loop."""
    from torchvision.models import resnet18

    start = time.perf_counter()
    network = resnet18(num_classes=1).to(DEVICE).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    loss = nn.BCEWithLogitsLoss()
    for _ in range(EPOCHS):
        for x, y in _theirs(folder, 64):
            optimizer.zero_grad()
            value = loss(network(x.to(DEVICE))[:, 0], y.to(DEVICE).float())
            value.backward()
            optimizer.step()
            value.item()
    return time.perf_counter() - start


def _our_steps(training: Any) -> float:
    from pipeline.progress import Progress

    start = time.perf_counter()
    training.state.epoch = training.state.step = 0
    training.fit(Progress())
    return training.state.step * BATCH / (time.perf_counter() - start)


def _bare_steps(training: Any, precision: str) -> float:
    """Return images a second of the network, loss and optimizer alone, on one batch that is there."""
    from pipeline.precision import autocast

    (x, y), *_ = next(iter(training.batches.epoch(0)))
    loss, steps = training.loss_sum, EPOCHS * len(training.batches)
    start = time.perf_counter()
    for _ in range(steps):
        for parameter in training.parameters:
            parameter.grad = None
        with autocast(precision, DEVICE):
            scores, _ = training.model(x)
        (loss(scores.float(), y) / len(x)).backward()
        training.optimizer.step()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return steps * BATCH / (time.perf_counter() - start)


def measure(given: argparse.Namespace) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as base:
        folder, cache = Path(base) / "photos", Path(base) / "cache"
        _write(folder, COUNT)
        training = build(_flags(folder, cache, 224, "fp32"), Path(base) / "pass", saves=False)
        loader = _theirs(folder, 224)
        for standardized in (False, True):
            seen = pairs(
                lambda: _ours_pass(training, standardized=standardized),  # noqa: B023
                lambda: _pass(x.to(DEVICE, non_blocking=True) for x, _ in loader),
                given.pairs,
            )
            what = f"images of 224 x 224{', standardized' * standardized}, and ImageFolder"
            rows.append(row(14, what, "images/s", seen, lambda a, b: a / b, at_least=10))
        for precision, goal in (("fp32", 1.0), (given.precision, 1.5)):
            seen = pairs(lambda: _our_job(folder, cache, precision), lambda: _their_job(folder), given.pairs, warm_up=False)  # noqa: B023
            what = f"resnet18 at 64 px, {COUNT} files, {EPOCHS} epochs, {precision}, and a plain loop"
            rows.append(row(15, what, "s", seen, lambda a, b: b / a, at_least=goal))
        if DEVICE.type == "cuda":
            for precision in ("fp32", "bf16"):
                ours = build(_flags(folder, cache, 224, precision), Path(base) / f"step-{precision}", saves=False)
                bare = build(_flags(folder, cache, 224, precision), Path(base) / f"bare-{precision}", saves=False)
                seen = pairs(lambda: _our_steps(ours), lambda: _bare_steps(bare, precision), given.pairs)  # noqa: B023
                what = f"resnet18 at 224 px, {precision}, and the bare step"
                rows.append(row(16, what, "images/s", seen, lambda a, b: a / b, at_least=0.97))
    return rows


if __name__ == "__main__":
    run(measure, __doc__)
