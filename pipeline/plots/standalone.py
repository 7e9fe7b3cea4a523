"""Pictures that need no run, for `python -m pipeline plot --plot NAME`: each function returns a figure.

What a picture shows stands beside its name in `PICTURES`, and above it in the file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pipeline.data import find
from pipeline.errors import UserError
from pipeline.plots import evaluation
from pipeline.plots.style import NO_TICKS, Series, class_colors, draw_points, point_legend, save, show_image

NOISES = (0.0, 0.2, 0.5)
_ACTIVATIONS = "Activation functions and their derivatives"


def activations() -> Figure:
    """Draw each activation function over 10 000 points in [-10, 10], and its derivative by autograd."""
    import torch

    from models.handwritten import ACTIVATIONS

    num_columns = 3
    num_rows = -(-len(ACTIVATIONS) // num_columns)
    figure = Figure(figsize=(9, 0.6 + 2.4 * num_rows), layout="constrained")
    grid = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True)
    blue, orange = class_colors(2)
    for axes, (name, function) in zip(grid.ravel(), ACTIVATIONS.items(), strict=False):
        x = torch.linspace(-10, 10, 10_000, requires_grad=True)
        y = function(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        axes.plot(x.detach().numpy(), y.detach().numpy(), color=blue, linewidth=2, label="f(x)")
        axes.plot(x.detach().numpy(), slope.numpy(), "--", color=orange, linewidth=1.5, label="f'(x)")
        axes.set_title(name, fontsize=11)
        axes.grid(alpha=0.3)
    for axes in grid.ravel()[len(ACTIVATIONS) :]:
        axes.set_axis_off()
    figure.supxlabel("x", fontsize=10)
    grid[0, 0].legend(loc="upper left", fontsize=9)
    figure.suptitle(_ACTIVATIONS)
    return figure


def scatter() -> Figure:
    """Draw the two moons with noise 0, 0.2 and 0.5, side by side in equal scales."""
    classes = find("moons").spec.classes
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, noise in zip(figure.subplots(1, len(NOISES), sharex=True, sharey=True), NOISES, strict=True):
        samples = find("moons").load(Path(), 0, noise=noise)
        x, y = np.asarray(samples.x), samples.y
        draw_points(axes, {"all": (x, y)}, classes=classes)
        axes.set_title(f"noise {noise:g}")
        axes.label_outer()
    point_legend(axes, {"all": (x, y)}, classes=classes)
    return figure


def tsne() -> Figure:
    """Draw t-SNE of the raw pixels of scikit-learn's digits 0 to 5."""
    images, labels = _digits()
    kept = labels < 6
    return evaluation.tsne(
        images[kept].reshape(kept.sum(), -1), labels=labels[kept], classes=find("digits").spec.classes[:6], of="images"
    )


def samples() -> Figure:
    """Draw five images of each digit, one column per class."""
    images, labels = _digits()
    classes = find("digits").spec.classes
    num_rows = 5
    figure = Figure(figsize=(0.9 * len(classes), 0.9 * num_rows + 0.4), layout="constrained")
    grid = figure.subplots(num_rows, len(classes), subplot_kw=NO_TICKS)
    for k, name in enumerate(classes):
        for axes, image in zip(grid[:, k], images[labels == k][:num_rows], strict=True):
            show_image(axes, image)
        grid[0, k].set_title(name)
    return figure


def _digits() -> Series:
    found = find("digits").load(Path(), 0)
    return np.asarray(found.x), found.y


PICTURES: dict[str, tuple[str, Callable[[], Figure]]] = {
    "activations": (_ACTIVATIONS, activations),
    "scatter": (f"{find('moons').num_train} points of the data set moons, with less and more noise", scatter),
    "tsne": ("Raw pixels of scikit-learn's digits 0 to 5", tsne),
    "samples": ("Five images of each of scikit-learn's digits", samples),
}


def write(name: str, folder: Path) -> Path:
    """Draw a picture into a folder. Raises UserError where that cannot be written."""
    path = folder / f"{name}.png"
    about, draw = PICTURES[name]
    try:
        save(draw(), path, about=about)
    except OSError as error:
        raise UserError(f"output={folder} cannot be written ({error.strerror}). Give another folder.") from error
    return path
