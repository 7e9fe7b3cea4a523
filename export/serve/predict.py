"""`predict`: an exported .onnx file is asked about files, and answers into a table or onto the terminal.

Imports no torch, and nothing else that an exported file does not need. Whatever can be answered is; what cannot is told at the
end, and makes the exit status 1. Where nothing at all can be answered, nothing is written, and it is 2.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from export.serve import answers, inputs
from export.serve import model as models
from export.serve.answers import Block
from export.serve.inputs import Chunk
from export.serve.model import Answers, Model, Unanswered
from pipeline.config import PredictConfig
from pipeline.errors import Failure, UserError
from pipeline.output import say
from pipeline.values import shown

_SHOWN = 20  # failed inputs that are told, and answers on a terminal


class Failed:
    """Counts the inputs that failed, and keeps the first."""

    def __init__(self) -> None:
        self.count, self.first = 0, list[str]()

    def add(self, name: str, reason: str) -> None:
        self.count += 1
        if len(self.first) < _SHOWN:
            self.first.append(f"{shown(name)} {reason}")


def predict(config: PredictConfig, *, given: Collection[str] = ()) -> int:
    """Answer all inputs; return 0, or 1 where some failed.

    `given` are the names of the flags that were given. Raises UserError for wrong names, for a flag without effect, and where
    nothing is answered.
    """
    output = _output(config)
    model = models.load(Path(config.onnx))
    if problems := list(_idle(config, model, given)):
        raise UserError(*problems)
    entries, notes = inputs.find(config.input, model)
    if output and any(output.exists() and entry.path.samefile(output) for entry in entries if entry.path.exists()):
        raise UserError(f"output={config.output} is an input as well. Give another name.")
    for note in notes:
        say(note, error=True)
    failed, started = Failed(), time.perf_counter()
    chunks = inputs.read(entries, model, batch_size=config.batch_size, fail=failed.add)
    blocks = _answered(model, chunks, config.batch_size, failed)
    if output:
        count = _write(output, model, blocks, failed, config, total=_total(entries))
        if count:
            seconds = time.perf_counter() - started
            say(f"{count} answers in {config.output} ({seconds:.1f} s, {count / seconds:.0f} a second)")
    else:
        count = _show(model, blocks, config, is_single=len(entries) == 1)
    for line in failed.first:
        say(line, error=True)
    if failed.count > _SHOWN:
        say(f"... and {failed.count - _SHOWN} more", error=True)
    if not count:
        nothing = f"input={shown(config.input[0])}: none of the {failed.count} inputs could be answered."
        raise UserError(f"{nothing} {'Nothing was written. ' if output else ''}The model takes {inputs.takes(model)}.")
    if failed.count:
        say(f"{failed.count} of {failed.count + count} inputs failed", error=True)
    return 1 if failed.count else 0


def _output(config: PredictConfig) -> Path | None:
    """Return the file to write, if there is one. Raises UserError where it cannot be."""
    if not config.output:
        return None
    path, what = Path(config.output), f"output={config.output}"
    if path.suffix.lower() not in answers.ENDINGS:
        raise UserError(f"{what} ends in none of {', '.join(answers.ENDINGS)}. Give a name that does.")
    if (path.exists() or path.is_symlink()) and not config.overwrite:
        raise UserError(f"{what} is there already. Give another name, or --overwrite true.")
    return path


def _idle(config: PredictConfig, model: Model, given: Collection[str]) -> Iterator[str]:
    """Yield a sentence for each flag that was given and has no effect."""
    if config.overwrite and not config.output:
        yield "overwrite=true has no effect without --output. Leave --overwrite out."
    if "top" in given and not model.has_decisions:
        yield f"top={config.top} has no effect on a regression, which has no classes. Leave --top out."
    elif "top" in given and config.output and Path(config.output).suffix.lower() != ".jsonl":
        yield f"top={config.top} has no effect on output={config.output}, which has all probabilities. Leave --top out."


def _answered(model: Model, chunks: Iterator[Chunk], batch_size: int, failed: Failed) -> Iterator[Block]:
    """Yield the answers of each chunk, without the samples that have none."""
    for names, groups in chunks:
        places: list[int] = []
        parts: list[Answers] = []
        for group, arrays in groups:
            for step in inputs.steps(arrays, batch_size):
                try:
                    parts.append(model.answer([array[step] for array in arrays]))
                    places += group[step].tolist()
                except Unanswered as error:
                    for place in group[step].tolist():
                        failed.add(names[place], f"is not taken by the model: {error}")
        if not parts:
            continue
        values, finite = (np.concatenate([getattr(part, key) for part in parts]) for key in ("values", "is_finite"))
        decided = [part.decided for part in parts if part.decided is not None]
        for place in np.array(places)[~finite].tolist():
            failed.add(names[place], "is answered with what is no number (NaN or infinity)")
        order = np.argsort(places)
        order = order[finite[order]]
        if len(order):
            found = Answers(
                values=values[order], decided=np.concatenate(decided)[order] if decided else None, is_finite=finite[order]
            )
            yield Block([names[places[k]] for k in order.tolist()], found)


def _write(
    path: Path, model: Model, blocks: Iterator[Block], failed: Failed, config: PredictConfig, *, total: int | None
) -> int:
    """Write all answers, and return their number; no file is made where there are none."""
    first = next(blocks, None)
    if first is None:
        return 0
    count = 0
    try:
        with answers.writer(path, model, count=config.top) as write, _bar(total) as advance:
            for block in _before(first, blocks):
                write(block)
                count += len(block.names)
                advance(count + failed.count)
    except OSError as error:
        raise Failure(
            f"output={config.output} cannot be written ({error.strerror or error}). Free some space, and rerun."
        ) from error
    return count


def _before(first: Block, blocks: Iterator[Block]) -> Iterator[Block]:
    yield first
    yield from blocks


def _show(model: Model, blocks: Iterator[Block], config: PredictConfig, *, is_single: bool) -> int:
    """Show the first answers, and return their number."""
    rows: list[Block] = []
    while sum(len(block.names) for block in rows) <= _SHOWN and (block := next(blocks, None)):
        rows.append(block)
    if not rows:
        return 0
    names = [name for block in rows for name in block.names]
    values, finite = (np.concatenate([getattr(b.answers, key) for b in rows])[:_SHOWN] for key in ("values", "is_finite"))
    decided = [block.answers.decided for block in rows if block.answers.decided is not None]
    found = Answers(values=values, decided=np.concatenate(decided)[:_SHOWN] if decided else None, is_finite=finite)
    block = Block(names[:_SHOWN], found)
    single = is_single and len(names) == 1
    say(answers.shown_one(model, block, config.top) if single else answers.shown_table(model, block))
    if len(names) > _SHOWN:
        say(f"these are the first {_SHOWN}; --output FILE.csv answers all")
    return min(len(names), _SHOWN)


def _total(entries: list[inputs.Entry]) -> int | None:
    """Return the number of samples where it is known without reading."""
    return len(entries) if all(entry.kind == "image" for entry in entries) else None


@contextmanager
def _bar(total: int | None) -> Iterator[Callable[[int], None]]:
    """Yield what shows how many inputs are done: a bar on a terminal, if rich is there."""
    if total == 1 or not sys.stderr.isatty():
        yield lambda done: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
    except ImportError:  # the smallest environment in which answers are given does without
        yield lambda done: None
        return
    with Progress(BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)
