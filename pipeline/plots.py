"""The pictures of a run: arrays in, a matplotlib figure out. Nothing is written but by `save`.

Figures are built without pyplot, so there is no global state, no window and nothing to close. Pictures
that need no run are in `pipeline.pictures`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from pipeline.store import atomic

Array = NDArray[Any]
Part = tuple[Array, Array]

MAX_TILES = 25
MAX_TSNE_SAMPLES = 500
GRID = 200  # points along each axis of the decision regions
_MARGIN = 0.15  # around them, so that a point on the edge is not cut
_DPI = 120
_MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
_Best = Callable[[Array], Any] | None
_PANELS: tuple[tuple[str, tuple[str, ...], _Best], ...] = (  # label, series, which validation value is best
    ("loss", ("train/loss", "val/loss"), np.min),
    ("accuracy", ("train/accuracy", "val/accuracy"), np.max),
    ("RMSE", ("train/rmse", "val/rmse"), np.min),
    ("learning rate", ("lr",), None),
)


def save(figure: Figure, path: Path) -> None:
    """Write the figure as PNG, atomically. The same picture gives the same bytes, also when saved again."""
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None})
    figure.set_layout_engine("none")  # run again, it would start from its own result and move things a little


def curves(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw loss, metric and learning rate over optimiser steps; the best validation point of each is marked.

    `rows` are the lines of metrics.jsonl: each has `step` and some of `train/loss`, `val/loss`,
    `train/accuracy`, `val/accuracy`, `train/rmse`, `val/rmse` and `lr`. The learning rate is left out where
    it never changes.
    """
    panels = []
    for label, names, best in _PANELS:
        series = {name: _series(rows, name) for name in names if any(name in row for row in rows)}
        if series and (best or len(np.unique(series["lr"][1])) > 1):
            panels.append((label, series, best))
    if not panels:
        return _note("No loss was logged.")
    figure = Figure(figsize=(8, 0.6 + 2.9 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), squeeze=False, sharex=True)[:, 0]
    for axes, (label, series, best) in zip(grid, panels, strict=True):
        _draw_series(axes, series, best=best)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    grid[-1].set_xlabel("optimiser step")
    whole = MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1)
    grid[-1].xaxis.set_major_locator(whole)
    figure.align_ylabels()
    return figure


def confusion_matrix(counts: Array, *, classes: Sequence[str]) -> Figure:
    """Draw counts (C, C), rows true and columns predicted; a cell's colour is its share of the true class."""
    num_classes = len(classes)
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(totals, 1)
    size = max(3.2, 0.48 * num_classes)
    figure = Figure(figsize=(size + 1.8, size + 1), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    for i, j in np.ndindex(num_classes, num_classes):
        color = "white" if shares[i, j] > 0.55 else "black" if counts[i, j] else "0.5"
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=color, fontsize=9)
    long = max(map(len, classes)) > 3
    slanted: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(num_classes), classes, **(slanted if long else {}))
    axes.set_yticks(range(num_classes), classes)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(f"{np.trace(counts)} of {counts.sum()} right")
    return figure


