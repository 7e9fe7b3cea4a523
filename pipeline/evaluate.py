"""The evaluation pass: each sample once, on whatever number of ranks, and the report and pictures of a test split.

Evaluation is always in float32, whatever the training's precision: that is what the exported artifacts compute.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.wrapper import Model
from pipeline import answers, distributed, files, manifest
from pipeline.config import RunConfig
from pipeline.data.loader import Split, evaluation_split, open_split, shard_slice
from pipeline.distributed import Ranks
from pipeline.errors import Failure
from pipeline.losses import loss_divisor
from pipeline.metrics import flat_metrics
from pipeline.run import Run
from pipeline.task import Task

if TYPE_CHECKING:
    from pipeline.task import Array, LossSum

_PREFIXES = {"test": "test", "train": "train/final"}  # of the metrics of a split's evaluation
_BATCH = 1000  # samples in one forward pass, at most
_VALUES = 2**24  # of their input, at most: the activations of a large network take a hundred times as much


@torch.no_grad()
def _forward(model: Model, split: Split, ranks: Ranks) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield scores, features and targets of this rank's share, on its device; at least one, maybe empty, batch."""
    model.eval()
    part = shard_slice(len(split), ranks.rank, ranks.world_size)
    size = min(_BATCH, max(1, _VALUES // max(1, split.x[:1].numel())))
    for x, y in zip(split.x[part].split(size), split.y[part].split(size), strict=True):
        scores, features = model(x.to(ranks.device))
        yield scores, features, y.to(ranks.device)


def measure(model: Model, split: Split, loss: LossSum, ranks: Ranks, *, config: RunConfig, task: Task) -> dict[str, float]:
    """Return loss and accuracy (or rmse) over all ranks' shares of a split: sums are all-reduced, then divided."""
    return _sum_up(_forward(model, split, ranks), len(split), loss, ranks, config=config, task=task)


def _sum_up(
    batches: Iterable[tuple[Tensor, Tensor, Tensor]], count: int, loss: LossSum, ranks: Ranks, *, config: RunConfig, task: Task
) -> dict[str, float]:
    totals = torch.zeros(3, dtype=torch.float64, device=ranks.device)
    for scores, _, target in batches:
        totals += torch.stack([loss(scores, target).double(), task.metric_sum(scores, target).double(),
                               torch.tensor(len(target), device=ranks.device)])  # fmt: skip
    total_loss, total, seen = distributed.all_reduce_sum(totals).tolist()
    assert seen == count
    return {"loss": total_loss / loss_divisor(config.loss, count), task.metric: task.metric_value(total, count)}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What an evaluation found: for the samples of `split`, scores (N, K), features (N, F) and the report, on the CPU."""

    run: Run
    model: Model
    data: Path  # the prepared folder
    name: str  # of the split
    split: Split
    scores: Tensor
    features: Tensor
    report: Mapping[str, Any]
    formula: str = ""

    @property
    def metrics(self) -> dict[str, float]:
        """The report's numbers under their names in MLflow."""
        return flat_metrics(self.report, _PREFIXES[self.name])

    @property
    def num_features(self) -> int:
        """How many numbers a sample has; 0 for an image."""
        return 0 if self.run.data.is_image else self.split.x.shape[1]

    @cached_property
    def splits(self) -> dict[str, tuple[Array, Array]]:
        """Samples (N, ...) and targets of each split that has any."""
        splits = ((name, open_split(self.data, name)) for name in self.run.data.counts)
        return {name: (split.x.numpy(), split.y.numpy()) for name, split in splits if len(split)}


def evaluate_run(run: Run, ranks: Ranks, data: Path) -> Evaluation:
    """Evaluate the best weights; rank 0 writes test.json, and what the model gave for each sample.

    `data` is the prepared folder. Without a test split there the samples are those of the training: the file is train.json,
    and the metrics are `train/final/...`. Every rank must call it; the weights are read by rank 0 and sent to the others.
    Raises Failure where the loss is not finite.
    """
    state = distributed.broadcast(run.load_model().state_dict() if ranks.is_main else None)
    model = run.build_model()
    model.load_state_dict(state)
    model.to(ranks.device)
    name, c, task = evaluation_split(data), run.config, run.task
    split = open_split(data, name)
    loss = task.loss_sum(run.loss, args=c.loss_args, network=model.network, unit=model.target_unit)
    batches = list(_forward(model, split, ranks))
    mean_loss = _sum_up(batches, len(split), loss, ranks, config=c, task=task)["loss"]
    if not math.isfinite(mean_loss):
        raise Failure(
            f"loss={mean_loss} on the {name} samples: the model that this training ended with gives no finite outputs. "
            f"Lower --lr (now {c.lr:g}), or limit the gradient (--max_grad_norm 1)."
        )
    scores, features = (distributed.concatenate(torch.cat([b[k] for b in batches])) for k in (0, 1))
    report = task.report(scores, split.y, classes=run.data.classes, targets=run.data.targets) | {"loss": mean_loss}
    formula = _formula(model.cpu())
    if ranks.is_main:
        files.write_json(run.folder / f"{name}.json", report)
        kept = {"scores": scores, "target": split.y} | ({"decided": task.decide(scores)} if task.has_decisions else {})
        answers.keep(run, {name: values.numpy() for name, values in kept.items()}, data=data, split=name)
        if formula:
            with files.atomic(run.folder / manifest.FORMULA) as path:
                path.write_text(formula + "\n")
    return Evaluation(
        run=run, model=model, data=data, name=name, split=split, scores=scores, features=features, report=report,
        formula=formula,
    )  # fmt: skip


def _formula(model: Model) -> str:
    from models.polynomial import Polynomial, formula

    return formula(model) if isinstance(model.network, Polynomial) else ""
