"""Several runs beside each other: one table, and for each pair whether the difference is more than noise.

Two runs are held against each other sample by sample, and so only where both were evaluated on the same samples, by the SHA-256
of the prepared split. Runs on other samples stand in the table, and it is said that nothing was tested of them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import __version__, answers, files, intervals
from pipeline.answers import Answers
from pipeline.errors import UserError
from pipeline.manifest import WEIGHTS
from pipeline.manifest import read as sealed
from pipeline.output import say
from pipeline.pages import artifacts, figures
from pipeline.pages.page import number, render
from pipeline.release import CompareConfig
from pipeline.run import Run
from pipeline.values import shown

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

SIGNIFICANT = 0.05
_MOST = 20  # runs
_SHOWN = 15  # pairs on a terminal


@dataclass(frozen=True, kw_only=True)
class Member:
    """One run of a comparison: its letter, its answers, and its metric with an interval."""

    letter: str
    run: Run
    found: Answers
    value: float
    interval: tuple[float, float] | None
    proof: str

    @property
    def group(self) -> tuple[str, str]:
        """What has to be the same of two runs that are compared sample by sample."""
        return self.run.data.task, self.found.split_sha256


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two runs on the same samples: `difference` is the second's metric less the first's, `p` is held to all pairs together.

    `only` counts the samples that one alone decides right (McNemar); None where a paired bootstrap was made.
    """

    first: Member
    second: Member
    difference: float
    interval: tuple[float, float] | None
    only: tuple[int, int] | None
    p: float

    @property
    def better(self) -> str:
        """The letter of the run that is better by more than noise, or nothing."""
        if not self.p < SIGNIFICANT or not self.difference:
            return ""
        more_is_better = self.first.run.task.has_decisions
        return (self.second if (self.difference > 0) == more_is_better else self.first).letter


def main(config: CompareConfig) -> int:
    """Do what `compare` is asked for; return its exit status. What is wrong with the flags is told before the runs are read."""
    from pipeline.tracking.fetch import find_run

    output, wanted = Path(config.output) if config.output else None, names(config.runs)
    if output and output.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"output={output} is no page: its name has to end with .html.")
    if output and output.exists() and not config.overwrite:
        raise UserError(f"output={output} is there already. Give another name, or add --overwrite true.")
    if config.overwrite and not output:
        raise UserError("overwrite=true has no effect without --output FILE.html. Leave --overwrite out.")
    compare([find_run(name, trust_code=True) for name in wanted], output=output)  # no code of theirs is run
    return 0


def names(texts: Sequence[str]) -> list[str]:
    """Return the runs that `--runs A B` or `--runs A,B` names: each a folder or an MLflow run id. Raises UserError."""
    if not texts:
        raise UserError("runs: nothing was given. Add --runs FOLDER FOLDER, or MLflow run ids.")
    found = [name for text in texts for name in ([text] if os.path.exists(text) else text.split(",")) if name]
    if len(found) < 2:
        raise UserError(
            f"runs={shown(' '.join(found)) or '(none)'}: two runs or more are compared. Write --runs FOLDER FOLDER."
        )
    if len(found) > _MOST:
        raise UserError(f"runs has {len(found)} runs, and at most {_MOST} are compared at once. Give fewer.")
    return found


def compare(runs: Sequence[Run], *, output: Path | None) -> None:
    """Say how runs compare, and write it as a page to `output`, if that is given. Raises UserError."""
    twice = [run for k, run in enumerate(runs) if run.mlflow_run_id in [other.mlflow_run_id for other in runs[:k]]]
    if twice:
        raise UserError(f"runs: {twice[0].folder} is given twice (MLflow run {twice[0].mlflow_run_id}). Name each run once.")
    tasks = sorted({run.task.metric for run in runs})
    if len(tasks) > 1:
        raise UserError(f"runs are measured by {' and by '.join(tasks)}, which cannot be compared. Give runs of one kind.")
    members = [_member(chr(ord("A") + k), run) for k, run in enumerate(runs)]
    found = pairs(members)
    say("\n".join(_table(members)))
    say("\n".join(["", *_pairs(found)]))
    for sentence in notes(members):
        say(sentence)
    if output:
        text = render(
            "compare.html", title=f"{len(members)} runs compared", version=__version__, members=members, pairs=found,
            metric=runs[0].task.metric, notes=notes(members), recipes=_differing(members), significant=SIGNIFICANT,
            num_resamples=intervals.num_resamples(max(len(m.found.target) for m in members)),
            sets={m.letter: sorted({each.group for each in members}).index(m.group) + 1 for m in members},
        )  # fmt: skip
        with files.atomic(output) as path:
            path.write_text(text)
        say(f"page: {output}")


