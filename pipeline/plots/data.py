"""The picture of a data set that nobody has trained on yet: a grid of images, or how the columns of a table are distributed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from pipeline.data.columns import dictionary
from pipeline.plots.style import NO_TICKS, Array, class_colors, note, short_name, show_image

MAX_CLASSES = 10  # rows of images
PER_CLASS = 5
MAX_COLUMNS = 12  # of a table
MAX_CORRELATED = 20
_MAX_COLORS = 6  # classes that a histogram still tells apart
_BARS = 8  # categories that get one
_BINS = 30
_CORRELATED_ROWS = 100_000  # that suffice for two digits
_LAST_DAY = 700_000  # after and before 1970: the years that Python counts
_LARGEST = 1e300  # beyond which differences leave float64
_LONGEST = 16  # letters of a category


def image_rows(labels: Array, tile: Callable[[int], tuple[str, Array]], *, classes: Sequence[str], side: int) -> Figure:
    """Draw up to 5 images of each of the 10 largest classes, a row each; `labels` (N,) are their numbers.

    `tile` gives the caption and the pixels (C, side, side) uint8 of a sample by its row.
    """
    counts = np.bincount(labels, minlength=len(classes))
    shown = [k for k in np.argsort(-counts, kind="stable")[:MAX_CLASSES].tolist() if counts[k]]
    shown.sort()
    num_rows = max(len(shown), 1) if len(classes) > 1 else PER_CLASS
    figure = Figure(figsize=(1.7 + 1.35 * PER_CLASS, 0.9 + 1.4 * num_rows), layout="constrained")
    grid = figure.subplots(num_rows, PER_CLASS, squeeze=False, subplot_kw=NO_TICKS)
    for axes in grid.ravel():
        axes.set_axis_off()
    for line, k in enumerate(shown):
        rows = np.flatnonzero(labels == k)
        places = grid[line] if len(classes) > 1 else grid.ravel()
        chosen = np.unique(np.linspace(0, len(rows) - 1, len(places)).astype(int))
        for axes, row in zip(places, rows[chosen].tolist(), strict=False):
            caption, pixels = tile(row)
            show_image(axes, pixels)
            axes.set_title(_named(caption), fontsize=7, pad=2, parse_math=False)
        if len(classes) > 1:
            text = f"{_named(classes[k])}\n{counts[k]:,} ({counts[k] / len(labels):.1%})"
            grid[line, 0].text(
                -0.08, 0.5, text, transform=grid[line, 0].transAxes, ha="right", va="center", fontsize=9, parse_math=False
            )
    of = f"{len(shown)} of {len(classes)} classes, the largest, " if len(shown) < len(classes) else ""
    figure.suptitle(f"{of}as a network of {side}x{side} pixels sees them")
    return figure


def columns(
    values: Mapping[str, Array],
    *,
    labels: Array | None = None,
    classes: Sequence[str] = (),
    first: Sequence[str] = (),
    kinds: Mapping[str, str] | None = None,
) -> Figure:
    """Draw how up to 12 columns are distributed, and how up to 20 of numbers go together where there are three or more.

    `values` are columns (N,), float64 or text, by name; `labels` (N,) tell the classes apart by color, where there are six at
    most. `first` names the columns that are targets, which are drawn before the others; `kinds` says
    which columns are dates (in days) or booleans.
    """
    names = sorted(values, key=lambda name: name not in first)
    if not names:
        return note("There is no column to draw.")
    shown = names[:MAX_COLUMNS]
    numeric = [name for name in names if values[name].dtype != object and _varies(values[name])][:MAX_CORRELATED]
    has_matrix = len(numeric) >= 3
    num_columns = min(4, len(shown)) if len(shown) != 9 else 3
    num_rows = -(-len(shown) // num_columns)
    extra = max(3.6, 0.36 * len(numeric) + 2.0) if has_matrix else 0.0
    width, height = max(3.0 * num_columns, 5.0), 2.3 * num_rows + 0.7
    figure = Figure(figsize=(width + extra, max(height, extra)), layout="constrained")
    above: Any = figure
    if has_matrix:
        above, beside = figure.subfigures(1, 2, width_ratios=[width, extra])  # type: ignore[misc]
        _correlations(beside, {name: values[name] for name in numeric})
    by_class = labels if labels is not None and 2 <= len(classes) <= _MAX_COLORS else None
    grid = above.subplots(num_rows, num_columns, squeeze=False).ravel()
    for axes, name in zip(grid, shown, strict=False):
        column, kind = values[name], (kinds or {}).get(name)
        if column.dtype == object:
            _bars(axes, column, by_class, len(classes))
        else:
            _histogram(axes, column, by_class, len(classes))
        missing = float(np.mean(column == "" if column.dtype == object else ~np.isfinite(column)))
        words = ["target"] * (name in first) + [f"{missing:.1%} missing"] * (missing > 0)
        title = f"{_named(name)} ({', '.join(words)})" if words else _named(name)
        axes.set_title(title, fontsize=9, parse_math=False)
        axes.tick_params(labelsize=7)
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_offset_text().set_fontsize(7)
        if column.dtype != object:
            axes.xaxis.set_major_locator(MaxNLocator(5))
        is_date = kind == "date" and column.dtype != object and np.nanmax(np.abs(column), initial=0) < _LAST_DAY
        if is_date:  # days since 1970-01-01, as matplotlib counts them
            locator = AutoDateLocator(minticks=2, maxticks=4)
            axes.xaxis.set_major_locator(locator)
            axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        if kind == "boolean":
            axes.set_xticks([0, 1], ["false", "true"])
    for axes in grid[len(shown) :]:
        axes.set_axis_off()
    if by_class is not None:
        handles = [Patch(color=c, label=_named(n)) for c, n in zip(class_colors(len(classes)), classes, strict=True)]
        legend = above.legend(handles=handles, loc="outside lower center", ncols=len(classes), frameon=False, fontsize=8)
        for text in legend.get_texts():
            text.set_parse_math(False)
    of = f"{len(shown)} of {len(names)} columns" if len(shown) < len(names) else f"{len(names)} columns"
    figure.suptitle(f"{of}, {len(next(iter(values.values()))):,} rows")
    return figure


def _varies(column: Array) -> bool:
    there = column[np.isfinite(column)]
    return len(there) > 1 and there.min() < there.max()


def _split(column: Array, labels: Array | None, num_classes: int) -> list[Array]:
    return [column] if labels is None else [column[labels == k] for k in range(num_classes)]


def _histogram(axes: Axes, column: Array, labels: Array | None, num_classes: int) -> None:
    """Draw the numbers of a column, stacked by class."""
    there = np.isfinite(column)
    parts = _split(column[there], None if labels is None else labels[there], num_classes)
    if not there.any() or np.abs(column[there]).max() > _LARGEST:
        text = "too large to be drawn" if there.any() else "no values"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=8)
        return
    low, high = float(column[there].min()), float(column[there].max())
    if low == high:
        bins = np.array([low - 0.5, low + 0.5])
    elif high - low < 1e9 and (column[there] == np.round(column[there])).all():
        width = -(-int(high - low + 1) // _BINS)  # as many whole numbers in each bar
        bins = np.arange(low - 0.5, high + width, width)
    else:
        bins = np.linspace(low, high, _BINS + 1)
    base = np.zeros(len(bins) - 1)
    for part, color in zip(parts, class_colors(len(parts)), strict=True):
        heights = np.histogram(part, bins)[0]
        axes.bar(bins[:-1], heights, np.diff(bins), bottom=base, align="edge", color=color)
        base = base + heights


def _bars(axes: Axes, column: Array, labels: Array | None, num_classes: int) -> None:
    """Draw the most frequent texts of a column, and all others as one, stacked by class."""
    texts, found = dictionary(column)
    counts = Counter(dict(zip(texts, np.bincount(found, minlength=len(texts)).tolist(), strict=True)))
    counts.pop("", 0)
    top = [text for text, _ in counts.most_common(_BARS)]
    others = len(counts) - len(top)
    place = {text: k for k, text in enumerate(top)} | {"": -1}
    codes = np.array([place.get(text, len(top)) for text in texts], int)[found]
    num_bars = len(top) + (others > 0)
    base = np.zeros(num_bars)
    parts = _split(codes, labels, num_classes)
    for part, color in zip(parts, class_colors(len(parts)), strict=True):
        widths = np.bincount(part[part >= 0], minlength=num_bars)
        axes.barh(range(num_bars), widths, left=base, color=color)
        base = base + widths
    names = [*(_short(text) for text in top), *([f"{others:,} others"] if others else [])]
    axes.set_yticks(range(num_bars), names)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
    axes.invert_yaxis()


def _short(text: str) -> str:
    printable = _printable(text)
    return printable if len(printable) <= _LONGEST else f"{printable[: _LONGEST - 3]}..."


def _named(text: str) -> str:
    return short_name(_printable(text))


def _printable(text: str) -> str:
    """Return a text without what no font has: control characters, and what is no UTF-8 in a file's name."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _correlations(figure: SubFigure, values: Mapping[str, Array]) -> None:
    """Draw Pearson's correlations of columns (N,) of numbers; a missing value counts as the mean."""
    axes = figure.subplots()
    step = max(1, len(next(iter(values.values()))) // _CORRELATED_ROWS)
    matrix = np.stack([_standardized(column[::step]) for column in values.values()])
    correlations = np.clip(matrix @ matrix.T / matrix.shape[1], -1, 1)
    axes.imshow(correlations, cmap="RdBu_r", vmin=-1, vmax=1)
    names = [_named(name) for name in values]
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)
    for i, j in np.ndindex(*correlations.shape):
        value = correlations[i, j]
        color = "white" if abs(value) > 0.6 else "black"
        text = "1" if i == j else f"{value + 0.0:.2f}".replace("0.", ".", 1).replace("-.00", ".00")
        axes.text(j, i, text, ha="center", va="center", fontsize=6, color=color, in_layout=False)
    axes.set_title("correlations (Pearson)", fontsize=9)


def _standardized(column: Array) -> Array:
    there = np.isfinite(column)
    size = float(np.abs(column[there]).max(initial=0)) or 1.0
    scaled = np.where(there, column / size, np.nan)  # squares of large numbers would leave float64
    centered = np.where(there, scaled - (scaled[there].mean() if there.any() else 0.0), 0.0)
    return np.asarray(centered / (np.sqrt((centered**2).mean()) or 1.0))
