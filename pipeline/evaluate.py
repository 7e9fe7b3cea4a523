"""The evaluation pass: each sample once, on whatever number of ranks, and the report and pictures of a test split.

Evaluation is always in float32, whatever the training's precision: that is what the exported artifacts compute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.wrapper import Model
from pipeline import distributed, metrics
from pipeline import run as run_folder
from pipeline.config import Failure, RunConfig
from pipeline.data.catalog import DATASETS
from pipeline.data.loader import Split, evaluation_split, open_split, shard_slice
from pipeline.data.prepare import read_manifest
from pipeline.distributed import Ranks
from pipeline.losses import LossSum, loss_divisor, loss_sum
from pipeline.run import Run

FIGURES = {"test": "test", "train": "train/final"}  # what the figures of a split's evaluation are called before the slash
_BATCH = 1000  # samples in one forward pass


@torch.no_grad()
def _forward(model: Model, split: Split, ranks: Ranks) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield scores, features and targets of this rank's share, on its device; at least one, maybe empty, batch."""
    model.eval()
    part = shard_slice(len(split), ranks.rank, ranks.world_size)
    for x, y in zip(split.x[part].split(_BATCH), split.y[part].split(_BATCH), strict=True):
        scores, features = model(x.to(ranks.device))
        yield scores, features, y.to(ranks.device)


def measure(model: Model, split: Split, loss: LossSum, ranks: Ranks, *, config: RunConfig, task: str) -> dict[str, float]:
    """Return loss and accuracy (or rmse) over all ranks' shares of a split: sums are all-reduced, then divided."""
    return _sum_up(_forward(model, split, ranks), len(split), loss, ranks, config=config, task=task)


def _sum_up(
    batches: Iterable[tuple[Tensor, Tensor, Tensor]], count: int, loss: LossSum, ranks: Ranks, *, config: RunConfig, task: str
) -> dict[str, float]:
    totals = torch.zeros(3, dtype=torch.float64, device=ranks.device)
    for scores, _, target in batches:
        totals += torch.stack([loss(scores, target).double(), metrics.merit_sum(task, scores, target).double(),
                               torch.tensor(len(target), device=ranks.device)])  # fmt: skip
    total_loss, total_merit, seen = distributed.all_reduce_sum(totals).tolist()
    assert seen == count
    return figures_of(total_loss, total_merit, count, config=config, task=task)


def figures_of(loss: float, merit: float, count: int, *, config: RunConfig, task: str) -> dict[str, float]:
    """Return loss and accuracy (or rmse) for their sums over `count` samples."""
    return {"loss": loss / loss_divisor(config.loss, count), metrics.merit_name(task): metrics.merit(task, merit, count)}


def evaluate(run: Run, ranks: Ranks, data: Path) -> tuple[dict[str, float], Callable[[], None]]:
    """Evaluate the best weights; rank 0 writes test.json. Return the figures, and what draws plots/.

    `data` is the prepared folder. Without a test split there the samples are those of the training: the file is train.json,
    and the figures are `train/final/...`. Every rank must call it; the weights are read by rank 0 and sent to the others. The
    pictures take longer than the figures, and are left to rank 0 to draw when nobody waits for the proof any more. Raises
    Failure where the loss is not finite.
    """
    state = distributed.broadcast(run.load_model().state_dict() if ranks.is_main else None)
    model = run.build_model()
    model.load_state_dict(state)
    model.to(ranks.device)
    name, c = evaluation_split(data), run.config
    split = open_split(data, name)
    loss = loss_sum(c.loss, task=run.task, network=model.network)
    batches = list(_forward(model, split, ranks))
    figures = {"loss": _sum_up(batches, len(split), loss, ranks, config=c, task=run.task)["loss"]}
    if not math.isfinite(figures["loss"]):
        raise Failure(
            f"loss={figures['loss']} on the {name} samples: the model that this training ended with gives no finite answers. "
            f"Lower --lr (now {c.lr:g}), or limit the gradient (--max_grad_norm 1)."
        )
    scores, features = (distributed.concatenate(torch.cat([b[k] for b in batches])) for k in (0, 1))
    if run.task == "regression":
        report = metrics.regression_report(scores, split.y)
    else:
        report = metrics.classification_report(scores, split.y, task=run.task, classes=DATASETS[c.dataset].classes)
    report |= figures
    if ranks.is_main:
        run_folder.write_json(run.folder / f"{name}.json", report)
        if text := _formula(model.cpu()):
            with run_folder.atomic(run.folder / "formula.txt") as path:
                path.write_text(text + "\n")
    draw = partial(_draw, run, model, data, split, scores, features, report, name)
    return metrics.flat_figures(report, FIGURES[name]), draw


