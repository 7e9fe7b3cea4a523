"""What a person sees while a model trains: a bar on a terminal, a line for each epoch elsewhere, nothing above rank 0."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pipeline.output import log, say

_MAX_LINES = 20  # of a training with more than 100 epochs; every epoch has its line below that


class Progress:
    """Takes what happens and shows nothing: the progress of ranks above 0."""

    def step(self, step: int, loss: float) -> None: ...

    def epoch(self, epoch: int, row: Mapping[str, float]) -> None: ...

    def note(self, text: str) -> None: ...


class _Lines(Progress):
    def __init__(self, epochs: int, tell: Callable[[str], None] = say) -> None:
        self.tell = tell
        self.epochs, self.every = epochs, 1 if epochs <= 100 else -(-epochs // _MAX_LINES)
        self.started, self.first, self.due = time.perf_counter(), -1, 0

    def epoch(self, epoch: int, row: Mapping[str, float]) -> None:
        if self.first < 0:
            self.first = epoch - 1
        if epoch < self.due or "train/epoch_loss" not in row:  # of many short epochs, not each one's loss is looked at
            return
        self.due = epoch - epoch % self.every + self.every
        if epoch < self.epochs < self.due:
            self.due = self.epochs
        spent = time.perf_counter() - self.started
        left = spent / (epoch - self.first) * (self.epochs - epoch)
        self.note(f"epoch {epoch}/{self.epochs}  {_describe(row['train/epoch_loss'], row)}  {left:.0f} s left")

    def note(self, text: str) -> None:
        self.tell(text)


class _Bar(Progress):
    def __init__(self, bar: Any, epochs: int, steps_per_epoch: int, first_step: int) -> None:
        self.bar, self.epochs, self.row = bar, epochs, {"": 0.0}
        self.lines = _Lines(epochs, log)  # a log has no bar
        self.per_epoch = steps_per_epoch
        self.task = bar.add_task("", total=epochs * steps_per_epoch, completed=first_step)

    def step(self, step: int, loss: float) -> None:
        self.lines.step(step, loss)
        epoch = min(self.epochs, (step - 1) // self.per_epoch + 1)
        text = f"epoch {epoch}/{self.epochs}  {_describe(loss, self.row)}"
        self.bar.update(self.task, completed=step, description=text)

    def epoch(self, epoch: int, row: Mapping[str, float]) -> None:
        self.row = dict(row)
        self.lines.epoch(epoch, row)

    def note(self, text: str) -> None:
        say(text)  # above the bar: rich takes what is printed meanwhile


def _describe(loss: float, row: Mapping[str, float]) -> str:
    names = {
        "val/loss": "val loss",
        "train/accuracy": "accuracy",
        "val/accuracy": "val accuracy",
        "val/rmse": "val rmse",
        "val/ema/loss": "ema loss",
        "val/ema/accuracy": "ema accuracy",
        "val/ema/rmse": "ema rmse",
    }
    metrics = [f"{text} {row[key]:.4f}" for key, text in names.items() if key in row]
    if "train/samples_per_second" in row:
        metrics.append(f"{row['train/samples_per_second']:,.0f} samples/s".replace(",", " "))
    return "  ".join([f"loss {loss:.4f}", *metrics])


@contextmanager
def show(*, epochs: int, steps_per_epoch: int, first_step: int, is_main: bool) -> Iterator[Progress]:
    """Yield what shows the progress of a training in this process."""
    if not is_main:
        yield Progress()
    elif not sys.stdout.isatty():
        yield _Lines(epochs)
    else:
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Rich

        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeRemainingColumn())
        with Rich(*columns) as bar:
            yield _Bar(bar, epochs, steps_per_epoch, first_step)
