"""A training as the command builds it, but without a command: new in a folder or going on there, and telling a list."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from pipeline import checkpoint, distributed
from pipeline import run as run_folder
from pipeline.config import RunConfig
from pipeline.data.loader import open_split
from pipeline.data.prepare import prepare, read_spec
from pipeline.distributed import Ranks, single_process
from pipeline.progress import Progress
from pipeline.run import Run
from pipeline.tracking.tracker import NullTracker, Row
from pipeline.train import Training

CLOCKS = ("time", "train/samples_per_second")


class Recorder(NullTracker):
    """Keeps every row that it is told, in `rows`."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def log(self, row: Row) -> None:
        self.rows.append(row)


def begin(config: RunConfig, folder: Path, *, ranks: Ranks | None = None, run_id: str = "") -> Training:
    """Return a training in `folder`: a new one, or the one that is there, from its newest checkpoint if it has one.

    `precision=auto` is fp32 here: the command measures it, and no test's numbers may hang on a clock.
    """
    if config.precision == "auto":
        config = dataclasses.replace(config, precision="fp32")
    ranks = ranks or single_process()
    data = prepare(config)

    def run_in_folder() -> Run:
        if run_folder.is_run_dir(folder):
            return Run.open(folder, check=False)
        return Run.create(folder, config=config, mlflow_run_id=run_id, git_commit="", data=read_spec(data))

    run = distributed.broadcast(distributed.run_on_main(run_in_folder, on=ranks.is_main))
    training = Training(run, ranks, Recorder(), open_split(data, "train"), open_split(data, "val"))
    if found := distributed.broadcast(checkpoint.newest_checkpoint(folder) if ranks.is_main else None):
        training.restore(found[1])
    return training


def fit(config: RunConfig, folder: Path, progress: Progress | None = None) -> Training:
    """Begin a training in `folder`, or go on with it, to its end."""
    training = begin(config, folder)
    training.fit(progress or Progress())
    return training


def curve(training: Training) -> list[Any]:
    """Return what a training has told since it began or went on, without what the clock says."""
    assert isinstance(training.tracker, Recorder)
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in training.tracker.rows]


def same_weights(path: Path, other: Path) -> bool:
    """Tell whether two weight files hold the same tensors, bit for bit, whatever runs they are of."""
    (first, second) = (load_file(file) for file in (path, other))
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def losses(training: Training) -> list[float]:
    """Return the training losses of its `curve`."""
    return [row["train/loss"] for row in curve(training) if "train/loss" in row]
