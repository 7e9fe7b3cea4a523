"""A training as the command builds it, for measurements: on some of the samples, with or without checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from pipeline import precision
from pipeline import run as run_folder
from pipeline.data.loader import Split, open_split
from pipeline.data.prepare import prepare, read_spec
from pipeline.distributed import Ranks, compute_alike, flush_denormals, keep_freed_memory, resolve_device
from pipeline.resolve import resolve
from pipeline.run import Run
from pipeline.tracking.tracker import NullTracker
from pipeline.train import Training

Keep = Callable[[str, Split], Split]


def first(count: int) -> Keep:
    """Return a function that leaves `count` training samples and none to validate on."""
    return lambda name, split: Split(split.x[: count if name == "train" else 0], split.y[: count if name == "train" else 0])


class _Unsaved(Training):
    """A training that saves nothing."""

    def save_checkpoint(self) -> None: ...


def build(
    flags: Mapping[str, str],
    folder: Path,
    *,
    tracker: NullTracker | None = None,
    run_id: str = "",
    keep: Keep = lambda name, split: split,
    saves: bool = True,
    ranks: Ranks | None = None,
) -> Training:
    """Return a training of `flags` in a run folder, new or not."""
    keep_freed_memory()
    flush_denormals()
    compute_alike()
    config = resolve(flags)
    data = prepare(config)
    ranks = ranks or Ranks(0, 0, 1, torch.device(resolve_device(config.device)))
    asked = Run(folder=folder, config=config, mlflow_run_id="", git_commit="", data=read_spec(data))
    config, _ = precision.choose(asked, open_split(data, "train"), ranks)  # where it is auto
    if run_folder.is_run_dir(folder):
        run = Run.open(folder, check=False)
    else:
        run = Run.create(folder, config=config, mlflow_run_id=run_id, git_commit="", data=read_spec(data))
    train, val = (keep(name, open_split(data, name)) for name in ("train", "val"))
    return (Training if saves else _Unsaved)(run, ranks, tracker or NullTracker(), train, val)