def wrongest(images: Array, *, true: Array, predicted: Array, confidence: Array, classes: Sequence[str]) -> Figure:
    """Draw the first 25 of images (K, C, H, W) uint8, titled with classes (K,) and confidence (K,) in [0, 1].

    `true` and `predicted` are class numbers. Without an image, the figure says that none was wrong.
    """
    if not len(images):
        return _note("No test image was wrong.")
    num_tiles = min(len(images), MAX_TILES)
    num_columns = min(num_tiles, 5)
    num_rows = -(-num_tiles // num_columns)
    separator, height = (",\n", 2.4) if max(map(len, classes)) > 3 else (", ", 2.2)
    figure = Figure(figsize=(max(1.9 * num_columns, 2.4), height * num_rows), layout="constrained")
    grid = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes, image, t, p, c in zip(grid, images, true, predicted, confidence, strict=False):
        show_image(axes, image)
        axes.set_title(f"true {classes[t]}{separator}said {classes[p]} ({100 * c:.0f} %)", fontsize=9)
    for axes in grid[num_tiles:]:
        axes.set_axis_off()
    return figure


def tsne(features: Array, *, labels: Array, classes: Sequence[str], seed: int = 0) -> Figure:
    """Draw 500 of features (N, D) float32 in the plane, as class names or, where those are long, as points.

    van der Maaten and Hinton, "Visualizing data using t-SNE", JMLR 9, 2008. Takes about 5 s for 500 samples.
    """
    features, labels = features[:MAX_TSNE_SAMPLES], labels[:MAX_TSNE_SAMPLES]
    if len(features) < 4:
        return _note(f"t-SNE needs more than {len(features)} samples.")
    if not np.ptp(features, axis=0).any():  # scikit-learn divides by zero here and crashes the process
        return _note("All samples have the same features.")
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
        for k in np.unique(labels):
            x, y = points[labels == k].T
            marker = _MARKERS[k // 10 % len(_MARKERS)]  # the colours repeat after ten classes
            axes.scatter(x, y, s=22, color=colors[k], marker=marker, label=classes[k])
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    axes.set_xlabel("t-SNE dimension 1")
    axes.set_ylabel("t-SNE dimension 2")
    axes.set_title(f"t-SNE of {len(features)} samples")
    return figure


def scatter(splits: Mapping[str, Part], *, classes: Sequence[str], title: str = "") -> Figure:
    """Draw points x (N, 2) of classes y (N,): colour tells the class, marker the split."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    draw_points(axes, splits, classes=classes)
    point_legend(axes, splits, classes=classes)
    axes.set_title(title)
    return figure


def decision_regions(predict: Callable[[Array], Array], splits: Mapping[str, Part], *, classes: Sequence[str]) -> Figure:
    """Draw what `predict` answers over [-pi, pi]^2, or wider where points lie outside, and the points.

    `predict` is called once with (40000, 2) float32 and returns (40000,): floats are probabilities of class
    1, integers are class numbers.
    """
    points = np.concatenate([x for x, _ in splits.values()])
    low = (points - _MARGIN).min(axis=0, initial=-np.pi)
    high = (points + _MARGIN).max(axis=0, initial=np.pi)
    horizontal, vertical = (np.linspace(low[k], high[k], GRID) for k in (0, 1))
    grid = np.stack(np.meshgrid(horizontal, vertical), axis=-1).astype(np.float32)  # (200, 200, 2), rows go up
    answers = predict(grid.reshape(-1, 2)).reshape(GRID, GRID)
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots()
    colors = class_colors(len(classes))
    if np.issubdtype(answers.dtype, np.integer):
        style: dict[str, Any] = {
            "cmap": ListedColormap(colors),
            "vmin": 0,
            "vmax": len(classes) - 1,
            "alpha": 0.35,
        }
        axes.pcolormesh(horizontal, vertical, answers, **style)
    else:
        shades = LinearSegmentedColormap.from_list("two classes", [colors[0], "white", colors[1]])
        mesh = axes.pcolormesh(horizontal, vertical, answers, cmap=shades, vmin=0, vmax=1, alpha=0.6)
        figure.colorbar(mesh, ax=axes, label=f"probability of {classes[1]}", location="bottom", shrink=0.6)
        if answers.min() < 0.5 < answers.max():
            axes.contour(horizontal, vertical, answers, levels=[0.5], colors="black", linewidths=1.5)
    draw_points(axes, splits, classes=classes)
    point_legend(axes, splits, classes=classes)
    axes.set_title("Decision regions")
    return figure


def fitted_curve(x: Array, y: Array, *, predicted: Array, formula: str = "") -> Figure:
    """Draw targets (N, 1) and predictions (N, 1) over x (N, 1), in any order; below, what the fit leaves."""
    order = np.argsort(x[:, 0], kind="stable")
    x, y, predicted = x[order, 0], y[order, 0], predicted[order, 0]  # each (N,)
    figure = Figure(figsize=(8, 6), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    data, fit = class_colors(2)
    top.plot(x, y, ".", color=data, markersize=5, label="data")
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


def class_colors(num_classes: int) -> list[Any]:
    """Return a colour for each class, fit for colour-blind readers (Petroff 2021); after ten they repeat."""
    palette = cycle(matplotlib.color_sequences["petroff10"])
    return [next(palette) for _ in range(num_classes)]


def draw_points(axes: Axes, splits: Mapping[str, Part], *, classes: Sequence[str]) -> None:
    """Draw points x (N, 2) of classes y (N,) into `axes`, with equal scales."""
    colors = np.array(class_colors(len(classes)))
    for (x, y), marker in zip(splits.values(), _MARKERS, strict=False):
        axes.scatter(x[:, 0], x[:, 1], c=colors[y], marker=marker, s=22, edgecolors="black", linewidths=0.4)
    axes.set_aspect("equal")
    axes.set_xlabel("feature 1")
    axes.set_ylabel("feature 2")


def point_legend(axes: Axes, splits: Mapping[str, Part], *, classes: Sequence[str]) -> None:
    """List the classes by colour, and the splits by marker if there are several, to the right of `axes`."""
    sizes = {name: len(x) for name, (x, _) in splits.items() if len(splits) > 1}
    entries = [("o", color, name) for color, name in zip(class_colors(len(classes)), classes, strict=True)]
    for (name, size), marker in zip(sizes.items(), _MARKERS, strict=False):
        if size:
            entries.append((marker, "0.75", f"{name} ({size})"))
    edge: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "black", "markeredgewidth": 0.4}
    handles = [Line2D([], [], marker=m, color=color, label=label, **edge) for m, color, label in entries]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def show_image(axes: Axes, image: Array) -> None:
    """Draw an image (C, H, W) uint8 of one or three channels, without axes."""
    axes.imshow(image.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)  # (H, W, C)
    axes.set_axis_off()


def _series(rows: Iterable[Mapping[str, Any]], name: str) -> Part:
    """Return the steps (N,) and values (N,) of one series, float64."""
    pairs = np.array([(row["step"], row[name]) for row in rows if name in row], dtype=float).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _draw_series(axes: Axes, series: Mapping[str, Part], *, best: _Best) -> None:
    blue, orange = class_colors(2)
    for name, (steps, values) in series.items():
        is_val = name.startswith("val/")
        style: dict[str, Any] = {"color": orange if is_val else blue, "linewidth": 1.6}
        if len(steps) <= 40:
            style |= {"marker": "o", "markersize": 3.5}
        elif not is_val:  # many noisy points must not hide the validation curve
            style |= {"linewidth": 0.8, "alpha": 0.7}
        axes.plot(steps, values, label=name, **style)
        finite = values[np.isfinite(values)]
        if best and is_val and len(finite):
            value = best(finite)
            step = steps[values == value][0]
            label = f"best: {value:.4g} at step {step:.0f}"
            axes.plot([step], [value], "o", color="black", markerfacecolor="none", markersize=10, label=label)
    drawn = np.concatenate([values for _, values in series.values()])
    positive = drawn[np.isfinite(drawn) & (drawn > 0)]
    if best is np.min and len(positive) and positive.max() > 100 * positive.min():
        axes.set_yscale("log")
    if best:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)


def _embed(features: Array, *, seed: int) -> Array:
    """Return t-SNE coordinates (N, 2) of features (N, D)."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    init = "pca" if features.shape[1] > 1 else "random"
    perplexity = min(30.0, (len(features) - 1) / 3)
    with threadpool_limits(1):  # more threads are slower here, and their number changes the result
        return TSNE(perplexity=perplexity, init=init, random_state=seed).fit_transform(features)


def _note(text: str) -> Figure:
    figure = Figure(figsize=(5, 1.5))
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=13)
    return figure
