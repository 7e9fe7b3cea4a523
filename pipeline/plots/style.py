"""What the pictures share: how one is saved, colors, markers, legends, images and names.

Figures are built without pyplot, so there is no global state, no window and nothing to close.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from pipeline.files import atomic

Array = NDArray[Any]
Series = tuple[Array, Array]

DPI = 120
LETTERS_PER_INCH = 11  # of the heading
NO_TICKS: dict[str, Any] = {"xticks": [], "yticks": []}  # for axes of images: ticks that are not drawn are laid out too
MARKERS = ("o", "^", "s", "D", "v", "P", "X", "*")
_LONGEST_NAME = 24  # letters of a class name


def save(figure: Figure, path: Path, *, about: str) -> None:
    """Write the figure as PNG, atomically, with what it is `about` above its own title: model, data set and run.

    The same picture gives the same bytes, also when saved again.
    """
    encodable = about.encode(errors="replace").decode()  # folders may have names that no text has
    heading = textwrap.fill(encodable, int(figure.get_figwidth() * LETTERS_PER_INCH))
    if not figure.get_suptitle().startswith(heading):
        figure.suptitle(f"{heading}\n{figure.get_suptitle()}".strip(), fontsize=10, parse_math=False)
    figure.set_dpi(DPI)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # once: `savefig` draws all of it twice
    words: dict[str, Any] = {"Software": None, "Title": encodable}
    with atomic(path) as temporary:
        imsave(temporary, canvas.buffer_rgba(), format="png", dpi=DPI, metadata=words)
    figure.set_layout_engine("none")  # run again, it would start from its own result and move things a little


def note(text: str) -> Figure:
    """Return a figure that says why there is nothing to be seen."""
    figure = Figure(figsize=(5, 1.5))
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=13)
    return figure


def class_colors(num_classes: int) -> list[Any]:
    """Return a color for each class, fit for color-blind readers (Petroff 2021); after ten they repeat."""
    palette = cycle(matplotlib.color_sequences["petroff10"])
    return [next(palette) for _ in range(num_classes)]


def legend_above(axes: Axes) -> None:
    """List the lines of `axes` above it, in as many columns as its figure is wide."""
    handles, labels = axes.get_legend_handles_labels()
    width = max(map(len, labels)) / 13 + 0.4  # inches of one entry, in small letters
    num_columns = max(1, int((axes.figure.get_figwidth() - 0.8) / width))  # type: ignore[union-attr]
    axes.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=num_columns, frameon=False, fontsize=9, columnspacing=1
    )


def draw_points(axes: Axes, splits: Mapping[str, Series], *, classes: Sequence[str]) -> None:
    """Draw points x (N, 2) of classes y (N,) into `axes`, with equal scales."""
    colors = np.array(class_colors(len(classes)))
    for (x, y), marker in zip(splits.values(), MARKERS, strict=False):
        axes.scatter(x[:, 0], x[:, 1], c=colors[y], marker=marker, s=22, edgecolors="black", linewidths=0.4)
    axes.set_aspect("equal")
    axes.set_xlabel("feature 1")
    axes.set_ylabel("feature 2")


def point_legend(axes: Axes, splits: Mapping[str, Series], *, classes: Sequence[str]) -> None:
    """List the classes by color, and the splits by marker if there are several, to the right of `axes`."""
    sizes = {name: len(x) for name, (x, _) in splits.items() if len(splits) > 1}
    entries = [("o", color, name) for color, name in zip(class_colors(len(classes)), classes, strict=True)]
    for (name, size), marker in zip(sizes.items(), MARKERS, strict=False):
        if size:
            entries.append((marker, "0.75", f"{name} ({size})"))
    edge: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "black", "markeredgewidth": 0.4}
    handles = [Line2D([], [], marker=m, color=color, label=label, **edge) for m, color, label in entries]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1), frameon=False)


def show_image(axes: Axes, image: Array) -> None:
    """Draw an image (C, H, W) uint8 of one or three channels, without axes."""
    axes.imshow(image.transpose(1, 2, 0), cmap="gray", vmin=0, vmax=255)  # (H, W, C)
    axes.set_axis_off()


def short_name(name: str) -> str:
    """Return the name of a class, cut where it is long."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."
