"""The curves of a training: loss, metric and learning rates over optimizer steps, and whose weights were kept.

Only what was logged is drawn. Means of a few batches stand pale behind the means of whole epochs, as they scatter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.plots.style import Series, class_colors, legend_above, note

Row = Mapping[str, Any]

_EPOCH_LOSS, _WINDOW_LOSS, _LR = "train/epoch_loss", "train/loss", "train/lr"
_PANELS = {
    "loss": (_EPOCH_LOSS, _WINDOW_LOSS, "val/loss", "val/ema/loss"),
    "accuracy": ("train/accuracy", "val/accuracy", "val/ema/accuracy"),
    "RMSE": ("train/rmse", "val/rmse", "val/ema/rmse"),
}
_FEW = 40  # points that are marked one by one
_SPAN = 100  # between the lowest and the highest value, beyond which an axis is logarithmic
_SPAN_OF_RATES = 10


def curves(rows: Sequence[Row], *, monitor: str = "loss", smoothed: bool = False) -> Figure:
    """Draw what the lines of metrics.jsonl hold, and a line at the epoch whose weights were kept.

    Each row has `step` and `epoch` and some of `train/epoch_loss`, `train/loss` with `samples`, `val/loss`,
    `train/accuracy`, `val/accuracy`, `train/rmse`, `val/rmse`, those of a moving average (`val/ema/...`), `train/lr` and
    `train/lr/<layer>`. `monitor` is the validation metric that chose the weights; `smoothed` says that the training loss is
    one of smoothed labels. A single learning rate that never changes is left out.
    """
    panels = {label: _all_series(rows, names) for label, names in _PANELS.items()}
    panels = {label: series for label, series in panels.items() if series}
    if not panels:
        return note("No loss was logged.")
    rates = _all_series(rows, sorted({name for row in rows for name in row if name == _LR or name.startswith(f"{_LR}/")}))
    if len(rates) > 1 or any(len(np.unique(values)) > 1 for _, values in rates.values()):
        panels["learning rate"] = rates
    figure = Figure(figsize=(8, 0.9 + 3.0 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), squeeze=False, sharex=True)[:, 0]
    for axes, (label, series) in zip(grid, panels.items(), strict=True):
        if series is rates:
            _draw_rates(axes, rates)
        else:
            _draw_metrics(axes, series, num_samples=_samples_in_a_point(rows), smoothed=smoothed)
        axes.set_ylabel(label)
    if kept := kept_epoch(rows, monitor):
        for axes in grid:
            line = axes.axvline(kept[0]["step"], color="0.3", linestyle="--", linewidth=1.2, zorder=1)
            if axes is grid[0]:
                line.set_label(f"kept: epoch {kept[0]['epoch']:g} ({kept[1]})")
    for axes in grid:
        axes.grid(alpha=0.3)
        legend_above(axes)
    grid[-1].set_xlabel("optimizer step")
    whole = MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1)
    grid[-1].xaxis.set_major_locator(whole)
    figure.align_ylabels()
    return figure


def kept_epoch(rows: Sequence[Row], monitor: str) -> tuple[Row, str] | None:
    """Return the row of the epoch whose weights were kept, and why; None where that was not logged.

    As training chooses: the first epoch with the best value, of the moving average where there is one, the loss deciding
    between equal accuracies. Without validation the last weights are kept.
    """
    best: tuple[float, ...] = (-math.inf,)
    kept = None
    of = "val/ema" if any("val/ema/loss" in row for row in rows) else "val"
    for row in rows:
        accuracy = (row.get(f"{of}/accuracy", math.nan),) if monitor == "accuracy" else ()
        result = (*accuracy, -row.get(f"{of}/loss", math.nan))
        if all(map(math.isfinite, result)) and result > best:
            best, kept = result, row
    if kept:
        return kept, f"best {of} {monitor} {kept[f'{of}/{monitor}']:.4g}"
    ends = [row for row in rows if {_EPOCH_LOSS, "train/accuracy", "train/rmse"} & set(row)]
    return (ends[-1], "the last") if ends else None


def _all_series(rows: Sequence[Row], names: Sequence[str]) -> dict[str, Series]:
    """Return the steps (N,) and values (N,), float64, of each series that was logged."""
    found = {}
    for name in names:
        if pairs := [(row["step"], row[name]) for row in rows if name in row]:
            steps, values = np.array(pairs, dtype=float).T
            found[name] = (steps, values)
    return found


def _samples_in_a_point(rows: Sequence[Row]) -> int:
    """Return how many samples most points of the training loss stand for; 0 where that was not logged."""
    counts = [int(row["samples"]) for row in rows if _WINDOW_LOSS in row and "samples" in row]
    return max(counts, key=counts.count) if counts else 0


def _draw_metrics(axes: Axes, series: Mapping[str, Series], *, num_samples: int, smoothed: bool) -> None:
    blue, orange = class_colors(2)
    for name, (steps, values) in series.items():
        behind = name == _WINDOW_LOSS and _EPOCH_LOSS in series
        label = _WINDOW_LOSS if name == _EPOCH_LOSS else name
        if smoothed and label == _WINDOW_LOSS:
            label += " (smoothed labels)"
        if name == _EPOCH_LOSS:
            label += ", epoch mean"
        elif name == _WINDOW_LOSS and num_samples:
            label = f"mean of {num_samples} samples" if behind else f"{label}, mean of {num_samples} samples"
        style: dict[str, Any] = {"color": orange if name.startswith("val/") else blue, "linewidth": 1.6, "zorder": 3}
        if name.startswith("val/ema/"):
            style["linestyle"] = ":"
        if behind:
            style |= {"linewidth": 0.8, "alpha": 0.4, "zorder": 2}
        if len(steps) == 1 or (len(steps) <= _FEW and not behind):
            style |= {"marker": "o", "markersize": 3.5}
        axes.plot(steps, values, label=label, **style)
    drawn = np.concatenate([values for _, values in series.values()])
    positive = drawn[np.isfinite(drawn) & (drawn > 0)]
    if "val/accuracy" not in series and len(positive) and positive.max() > _SPAN * positive.min():
        axes.set_yscale("log")


def _draw_rates(axes: Axes, rates: Mapping[str, Series]) -> None:
    """Draw the learning rate of each group of parameters; beside a much larger one a small one is seen by its logarithm."""
    for color, (name, (steps, values)) in zip(class_colors(len(rates)), rates.items(), strict=True):
        style: dict[str, Any] = {"marker": "o", "markersize": 3.5} if len(steps) == 1 else {}
        label = name if values.any() else f"{name} (0: frozen)"
        axes.plot(steps, values, color=color, linewidth=1.6, label=label, **style)
    peaks = [values.max() for _, values in rates.values() if values.max() > 0]
    if peaks and max(peaks) > _SPAN_OF_RATES * min(peaks):
        axes.set_yscale("log")
        axes.set_ylim(bottom=min(peaks) / _SPAN)
