"""Which pictures a run gets: `PICTURES` names each of them, and a task says which are its own.

A new picture is a function of an `Evaluation` here, an entry of `PICTURES`, and its name in `Task.pictures`. It gives None
where it does not fit the data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure

from pipeline import manifest
from pipeline.evaluate import Evaluation
from pipeline.plots import evaluation, standalone
from pipeline.plots.curves import curves
from pipeline.plots.style import Array, save
from pipeline.run import parse_rows

if TYPE_CHECKING:
    pass


def draw(found: Evaluation) -> None:
    """Draw the task's pictures that fit the data into the run's plots/."""
    c, folder = found.run.config, found.run.folder
    for name in found.run.task.pictures:
        if figure := PICTURES[name](found):
            save(
                figure,
                folder / "plots" / f"{name}.png",
                about=f"{Path(c.model).name} on {found.run.data.name}, run {folder.name}",
            )


def _curves(found: Evaluation) -> Figure:
    c, path = found.run.config, found.run.folder / manifest.METRICS
    return curves(parse_rows(path.read_bytes(), path), monitor=c.monitor, smoothed=c.label_smoothing > 0)


def _fitted_curve(found: Evaluation) -> Figure | None:
    if found.num_features != 1 or found.scores.shape[1] != 1:
        return None
    x, y = found.split.x.numpy(), found.split.y.numpy()
    return evaluation.fitted_curve(x, y, predicted=found.scores.numpy(), split=found.name, formula=found.formula)


def _confusion_matrix(found: Evaluation) -> Figure:
    return evaluation.confusion_matrix(
        np.array(found.report["confusion_matrix"]), classes=found.run.data.classes, split=found.name
    )


def _tsne(found: Evaluation) -> Figure:
    of, seed = f"{found.name} samples, by the features", found.run.config.seed
    return evaluation.tsne(
        found.features.numpy(), labels=found.split.y.numpy(), classes=found.run.data.classes, of=of, seed=seed
    )


def _roc_pr(found: Evaluation) -> Figure | None:
    if len(found.run.data.classes) != 2:
        return None
    first, last = found.scores[:, 0], found.scores[:, -1]
    margin = (last - first if found.scores.shape[1] == 2 else last).numpy()
    is_positive = found.split.y.numpy() == 1
    return evaluation.roc_pr(margin, is_positive=is_positive, positive=found.run.data.classes[1], split=found.name)


def _top_losses(found: Evaluation) -> Figure | None:
    """Draw the images with the highest loss (that of the training, without smoothed labels), right or wrong."""
    if found.num_features:
        return None
    kind, scores, split = found.run.task, found.scores, found.split
    loss = kind.loss_sum(found.run.loss, network=found.model.network, unit=found.model.target_unit)
    each = torch.vmap(lambda score, target: loss(score[None], target[None]))(scores, split.y)  # (N,), at once
    probabilities, predicted = kind.probabilities(scores), kind.decide(scores)
    num_wrong = int((predicted != split.y).sum())
    top = each.argsort(descending=True, stable=True)[: evaluation.MAX_TILES]
    return evaluation.top_losses(
        split.x[top].numpy(),
        true=split.y[top].numpy(),
        predicted=predicted[top].numpy(),
        probability=probabilities[top, split.y[top]].numpy(),
        loss=each[top].numpy(),
        classes=found.run.data.classes,
        title=f"Highest losses of the {len(split)} {found.name} samples, {num_wrong} of which are wrong (in red)",
    )


def _activations(found: Evaluation) -> Figure | None:
    return standalone.activations() if found.num_features == 2 else None


def _scatter(found: Evaluation) -> Figure | None:
    return evaluation.scatter(found.splits, classes=found.run.data.classes) if found.num_features == 2 else None


def _decision_regions(found: Evaluation) -> Figure | None:
    if found.num_features != 2:
        return None
    kind = found.run.task

    def predict(points: Array) -> Array:
        with torch.no_grad():
            scores = found.model(torch.from_numpy(points))[0]
        return (kind.probabilities(scores)[:, 1] if len(found.run.data.classes) == 2 else kind.decide(scores)).numpy()

    return evaluation.decision_regions(predict, found.splits, classes=found.run.data.classes)


PICTURES: Mapping[str, Callable[[Evaluation], Figure | None]] = {
    "curves": _curves,
    "fitted_curve": _fitted_curve,
    "confusion_matrix": _confusion_matrix,
    "tsne": _tsne,
    "roc_pr": _roc_pr,
    "top_losses": _top_losses,
    "activations": _activations,
    "scatter": _scatter,
    "decision_regions": _decision_regions,
}
