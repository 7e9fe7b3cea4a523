"""The pictures of an evaluation: arrays in, a matplotlib figure out, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, to_rgb
from matplotlib.figure import Figure

from pipeline.plots.style import (
    LETTERS_PER_INCH,
    MARKERS,
    NO_TICKS,
    Array,
    Series,
    class_colors,
    draw_points,
    note,
    point_legend,
    short_name,
    show_image,
)

MAX_TILES = 25
MAX_COUNTS = 30  # classes, beyond which the cells of a confusion matrix are too small for their counts
MAX_TSNE_SAMPLES = 500
GRID = 200  # points along each axis of the decision regions
_MARGIN = 0.15  # around them, so that a point on the edge is not cut
_LEGEND_ROWS = 25
_WRONG = "#a01010"


def confusion_matrix(counts: Array, *, classes: Sequence[str], split: str) -> Figure:
    """Draw counts (C, C), rows true and columns predicted; a cell's color is its share of the true class."""
    num_classes = len(classes)
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    size = min(max(3.2, 0.48 * num_classes), 16.0)
    figure = Figure(figsize=(size + 1.8, size + 1), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    if num_classes <= MAX_COUNTS:
        for i, j in np.ndindex(num_classes, num_classes):
            color = "white" if shares[i, j] > 0.55 else "black" if counts[i, j] else "0.5"
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=color, fontsize=9)
    names = [short_name(name) for name in classes]
    fits = max(map(len, names)) * num_classes < size * LETTERS_PER_INCH
    slanted: dict[str, Any] = {} if fits else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    fontsize = 10 if num_classes <= MAX_COUNTS else 7
    axes.set_xticks(range(num_classes), names, fontsize=fontsize, **slanted)
    axes.set_yticks(range(num_classes), names, fontsize=fontsize)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(f"{np.trace(counts)} of {counts.sum()} {split} samples right", fontsize=11)
    return figure


