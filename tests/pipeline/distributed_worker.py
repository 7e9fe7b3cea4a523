"""Started on each rank by test_distributed.py: trains and evaluates a few models, and has rank 0 write what it saw as JSON."""

from __future__ import annotations

import contextlib
import copy
import json
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline import distributed, signals
from pipeline.data.loader import open_split
from pipeline.data.prepare import prepare
from pipeline.distributed import Ranks
from pipeline.evaluate import measure
from pipeline.progress import Progress
from pipeline.resolve import resolve
from pipeline.signals import Interrupted
from tests.trainings import begin, curve, losses

# rates at which the loss does not yet jump: rounding would grow with it, on one processor more than on another
CASES: dict[str, dict[str, str]] = {  # 20 steps or more each; no batch size or data set divides by 2 and by 3
    "mean loss": {"model": "mlp", "loss": "bce", "batch_size": "35", "epochs": "2"},
    "sum loss": {"model": "polynomial", "loss": "sse", "optimizer": "sgd", "lr": "1e-6", "batch_size": "113", "epochs": "2"},
    "by hand": {"model": "two_layer", "batch_size": "61", "epochs": "2"},
    "images": {"model": "cnn", "optimizer": "sgd", "lr": "0.05", "batch_size": "101", "epochs": "2", "augment_shift": "2",
               "augment_affine": "0.1"},
    "mixed images": {"model": "cnn", "optimizer": "sgd", "lr": "0.01", "batch_size": "101", "epochs": "2", "mixup": "0.4",
                     "cutmix": "1", "augment_crop": "0.5", "augment_flip": "true", "augment_color": "0.2"},
    "parts and clipping": {
        "model": "mlp", "grad_accum_steps": "4", "max_grad_norm": "0.01", "batch_size": "35", "epochs": "2", "optimizer": "sgd",
    },
    "tiny batches": {"model": "two_layer", "batch_size": "7", "epochs": "1", "grad_accum_steps": "2"},
}  # fmt: skip


def run_cases(folder: Path, cache_dir: str, ranks: Ranks) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for name, flags in CASES.items():
        config = resolve(flags | {"cache_dir": cache_dir, "log_every": "1", "precision": "fp32"})
        training = begin(config, folder / name, ranks=ranks)
        training.fit(Progress())
        split, task = open_split(prepare(config), "test"), training.task
        totals = measure(training.model, split, task.loss_sum(config.loss), ranks, config=config, task=task)
        seen[name] = {
            "losses": losses(training),
            "val": [row[key] for row in curve(training) for key in ("val/loss", "val/accuracy", "val/rmse") if key in row],
            "test": totals, "num_test": len(split),
        }  # fmt: skip
    return seen


def count_collectives(folder: Path, cache_dir: str, ranks: Ranks) -> dict[str, int]:
    """Return how often ranks talk in two epochs of the CNN: what torch's profiler saw of gloo, DDP's own calls too."""
    config = resolve({"model": "cnn", "epochs": "2", "batch_size": "101", "cache_dir": cache_dir, "checkpoint_every": "1000"})
    training = begin(config, folder / "counted", ranks=ranks)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        training.fit(Progress())
    names = [event.name.removeprefix("gloo:") for event in profile.events() if event.name.startswith("gloo:")]
    return {"steps": training.state.step, **Counter(names)}


def difference_of_means(ranks: Ranks, *, width: int) -> float:
    """Return the largest difference between DDP's gradients and the mean over the ranks of those without it, in three steps."""
    torch.manual_seed(0)
    alone = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, width))
    wrapped = distributed.data_parallel(copy.deepcopy(alone), ranks.device)
    x, largest = torch.randn(ranks.world_size, 7, width)[ranks.rank], 0.0
    for _ in range(3):  # DDP lays its buckets out anew after the first
        for module in (alone, wrapped):
            module.zero_grad()
            module(x).square().sum().backward()
        gathered = zip(*distributed.gather([p.grad for p in alone.parameters()]), strict=True)
        for own, each in zip(wrapped.parameters(), gathered, strict=True):
            assert own.grad is not None
            largest = max(largest, (own.grad - torch.stack(each).mean(0)).abs().max().item())
    return largest


STOPPED = {
    "model": "cnn",
    "optimizer": "sgd",
    "momentum": "0",
    "lr": "0.05",
    "batch_size": "101",
    "epochs": "2",
    "precision": "fp32",
}
STOP_AT = 7  # of the 11 steps of the first epoch


class _StopAt(Progress):
    def step(self, step: int, loss: float) -> None:
        if step == STOP_AT - 1:
            signals._pending = signal.SIGTERM


def train_in_parts(folder: Path, cache_dir: str, ranks: Ranks, *, stop: bool) -> list[float]:
    """Start a training in `folder` or go on with the one that is there, on these ranks; return the losses of its steps."""
    config = resolve(STOPPED | {"cache_dir": cache_dir, "log_every": "1"})
    training = begin(config, folder, ranks=ranks)
    with contextlib.suppress(Interrupted):
        training.fit(_StopAt() if stop else Progress())
    return losses(training)


if __name__ == "__main__":
    with distributed.process_group("cpu") as this:
        result = run_cases(Path(sys.argv[1]), sys.argv[2], this)
        result["collectives"] = count_collectives(Path(sys.argv[1]), sys.argv[2], this)
        result["differences"] = [difference_of_means(this, width=width) for width in (10, 700)]
        result["parts"] = train_in_parts(Path(sys.argv[3]), sys.argv[2], this, stop=this.world_size == 2)
        if this.is_main:
            (Path(sys.argv[1]) / "seen.json").write_text(json.dumps(result))
    signals.exit_now(0)
