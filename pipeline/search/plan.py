"""What the flags of `search` mean, and what is wrong with them, told before anything is imported that is slow."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import models
from pipeline import data, environment
from pipeline.config import RunConfig, SearchConfig
from pipeline.errors import UserError
from pipeline.flags import program
from pipeline.recipe import held_out, num_epochs
from pipeline.search import space, storage
from pipeline.search.space import Dimension
from pipeline.task import task
from pipeline.values import shown

JOURNAL = "journal.log"
_TRAINING = {field.name for field in dataclasses.fields(RunConfig)} | {"config"}
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,99}")
_REFUSED: Mapping[str, str] = {
    "resume": "on `search`, which always goes on where it was",
    "promote": "on `search`, whose trials are not exported; promote the winner in the end",
    "upload_checkpoints": "on `search`, whose trials stay on the host that trains them",
}


@dataclass(frozen=True)
class Plan:
    """What a search is: `config` is that of the first point of its space, `fixed` are the flags that all trials share."""

    config: RunConfig
    fixed: Mapping[str, str]
    space: tuple[Dimension, ...]
    recipe: Mapping[str, str]  # the point of the space that is the training without a search, which is trial 0; or empty
    missing: str  # the recipe's value that the space lacks, where it is no point of it
    trials: int
    metric: str
    pruner: str
    study: str
    storage: str
    folder: Path
    again: str  # the command that goes on with it

    @property
    def is_larger_better(self) -> bool:
        return self.metric.endswith("accuracy")


def make_plan(config: SearchConfig, flags: Mapping[str, str], words: Sequence[str] = ()) -> Plan:
    """Return what the flags mean. Raises UserError with what is wrong, before anything is made or imported that is slow."""
    refused = [
        f"{name}={shown(flags[name])} has no effect {why}. Leave --{name} out."
        for name, why in _REFUSED.items()
        if name in flags
    ]
    if refused:
        raise UserError(*refused)
    dimensions = space.parse(config.space)
    fixed = {name: text for name, text in flags.items() if name in _TRAINING and name != "output_dir"}
    world_size = environment.worker().world_size if environment.is_worker() else None
    with_folder = fixed | ({"output_dir": flags["output_dir"]} if "output_dir" in flags else {})
    first = space.resolve_first(with_folder, dimensions, world_size=world_size)
    source = data.source_of(first)
    name = config.study or f"{models.label(first.model)}-{re.sub(r'[^A-Za-z0-9_.-]', '_', source.spec.name)}"[:100]
    problems = [*_problems(config, first)]
    if problems:
        raise UserError(*problems)
    folder = Path(config.output_dir or f"runs/search-{name}")
    kind = task(source.spec.task)
    recipe, missing = space.recipe_point(with_folder, dimensions, world_size=world_size)
    return Plan(
        config=first, fixed=fixed, space=dimensions, recipe=recipe, missing=missing, trials=config.trials,
        metric=config.metric or f"val/{kind.metric}",
        pruner=config.pruner, study=name, storage=config.storage or str(folder / JOURNAL), folder=folder,
        again=storage.shown(shlex.join([*program().split(), "search", *words])),
    )  # fmt: skip


def _problems(config: SearchConfig, first: RunConfig) -> Iterator[str]:
    source = data.source_of(first)
    kind = task(source.spec.task)
    measured = ("val/loss", f"val/{kind.metric}")
    if config.metric and config.metric not in measured:
        why = "is of the test set, which stays untouched until the winner" if config.metric.startswith("test/") else (
            f"is not what validation measures on dataset={first.dataset}")  # fmt: skip
        yield f"metric={shown(config.metric)} {why}. Use --metric {' or '.join(measured)}."
    searched = {dimension.name.partition(".")[0] for dimension in space.parse(config.space)}
    if (config.metric or measured[1]) == "val/loss" and searched & {"loss", "loss_args"}:
        yield "metric=val/loss cannot compare trials of another loss, which --space has. Use another --metric, or one --loss."
    if config.study and not _NAME.fullmatch(config.study):
        yield f"study={shown(config.study)} cannot be a name. Use up to 100 letters, digits and _ . -, as in --study cnn-first."
    if not source.has_val_set and not held_out(vars(first), source)[0]:
        yield (
            f"val_split={first.val_split}: no validation samples are held out of dataset={first.dataset}, and by these a "
            "search compares its trials. Use --val_split 0.1."
        )
    if config.pruner == "hyperband" and num_epochs(vars(first), source) < 2:
        yield "pruner=hyperband has no effect on trials of one epoch. Use more --epochs, or leave --pruner out."