def top_losses(
    images: Array, *, true: Array, predicted: Array, probability: Array, loss: Array, classes: Sequence[str], title: str
) -> Figure:
    """Draw the first 25 of images (K, C, H, W) uint8, with what each is and was taken for, in red where that is wrong.

    `true` and `predicted` (K,) are class numbers, `probability` (K,) that of the true class, in [0, 1].
    """
    num_tiles = min(len(images), MAX_TILES)
    num_columns = min(num_tiles, 5)
    num_rows = -(-num_tiles // num_columns)
    figure = Figure(figsize=(max(2.2 * num_columns, 4.4), 2.7 * num_rows + 0.7), layout="constrained")
    figure.suptitle(title)
    grid = figure.subplots(num_rows, num_columns, squeeze=False, subplot_kw=NO_TICKS).ravel()
    for axes, image, t, k, p, value in zip(grid, images, true, predicted, probability, loss, strict=False):
        show_image(axes, image)
        names = [short_name(classes[i]) for i in (t, k)]
        text = f"true: {names[0]}\npredicted: {names[1]}\nloss {value:.3g}, p(true) {p:.3g}"
        axes.set_title(text, fontsize=8, color="black" if t == k else _WRONG, parse_math=False)
    for axes in grid[num_tiles:]:
        axes.set_axis_off()
    return figure


def roc_pr(margin: Array, *, is_positive: Array, positive: str, split: str) -> Figure:
    """Draw the ROC and the precision-recall curve of a ranking `margin` (N,) of samples that belong to a class or not.

    The decision is at a margin of 0. `is_positive` (N,) is bool, `positive` the name of that class.
    """
    from sklearn import metrics

    if len(np.unique(is_positive)) < 2:
        return note(f"ROC and precision-recall need {split} samples of both classes.")
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    roc, pr = figure.subplots(1, 2)
    blue, orange = class_colors(2)
    share, said = is_positive.mean(), margin > 0
    right = (said & is_positive).sum()
    recall, false_alarms = right / is_positive.sum(), (said & ~is_positive).sum() / (~is_positive).sum()
    x, y, _ = metrics.roc_curve(is_positive, margin, drop_intermediate=False)
    roc.plot(x, y, color=blue, linewidth=2, label=f"AUC {metrics.roc_auc_score(is_positive, margin):.4f}")
    roc.plot([0, 1], [0, 1], "--", color="0.6", linewidth=1, label="chance")
    roc.plot([false_alarms], [recall], "o", color=orange, label="decision taken", zorder=3)
    y, x, _ = metrics.precision_recall_curve(is_positive, margin)
    average = metrics.average_precision_score(is_positive, margin)
    pr.plot(x, y, color=blue, linewidth=2, drawstyle="steps-post", label=f"average precision {average:.4f}")
    pr.axhline(share, linestyle="--", color="0.6", linewidth=1, label="share of that class")
    if said.any():
        pr.plot([recall], [right / said.sum()], "o", color=orange, label="decision taken", zorder=3)
    roc.set(xlabel="false positive rate", ylabel="true positive rate (recall)", title="ROC")
    pr.set(xlabel="recall", ylabel="precision", title="Precision and recall")
    for axes in (roc, pr):
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right" if axes is roc else "lower left")
    figure.suptitle(f"{len(margin)} {split} samples, {is_positive.sum()} of them {positive}, the positive class")
    return figure


def tsne(features: Array, *, labels: Array, classes: Sequence[str], of: str, seed: int = 0) -> Figure:
    """Draw 500 of features (N, D) float32 in the plane, as class names or, where those are long, as points.

    `of` says what they are: "test samples". van der Maaten and Hinton, "Visualizing data using t-SNE", JMLR 9, 2008. Takes
    about 5 s for 500 samples.
    """
    features, labels = features[:MAX_TSNE_SAMPLES], labels[:MAX_TSNE_SAMPLES]
    if len(features) < 4:
        return note(f"t-SNE needs more than {len(features)} samples.")
    if not np.ptp(features, axis=0).any():  # scikit-learn divides by zero here and crashes the process
        return note("All samples have the same features.")
    points = _embed(features, seed=seed)
    figure = Figure(figsize=(7.5, 6.5), layout="constrained")
    axes = figure.subplots()
    # Darkened, for some are drawn as letters on white.
    colors = np.array([to_rgb(c) for c in class_colors(len(classes))]) * 0.8
    if max(map(len, classes)) <= 2:
        axes.update_datalim(points)
        axes.autoscale_view()
        style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 10, "fontweight": "bold"}
        for (x, y), label in zip(points, labels, strict=True):
            axes.text(x, y, classes[label], color=colors[label], **style)
    else:
        present = np.unique(labels)
        for k in present:
            x, y = points[labels == k].T
            marker = MARKERS[k // 10 % len(MARKERS)]  # the colors repeat after ten classes
            axes.scatter(x, y, s=22, color=colors[k], marker=marker, label=short_name(classes[k]))
        num_columns = -(-len(present) // _LEGEND_ROWS)
        column = max(len(short_name(classes[k])) for k in present) / LETTERS_PER_INCH + 0.5
        figure.set_figwidth(6 + column * num_columns)
        axes.legend(
            loc="upper left", bbox_to_anchor=(1, 1), frameon=False, ncols=num_columns, fontsize=10 if num_columns == 1 else 8
        )
    axes.set_xlabel("t-SNE dimension 1")
    axes.set_ylabel("t-SNE dimension 2")
    axes.set_title(f"t-SNE of {len(features)} {of}", fontsize=11)
    return figure


def scatter(splits: Mapping[str, Series], *, classes: Sequence[str]) -> Figure:
    """Draw points x (N, 2) of classes y (N,): color tells the class, marker the split."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    draw_points(axes, splits, classes=classes)
    point_legend(axes, splits, classes=classes)
    axes.set_title("Samples", fontsize=11)
    return figure


def decision_regions(predict: Callable[[Array], Array], splits: Mapping[str, Series], *, classes: Sequence[str]) -> Figure:
    """Draw what `predict` gives over [-pi, pi]^2, or wider where points lie outside, and the points.

    `predict` is called once with (40000, 2) float32 and returns (40000,): floats are probabilities of class
    1, integers are class numbers.
    """
    points = np.concatenate([x for x, _ in splits.values()])
    low = (points - _MARGIN).min(axis=0, initial=-np.pi)
    high = (points + _MARGIN).max(axis=0, initial=np.pi)
    horizontal, vertical = (np.linspace(low[k], high[k], GRID) for k in (0, 1))
    grid = np.stack(np.meshgrid(horizontal, vertical), axis=-1).astype(np.float32)  # (200, 200, 2), rows go up
    predicted = predict(grid.reshape(-1, 2)).reshape(GRID, GRID)
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots()
    colors = class_colors(len(classes))
    if np.issubdtype(predicted.dtype, np.integer):
        style: dict[str, Any] = {
            "cmap": ListedColormap(colors),
            "vmin": 0,
            "vmax": len(classes) - 1,
            "alpha": 0.35,
        }
        axes.pcolormesh(horizontal, vertical, predicted, **style)
    else:
        shades = LinearSegmentedColormap.from_list("two classes", [colors[0], "white", colors[1]])
        mesh = axes.pcolormesh(horizontal, vertical, predicted, cmap=shades, vmin=0, vmax=1, alpha=0.6)
        figure.colorbar(mesh, ax=axes, label=f"probability of {classes[1]}", location="bottom", shrink=0.6)
        if predicted.min() < 0.5 < predicted.max():
            axes.contour(horizontal, vertical, predicted, levels=[0.5], colors="black", linewidths=1.5)
    draw_points(axes, splits, classes=classes)
    point_legend(axes, splits, classes=classes)
    axes.set_title("Decision regions", fontsize=11)
    return figure


def fitted_curve(x: Array, y: Array, *, predicted: Array, split: str, formula: str = "") -> Figure:
    """Draw targets (N, 1) and predictions (N, 1) over x (N, 1), in any order; below, what the fit leaves."""
    order = np.argsort(x[:, 0], kind="stable")
    x, y, predicted = x[order, 0], y[order, 0], predicted[order, 0]  # each (N,)
    figure = Figure(figsize=(8, 6), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    data, fit = class_colors(2)
    top.plot(x, y, ".", color=data, markersize=5, label=f"{split} data")
    top.plot(x, predicted, color=fit, linewidth=2, label="fit")
    top.set_ylabel("y")
    top.set_title(formula, fontsize=11, loc="right")
    top.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    bottom.axhline(0, color="0.6", linewidth=1)
    bottom.plot(x, y - predicted, ".", color="0.2", markersize=2)
    bottom.set_ylabel("data - fit")
    bottom.set_xlabel("x")
    for axes in (top, bottom):
        axes.grid(alpha=0.3)
    return figure


def _embed(features: Array, *, seed: int) -> Array:
    """Return t-SNE coordinates (N, 2) of features (N, D)."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    init = "pca" if features.shape[1] > 1 else "random"
    perplexity = min(30.0, (len(features) - 1) / 3)
    with threadpool_limits(1):  # more threads are slower here, and their number changes the result
        return TSNE(perplexity=perplexity, init=init, random_state=seed).fit_transform(features)
