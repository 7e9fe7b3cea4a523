"""What a person sees of a search: a bar with the trial that trains and the best so far; without a terminal, a line a trial."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.output import say
from pipeline.progress import Progress

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_STATES = {"COMPLETE": "", "PRUNED": "ended early", "FAIL": "failed"}


class Shown:
    """Says how each trial of this worker has ended, and which is the best of all; also without a terminal."""

    def __init__(self, most: int, metric: str) -> None:
        self.most, self.metric = most, metric

    def began(self, number: int) -> Progress:
        return Progress()

    def ended(self, trial: FrozenTrial, *, best: FrozenTrial | None, num_ended: int, problem: str) -> None:
        value = f"{self.metric} {trial.value:.4f}" if trial.value is not None else problem.splitlines()[0] if problem else ""
        how = _STATES.get(trial.state.name, trial.state.name)
        if how and trial.intermediate_values:
            how += f" after epoch {max(trial.intermediate_values)}"
        if best is not None and best.number == trial.number:
            how = "the best so far"
        known = "" if best is None or best.number == trial.number else f"best {best.value:.4f} (trial {best.number})"
        parts = [f"trial {trial.number}", value, how, described(trial.params), known, f"{num_ended} of {self.most} done"]
        say("  ".join(part for part in parts if part))


class _Bar(Shown):
    def __init__(self, most: int, metric: str, bar: Any) -> None:
        super().__init__(most, metric)
        self.bar, self.best = bar, ""
        self.task = bar.add_task("", total=most)

    def began(self, number: int) -> Progress:
        return _Trial(self, number)

    def ended(self, trial: FrozenTrial, *, best: FrozenTrial | None, num_ended: int, problem: str) -> None:
        super().ended(trial, best=best, num_ended=num_ended, problem=problem)
        self.best = f"  best {best.value:.4f} (trial {best.number})" if best is not None else ""
        self.bar.update(self.task, completed=num_ended, description=f"{self.metric}{self.best}")


class _Trial(Progress):
    def __init__(self, shown: _Bar, number: int) -> None:
        self.shown, self.number = shown, number

    def epoch(self, epoch: int, row: Mapping[str, float]) -> None:
        value = f" {row[self.shown.metric]:.4f}" if self.shown.metric in row else ""
        text = f"trial {self.number}, epoch {epoch}: {self.shown.metric}{value}{self.shown.best}"
        self.shown.bar.update(self.shown.task, description=text)


def described(params: Mapping[str, Any]) -> str:
    """Return the values of a trial, short."""
    return " ".join(f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}" for name, value in params.items())


@contextmanager
def show(most: int, metric: str) -> Iterator[Shown]:
    """Yield what shows the progress of a search in this process."""
    if not sys.stdout.isatty():
        yield Shown(most, metric)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Rich

    with Rich(TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn()) as bar:
        yield _Bar(most, metric, bar)
