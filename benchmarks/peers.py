"""Row 2: training samples a second against Lightning, Ignite, skorch and Accelerate.

`uv run --group peers python -m benchmarks.peers --data_dir DIR`. Everybody trains S4's network with Adam on the same images of
the real MNIST, in a process of its own: in float32 and, where `--precision auto` means bfloat16, in that too, on both sides.
The peers read them as their users would, from torchvision's data set through a DataLoader; set-up, logging, progress bars and
checkpoints of theirs are off or not timed. Ours is a whole `fit` with its figures, without validation.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.report import Row, hardware_precision, pairs, row, run, worker

SAMPLES = 9600
_FLAGS = {
    "model": "cnn", "dataset": "mnist", "optimizer": "adam", "lr": "0.001", "weight_decay": "0", "label_smoothing": "0",
    "scheduler": "constant", "warmup_ratio": "0", "epochs": "1", "init": "random", "augment_shift": "0",
}  # fmt: skip


def ours(data_dir: str, cache_dir: str, batch_size: int, precision: str) -> float:
    """Return our samples a second."""
    from benchmarks.training import build, first
    from pipeline.progress import Progress

    flags = _FLAGS | {"data_dir": data_dir, "cache_dir": cache_dir, "batch_size": str(batch_size), "precision": precision}
    with tempfile.TemporaryDirectory() as base:
        training = build(flags, Path(base) / "run", keep=first(SAMPLES), saves=False)
        start = time.perf_counter()
        training.fit(Progress())
        return SAMPLES / (time.perf_counter() - start)


def _loader(data_dir: str, batch_size: int) -> Any:
    import torch
    from torchvision import datasets, transforms

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    images = torch.utils.data.Subset(datasets.MNIST(data_dir, train=True, transform=transform), range(SAMPLES))
    return torch.utils.data.DataLoader(images, batch_size=batch_size, shuffle=True)


def _network(precision: str = "fp32") -> Any:
    """Return S4's network; for those that leave autocast to their users, with it in `forward`."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Net(nn.Module):  # S4's, as its text writes it
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Sequential(nn.Conv2d(1, 16, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(2))
            self.conv2 = nn.Sequential(nn.Conv2d(16, 32, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(2))
            self.fc1, self.fc2 = nn.Linear(32 * 7 * 7, 128), nn.Linear(128, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16) if precision == "bf16" else nullcontext():
                x = self.conv2(self.conv1(x)).flatten(1)
                return self.fc2(F.relu(self.fc1(x)))

    torch.manual_seed(0)
    return Net()


def lightning(data_dir: str, batch_size: int, precision: str) -> float:
    import logging
    import warnings

    import torch
    from lightning import pytorch as pl

    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = _network()

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            loss = torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    class Clock(pl.Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            self.started = time.perf_counter()

        def on_train_epoch_end(self, *_: Any) -> None:
            self.seconds = time.perf_counter() - self.started

    clock = Clock()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="auto", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[clock], precision="bf16-mixed" if precision == "bf16" else "32-true",
    )  # fmt: skip
    trainer.fit(Module(), _loader(data_dir, batch_size))
    return SAMPLES / clock.seconds


def ignite(data_dir: str, batch_size: int, precision: str) -> float:
    import torch
    from ignite.engine import create_supervised_trainer

    model = _network(precision)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    trainer = create_supervised_trainer(model, optimizer, torch.nn.CrossEntropyLoss())
    loader = _loader(data_dir, batch_size)
    start = time.perf_counter()
    trainer.run(loader, max_epochs=1)
    return SAMPLES / (time.perf_counter() - start)


def skorch(data_dir: str, batch_size: int, precision: str) -> float:
    import torch
    from skorch import NeuralNetClassifier

    loader = _loader(data_dir, batch_size)
    net = NeuralNetClassifier(
        _network(precision), criterion=torch.nn.CrossEntropyLoss, optimizer=torch.optim.Adam, lr=1e-3, batch_size=batch_size,
        max_epochs=1, train_split=None, iterator_train__shuffle=True, verbose=0,
    )  # fmt: skip
    net.initialize()
    start = time.perf_counter()
    net.partial_fit(loader.dataset, None)
    return SAMPLES / (time.perf_counter() - start)


def accelerate(data_dir: str, batch_size: int, precision: str) -> float:
    import torch
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if precision == "bf16" else "no")
    model = _network()
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.Adam(model.parameters(), lr=1e-3), _loader(data_dir, batch_size)
    )
    start = time.perf_counter()
    for x, y in loader:
        optimizer.zero_grad()
        accelerator.backward(torch.nn.functional.cross_entropy(model(x), y))
        optimizer.step()
    return SAMPLES / (time.perf_counter() - start)


PEERS: dict[str, Callable[[str, int, str], float]] = {
    "Lightning": lightning, "Ignite": ignite, "skorch": skorch, "Accelerate": accelerate,
}  # fmt: skip


def _result(process: ProcessPoolExecutor, function: Callable[..., float], *arguments: object) -> float:
    return process.submit(function, *arguments).result()


def measure(given: argparse.Namespace) -> list[Row]:
    default = hardware_precision()
    rows = []
    with worker() as us:
        for precision, name, batch_size in itertools.product(dict.fromkeys(("fp32", default)), PEERS, (64, 256)):
            with worker() as them:
                ours_now = partial(_result, us, ours, given.data_dir, given.cache_dir, batch_size, precision)
                theirs_now = partial(_result, them, PEERS[name], given.data_dir, batch_size, precision)
                seen = pairs(ours_now, theirs_now, given.pairs)
            targets = ([2.0] if precision == "fp32" else []) + ([3.0] if precision == default else [])
            what = f"{name}, batch {batch_size}, {precision} on both sides"
            rows += [row(2, what, "samples/s", seen, lambda a, b: a / b, at_least=target) for target in targets]
            print(what, f"{rows[-1].ratio:.2f}", flush=True)
    return rows


if __name__ == "__main__":
    run(measure, __doc__)
