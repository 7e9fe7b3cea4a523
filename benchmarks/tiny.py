"""Row 7: thousands of full-batch epochs of the tiny models, against the texts' plain loops.

`uv run python -m benchmarks.tiny`. Our side is a whole training as the command does it: checkpoints, figures in MLflow
(SQLite), validation where the recipe has it. The other side is the loop that the text writes down, and nothing else.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.report import Row, pairs, row, run
from pipeline.data.loader import open_split
from pipeline.data.prepare import prepare, read_spec
from pipeline.distributed import single_process
from pipeline.progress import Progress
from pipeline.resolve import resolve
from pipeline.run import Run
from pipeline.tracking import runs
from pipeline.tracking.tracker import training_run
from pipeline.train import Training


def _ours(flags: dict[str, str]) -> float:
    """Return the seconds of `fit`, in a run that is tracked and saved as always."""
    config = resolve(flags)
    data = prepare(config)
    with tempfile.TemporaryDirectory() as base:
        run_id = runs.create_run()
        made = Run.create(Path(base) / "run", config=config, mlflow_run_id=run_id, git_commit="", data=read_spec(data))
        dataset = {"name": config.dataset, "digest": "0" * 36, "source": "benchmark"}
        with training_run(made, {}, dataset=dataset) as tracker:
            training = Training(made, single_process(), tracker, open_split(data, "train"), open_split(data, "val"))
            start = time.perf_counter()
            training.fit(Progress())
            return time.perf_counter() - start


def _plain(model: nn.Module, x: Tensor, y: Tensor, loss: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()
    return time.perf_counter() - start


class _MLPNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(30, 25), nn.Linear(25, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.out(torch.tanh(self.hidden(x))))


class _Cubic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Parameter(torch.randn(())) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.a + self.b * x + self.c * x**2 + self.d * x**3


def _tensors(flags: dict[str, str], split: str) -> tuple[Tensor, Tensor]:
    found = open_split(prepare(resolve(flags)), split)
    return found.x, found.y if found.y.ndim == 2 else found.y[:, None].float()


def _text_mlp(flags: dict[str, str]) -> float:
    model = _MLPNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return _plain(model, *_tensors(flags, "train"), nn.MSELoss(), optimizer, int(flags["epochs"]))


def _text_polynomial(flags: dict[str, str]) -> float:
    model = _Cubic()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
    return _plain(model, *_tensors(flags, "train"), nn.MSELoss(reduction="sum"), optimizer, int(flags["epochs"]))


def _text_moons(flags: dict[str, str]) -> float:
    """Forward and backward written by hand; validation after each epoch and the best parameters kept, as the text's runner."""
    x, y = _tensors(flags, "train")
    val_x, val_y = _tensors(flags, "val")
    w1, b1, w2, b2 = torch.randn(2, 5), torch.zeros(1, 5), torch.randn(5, 1), torch.zeros(1, 1)
    history, best = [], 0.0

    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = 1 / (1 + torch.exp(-(x @ w1 + b1)))
        return hidden, 1 / (1 + torch.exp(-(hidden @ w2 + b2)))

    def score(p: Tensor, y: Tensor) -> tuple[float, float]:
        loss = -1 / len(y) * (y.T @ torch.log(p) + (1 - y.T) @ torch.log(1 - p))
        return loss.item(), ((p >= 0.5).float() == y).float().mean().item()

    start = time.perf_counter()
    for _ in range(int(flags["epochs"])):
        hidden, p = forward(x)
        history.append(score(p, y))
        grad = -1 / len(y) * (y / p - (1 - y) / (1 - p)) * p * (1 - p)
        into = grad @ w2.T * hidden * (1 - hidden)
        changes = (x.T @ into, into.sum(0), hidden.T @ grad, grad.sum(0))
        for parameter, change in zip((w1, b1, w2, b2), changes, strict=True):
            parameter -= 0.2 * change
        history.append(score(forward(val_x)[1], val_y))
        if history[-1][1] > best:
            best, kept = history[-1][1], [parameter.clone() for parameter in (w1, b1, w2, b2)]
    assert kept
    return time.perf_counter() - start


_TEXTS: dict[str, Callable[[dict[str, str]], float]] = {"mlp": _text_mlp, "moons": _text_moons, "polynomial": _text_polynomial}


def measure(given: argparse.Namespace) -> list[Row]:
    rows = []
    with tempfile.TemporaryDirectory() as base:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{base}/mlflow.db"
        runs.configure()
        for model, text in _TEXTS.items():
            flags = {"model": model, "recipe": "reference", "epochs": "2000", "cache_dir": given.cache_dir}
            seen = pairs(lambda flags=flags: _ours(flags), lambda flags=flags, text=text: text(flags), given.pairs)  # type: ignore[misc]
            rows.append(row(7, f"{model}, 2000 full-batch epochs", "s", seen, lambda a, b: b / a, at_least=0.8))
    return rows


if __name__ == "__main__":
    run(measure, __doc__)