def _formula(model: Model) -> str:
    from models.polynomial import Polynomial, formula

    return formula(model) if isinstance(model.network, Polynomial) else ""


def _draw(
    run: Run, model: Model, data: Path, split: Split, scores: Tensor, features: Tensor, report: dict[str, Any], name: str
) -> None:
    """Draw every picture that fits the task and the data into plots/; `name` is that of `split`."""
    from pipeline.plots import evaluation, standalone
    from pipeline.plots.curves import curves

    folder, spec, c = run.folder / "plots", DATASETS[run.config.dataset], run.config
    rows = run_folder.parse_rows((run.folder / run_folder.METRICS).read_bytes(), run.folder / run_folder.METRICS)
    figures = {"curves": curves(rows, monitor=c.monitor, smoothed=c.label_smoothing > 0)}
    if run.task == "regression":
        if split.x.shape[1] == 1:
            figures["fitted_curve"] = evaluation.fitted_curve(
                split.x.numpy(), split.y.numpy(), predicted=scores.numpy(), split=name, formula=_formula(model)
            )
    else:
        labels, classes = split.y.numpy(), spec.classes
        counts = np.array(report["confusion_matrix"])
        figures["confusion_matrix"] = evaluation.confusion_matrix(counts, classes=classes, split=name)
        of = f"{name} samples, by the features"
        figures["tsne"] = evaluation.tsne(features.numpy(), labels=labels, classes=classes, of=of, seed=c.seed)
        if len(classes) == 2:
            margin = (scores[:, 0] if run.task == "binary" else scores[:, 1] - scores[:, 0]).numpy()
            figures["roc_pr"] = evaluation.roc_pr(margin, is_positive=labels == 1, positive=classes[1], split=name)
        if spec.is_image:
            figures["top_losses"] = _top_losses(run, model, split, scores, name)
        if not spec.is_image and split.x.shape[1] == 2:
            parts = ((n, open_split(data, n)) for n in read_manifest(data)["splits"])
            splits = {n: (s.x.numpy(), s.y.numpy()) for n, s in parts if len(s)}

            def predict(points: Any) -> Any:
                with torch.no_grad():
                    return metrics.probabilities(run.task, model(torch.from_numpy(points))[0])[:, 1].numpy()

            figures["activations"] = standalone.activations()
            figures["scatter"] = evaluation.scatter(splits, classes=classes)
            figures["decision_regions"] = evaluation.decision_regions(predict, splits, classes=classes)
    for picture, figure in figures.items():
        evaluation.save(figure, folder / f"{picture}.png", about=f"{c.model} on {c.dataset}, run {run.folder.name}")


def _top_losses(run: Run, model: Model, split: Split, scores: Tensor, name: str) -> Any:
    """Draw the samples with the highest loss (that of the training, without smoothed labels), right or wrong."""
    from pipeline.plots import evaluation

    loss = loss_sum(run.config.loss, task=run.task, network=model.network)
    each = torch.vmap(lambda score, target: loss(score[None], target[None]))(scores, split.y)  # (N,), at once
    probabilities, predicted = metrics.probabilities(run.task, scores), metrics.predicted_labels(run.task, scores)
    num_wrong = int((predicted != split.y).sum())
    top = each.argsort(descending=True, stable=True)[: evaluation.MAX_TILES]
    return evaluation.top_losses(
        split.x[top].numpy(),
        true=split.y[top].numpy(),
        predicted=predicted[top].numpy(),
        probability=probabilities[top, split.y[top]].numpy(),
        loss=each[top].numpy(),
        classes=DATASETS[run.config.dataset].classes,
        title=f"Highest losses of the {len(split)} {name} samples, {num_wrong} of which are wrong (in red)",
    )
