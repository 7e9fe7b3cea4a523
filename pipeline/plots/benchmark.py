"""The picture of a benchmark: for each runtime the latency of a call and the samples a second, by batch and threads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from pipeline.plots.style import MARKERS, class_colors, note

Row = Mapping[str, Any]

_STEP = 0.16  # between two numbers of threads of one runtime


def latency_and_throughput(report: Mapping[str, Any]) -> Figure:
    """Draw the rows of benchmark.json, one line for each runtime: p50 to p99 of a call, and samples a second, logarithmic.

    Colors are batch sizes, markers are threads. What is not stated is not drawn, and its number is told.
    """
    rows = [row for row in report["rows"] if row["p50_ms"] is not None]
    if not rows:
        return note("Nothing is stated: see benchmark.md.")
    names = list(dict.fromkeys(row["format"] for row in report["rows"]))
    batches = sorted({row["batch"] for row in rows})
    threads = sorted({row["threads"] for row in rows})
    colors = dict(zip(batches, class_colors(len(batches)), strict=True))
    markers = {number: MARKERS[k % len(MARKERS)] for k, number in enumerate(threads)}
    figure = Figure(figsize=(10.5, 1.9 + 0.55 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for row in rows:
        y = names.index(row["format"]) + _STEP * (threads.index(row["threads"]) - (len(threads) - 1) / 2)
        look = {"color": colors[row["batch"]], "zorder": 3}
        slowest = row["p99_ms"] or row["p95_ms"] or row["p50_ms"]
        left.plot([row["p50_ms"], slowest], [y, y], linewidth=1.5, alpha=0.6, **look)
        for axes, key in ((left, "p50_ms"), (right, "samples_per_s")):
            axes.plot(
                row[key], y, markers[row["threads"]], markersize=6.5, markeredgecolor="white", markeredgewidth=0.5, **look
            )
    _label(left, "one call, ms: p50, and a line to p99 (or p95)")
    _label(right, "samples a second")
    left.set_yticks(range(len(names)), names)
    left.set_ylim(len(names) - 0.5, -0.5)
    handles = [
        Line2D([], [], marker="s", linestyle="none", color=color, label=f"batch {size}") for size, color in colors.items()
    ]
    handles += [
        Line2D([], [], marker=marker, linestyle="none", color="0.4", label=f"{number} thread{'s' * (number > 1)}")
        for number, marker in markers.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), frameon=False, fontsize=9)
    missing = len(report["rows"]) - len(rows)
    told = f"; {missing} of {len(report['rows'])} rows are not stated" if missing else ""
    figure.suptitle(report["machine"]["processor"] + told, fontsize=10)
    return figure


def _label(axes: Axes, text: str) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}".replace(",", " ") if x >= 1000 else f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel(text)
    axes.grid(alpha=0.3)