def _member(letter: str, run: Run) -> Member:
    found = answers.read(run)
    each = figures.per_sample(found)[:, None]
    drawn = figures.metric(intervals.resampled(each)[:, 0] / len(each), found)
    proof = artifacts.parity(run)
    told = "not proven" if proof is None else "passed" if proof["passed"] else "FAILED"
    value = float(figures.metric(each.mean(axis=0), found)[0])
    return Member(letter=letter, run=run, found=found, value=value, interval=intervals.interval(drawn), proof=told)


def pairs(members: Sequence[Member]) -> list[Pair]:
    """Return each pair of runs on the same samples, with p values that Holm's method holds to one level together."""
    found: list[Pair] = []
    for group in dict.fromkeys(member.group for member in members):
        same = [member for member in members if member.group == group]
        each = np.stack([figures.per_sample(member.found) for member in same], axis=1)  # (N, runs)
        drawn = intervals.resampled(each) / len(each)
        for i, j in combinations(range(len(same)), 2):
            first, second = same[i], same[j]
            means = figures.metric(drawn[:, [i, j]], first.found)
            differences = means[:, 1] - means[:, 0]
            only = None
            if first.found.decided is not None and not first.run.task.has_labels:
                *counts, p = intervals.mcnemar(figures.right(first.found)[:, 0], figures.right(second.found)[:, 0])
                only = (counts[0], counts[1])
            else:
                p = intervals.p_value(differences) if (each[:, i] != each[:, j]).any() else 1.0
            found.append(
                Pair(first=first, second=second, difference=second.value - first.value,
                     interval=intervals.interval(differences), only=only, p=p)
            )  # fmt: skip
    adjusted = intervals.holm([pair.p for pair in found])
    return [Pair(**vars(pair) | {"p": p}) for pair, p in zip(found, adjusted, strict=True)]


def notes(members: Sequence[Member]) -> list[str]:
    """Say which runs were not held against each other, and whose figures are of samples that they were trained on."""
    found = []
    groups = {
        group: "".join(m.letter for m in members if m.group == group) for group in dict.fromkeys(m.group for m in members)
    }
    if len(groups) > 1:
        sets = "; ".join(f"{', '.join(letters)}: {group[1][:12]}" for group, letters in groups.items())
        found.append(
            f"These runs were evaluated on {len(groups)} different sets of samples (SHA-256 {sets}). Only runs on the same "
            "samples are tested against each other; of the others, the figures stand beside each other and no more."
        )
    if trained := [m.letter for m in members if m.found.split == "train"]:
        found.append(f"The figures of {', '.join(trained)} are of samples that were trained on: none were held out for a test.")
    if len({m.run.config.seed for m in members}) < len(members):
        found.append(
            "A test of samples says whether these trained models differ, and not whether their recipes do: that needs several "
            "seeds of each."
        )
    return found


def _table(members: Sequence[Member]) -> list[str]:
    metric = members[0].run.task.metric
    rows = [["", "run", "model", "data", "samples", metric, "95 % interval", "parity"]]
    for m in members:
        low_high = f"{number(m.interval[0])} to {number(m.interval[1])}" if m.interval else "-"
        rows.append([m.letter, m.run.folder.name, Path(m.run.config.model).name, m.run.data.name,
                     f"{len(m.found.target)} {m.found.split}", number(m.value), low_high, m.proof])  # fmt: skip
    return _aligned(rows)


def _pairs(found: Sequence[Pair]) -> list[str]:
    if not found:
        return ["No two runs were evaluated on the same samples, so no difference can be tested."]
    rows = [["pair", "difference", "95 % interval", "only one right", "p (Holm)", "more than noise?"]]
    for pair in found[:_SHOWN]:
        low_high = f"{pair.interval[0]:+.4f} to {pair.interval[1]:+.4f}" if pair.interval else "-"
        only = f"{pair.only[0]} / {pair.only[1]}" if pair.only else "-"
        rows.append([f"{pair.second.letter} - {pair.first.letter}", f"{pair.difference:+.4f}", low_high, only,
                     f"{pair.p:.3g}", f"yes: {pair.better} is better" if pair.better else "no"])  # fmt: skip
    more = [f"and {len(found) - _SHOWN} more pairs, on the page (--output FILE.html)"] if len(found) > _SHOWN else []
    return _aligned(rows) + more


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _differing(members: Sequence[Member]) -> list[tuple[str, list[str]]]:
    """Return the fields that are not the same in all runs, with the value of each."""
    recipes = [artifacts.recipe(m.run) | {"weights": sealed(m.run.folder)[1][WEIGHTS][:12]} for m in members]
    fields = dict.fromkeys(name for recipe in recipes for name in recipe)
    rows = [(name, [recipe.get(name, "-") for recipe in recipes]) for name in fields]
    return [(name, values) for name, values in rows if len(set(values)) > 1]
