"""The pictures of a search: which flags mattered, and what each trial was, as a line through all of its values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from pipeline.plots.style import class_colors, note, short_name

Row = Mapping[str, Any]  # of a trial: number, values, value, and whether it is_complete

_FEW_TICKS = 5
_SPREAD = 0.025  # of an axis, by which lines through the same choice are kept apart


def importances(shares: Mapping[str, float], *, metric: str, num_trials: int) -> Figure:
    """Draw the share of each searched flag in the differences of the metric, the largest on top; they add up to 1."""
    if not shares:
        return note("Too few trials have ended to tell what mattered.")
    names = sorted(shares, key=lambda name: shares[name])
    figure = Figure(figsize=(7, 1.4 + 0.42 * len(names)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(names, [shares[name] for name in names], color=class_colors(1)[0], height=0.62)
    axes.bar_label(bars, [f"{shares[name]:.0%}" for name in names], padding=4)
    axes.set_xlim(0, 1.12 * max(shares.values()))
    axes.set_xlabel(f"share in the differences of {metric} (PED-ANOVA)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"What mattered in {num_trials} trials", fontsize=10)
    return figure


def parallel_coordinates(rows: Sequence[Row], scales: Mapping[str, Any], *, metric: str, is_larger_better: bool) -> Figure:
    """Draw each trial as a line through its values and its metric: colored by the metric, grey where it was ended early.

    `scales` says what the axis of each flag is: "log", "linear", or the choices in their order.
    """
    known = [row for row in rows if row["value"] is not None]
    complete = [row for row in known if row["is_complete"]]
    if not complete:
        return note("No trial has ended yet.")
    best = (max if is_larger_better else min)(complete, key=lambda row: row["value"])
    names = [*scales, metric]
    figure = Figure(figsize=(max(6.5, 2.1 * len(names)), 5), layout="constrained")
    axes = figure.subplots()
    places = {name: _axis(axes, k, scale, [row["values"][name] for row in known]) for k, (name, scale) in
              enumerate(scales.items())}  # fmt: skip
    values = [row["value"] for row in complete]
    places[metric] = _axis(axes, len(names) - 1, "linear", values)
    norm = Normalize(min(values), max(values) + 1e-12)
    colors = matplotlib.colormaps["viridis" if is_larger_better else "viridis_r"]
    offsets = np.random.default_rng(0).uniform(-_SPREAD, _SPREAD, len(known))
    for row, offset in zip(known, offsets, strict=True):
        y = [places[name](row["values"][name]) + offset * (not isinstance(scale, str)) for name, scale in scales.items()]
        end = places[metric](row["value"])
        is_best = row is best
        look: dict[str, Any] = {"color": colors(norm(row["value"])), "linewidth": 1.2, "alpha": 0.85, "zorder": 2}
        if not row["is_complete"]:
            look = {"color": "0.75", "linewidth": 0.8, "zorder": 1}
        if is_best:
            look |= {"linewidth": 3, "alpha": 1, "zorder": 3}
        ends = [end] if 0 <= end <= 1 else []  # a trial that was ended early may lie below all that were not
        axes.plot(range(len(y) + len(ends)), y + ends, solid_joinstyle="round", **look)
    axes.set_xticks(range(len(names)), names)
    axes.tick_params(axis="x", length=0)
    axes.set_xlim(-0.35, len(names) - 0.6)
    axes.set_ylim(-0.06, 1.06)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    bar = figure.colorbar(ScalarMappable(norm, colors), ax=axes, pad=0.01, aspect=35)
    bar.set_label(metric)
    num_early = len(rows) - len(complete)
    early = f", {num_early} ended early (grey)" if num_early else ""
    figure.suptitle(f"{len(complete)} trials{early}; the thick line is trial {best['number']}, the best", fontsize=10)
    return figure


def _axis(axes: Axes, x: int, scale: Any, values: Sequence[Any]) -> Callable[[Any], float]:
    """Draw a vertical axis at `x` with its ticks; return the function from a value to its place, 0 to 1."""
    axes.axvline(x, color="0.3", linewidth=0.8, zorder=4)
    if not isinstance(scale, str):
        order = {choice: k / max(1, len(scale) - 1) for k, choice in enumerate(scale)}
        for choice, y in order.items():
            _tick(axes, x, y, short_name(choice))
        return lambda value: order[value]
    to = math.log10 if scale == "log" else float
    numbers = [float(value) for value in values]
    low, high = to(min(numbers)), to(max(numbers))
    span = (high - low) or 1.0

    def place(value: Any) -> float:
        return (to(float(value)) - low) / span

    steps = np.linspace(low, high, _FEW_TICKS) if high > low else [low]
    for step in steps:
        number = 10**step if scale == "log" else step
        _tick(axes, x, (step - low) / span, f"{number:.3g}" if scale == "log" else f"{number:.4g}")
    return place


def _tick(axes: Axes, x: int, y: float, text: str) -> None:
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}
    axes.annotate(text, (x, y), xytext=(-4, 0), textcoords="offset points", ha="right", va="center", fontsize=8, bbox=box,
                  zorder=5)  # fmt: skip
