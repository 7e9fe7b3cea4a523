"""The picture of a training's curves: the means it draws, the epoch whose weights were kept, the learning rates."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from pipeline.config import RunConfig
from pipeline.plots import style
from pipeline.plots.curves import curves, kept_epoch
from tests.pictures import history, legend_texts
from tests.trainings import curve, fit


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    """A picture that matplotlib warns about (a missing glyph, a layout that does not fit) is not right."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def kept_lines(figure: Figure) -> list[float]:
    return [
        float(np.asarray(line.get_xdata())[0]) for axes in figure.axes for line in axes.lines if line.get_linestyle() == "--"
    ]


@pytest.mark.parametrize("monitor", ["loss", "accuracy"])
def test_the_epoch_whose_weights_were_kept_is_a_line_in_every_panel_and_named_once(monitor: str) -> None:
    figure = curves(history(20), monitor=monitor)
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
    assert figure.axes[-1].get_xlabel() == "optimizer step"
    assert kept_lines(figure) == [120, 120]
    value = {"loss": "0.5", "accuracy": "0.9"}[monitor]
    assert [t for t in legend_texts(figure) if "best" in t or "kept" in t] == [f"kept: epoch 12 (best val {monitor} {value})"]


VALUES = {  # (accuracy, loss) of epochs 1, 2, ...; the epoch that training keeps by accuracy, and by loss
    "ties go to the first": ([(0.9, 0.5), (0.9, 0.5), (0.8, 0.6)], 1, 1),
    "the loss decides between equal accuracies": ([(0.9, 0.5), (0.9, 0.4), (0.8, 0.3)], 2, 3),
    "a value that is not finite is never the best": ([(0.9, 0.5), (0.95, math.nan), (0.8, 0.6)], 1, 1),
}


@pytest.mark.parametrize(("values", "by_accuracy", "by_loss"), VALUES.values(), ids=VALUES)
def test_the_kept_epoch_is_found_as_training_chooses_it(values: Any, by_accuracy: int, by_loss: int) -> None:
    rows = [{"step": 5 * k, "epoch": float(k), "val/accuracy": a, "val/loss": b} for k, (a, b) in enumerate(values, start=1)]
    for monitor, epoch in (("accuracy", by_accuracy), ("loss", by_loss)):
        assert kept_lines(curves(rows, monitor=monitor))[0] == 5 * epoch


def test_without_validation_the_last_epoch_is_the_one_that_was_kept() -> None:
    rows = [{k: v for k, v in row.items() if not k.startswith("val/")} for row in history(6)]
    figure = curves(rows)
    assert kept_lines(figure) == [60] and "kept: epoch 6 (the last)" in legend_texts(figure)


def test_the_kept_epoch_of_a_real_training_is_the_one_that_its_state_names(
    make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    for monitor in ("loss", "accuracy"):
        training = fit(make_config(model="mlp", epochs=12, lr=0.05, seed=1, monitor=monitor), tmp_path / monitor)
        found = kept_epoch(curve(training), monitor)
        assert found and found[0]["epoch"] == training.state.best_epoch < 12


@pytest.mark.parametrize(("smoothed", "words"), [(False, "train/loss"), (True, "train/loss (smoothed labels)")])
def test_the_means_of_epochs_stand_before_those_of_samples_and_smoothed_labels_are_named(smoothed: bool, words: str) -> None:
    epochs, windows, val, _ = curves(history(2000), smoothed=smoothed).axes[0].lines
    assert (epochs.get_label(), val.get_label()) == (f"{words}, epoch mean", "val/loss")
    assert windows.get_label() == "mean of 320 samples"
    assert len(np.asarray(epochs.get_xdata())) == len(np.asarray(val.get_xdata())) == 2000
    assert len(np.asarray(windows.get_xdata())) == 4000
    assert windows.get_zorder() < epochs.get_zorder() and windows.get_alpha() < 1 and windows.get_color() == epochs.get_color()


MISSING = {
    "epoch means": ("train/epoch_loss", ["train/loss, mean of 320 samples", "val/loss"]),
    "windows": ("train/loss", ["train/loss, epoch mean", "val/loss"]),
    "samples": ("samples", ["train/loss, epoch mean", "train/loss", "val/loss"]),
}


@pytest.mark.parametrize(("name", "labels"), MISSING.values(), ids=MISSING)
def test_curves_are_drawn_of_what_was_logged(name: str, labels: list[str]) -> None:
    figure = curves([{k: v for k, v in row.items() if k != name} for row in history(5)])
    assert [str(line.get_label()) for line in figure.axes[0].lines][: len(labels)] == labels


@pytest.mark.parametrize(("factor", "scale"), [(0.9, "linear"), (0.5, "log")])
def test_the_loss_axis_is_logarithmic_beyond_two_decades(factor: float, scale: str) -> None:
    assert curves(history(10, factor=factor)).axes[0].get_yscale() == scale


def test_rmse_has_a_panel_and_the_loss_says_what_was_kept() -> None:
    rows = [{"step": s, "epoch": float(s), "val/rmse": v, "val/loss": v * v} for s, v in ((1, 3.0), (2, 1.0), (3, 2.0))]
    assert legend_texts(curves(rows)) == ["val/loss", "kept: epoch 2 (best val loss 1)", "val/rmse"]


@pytest.mark.parametrize("varies", [True, False])
def test_one_learning_rate_is_drawn_only_if_it_varies(varies: bool) -> None:
    rows = [{"step": s, "train/loss": 1.0, "train/lr": 0.1 / (s if varies else 1)} for s in (1, 2, 3)]
    labels = [axes.get_ylabel() for axes in curves(rows).axes]
    assert labels == ["loss", "learning rate"][: 1 + varies]


def test_the_learning_rate_of_every_group_is_drawn_and_named() -> None:
    rates = {"train/lr": 5e-3, "train/lr/conv1": 0.0, "train/lr/hidden": 1e-5}
    rows = [{"step": s, "train/loss": 1.0} | rates for s in (1, 2, 3)]
    axes = curves(rows).axes[-1]
    drawn = {str(line.get_label()): np.asarray(line.get_ydata()).tolist() for line in axes.lines}
    assert drawn == {"train/lr": [5e-3] * 3, "train/lr/conv1 (0: frozen)": [0] * 3, "train/lr/hidden": [1e-5] * 3}
    assert len({str(line.get_color()) for line in axes.lines}) == 3
    assert axes.get_yscale() == "log" and axes.get_ylim()[0] < 1e-5 < 5e-3 < axes.get_ylim()[1]


def test_curves_survive_a_loss_that_diverged(tmp_path: Path) -> None:
    rows = [{"step": s, "epoch": float(s), "val/loss": v} for s, v in enumerate((2.0, 1.0, math.inf, math.nan))]
    figure = curves(rows)
    assert "kept: epoch 1 (best val loss 1)" in legend_texts(figure)
    style.save(figure, tmp_path / "curves.png", about="a run")


def test_one_row_is_drawn_as_a_point_on_whole_steps(tmp_path: Path) -> None:
    figure = curves(history(1)[1:])
    style.save(figure, tmp_path / "curves.png", about="a run")
    assert all(line.get_marker() == "o" for axes in figure.axes for line in axes.lines if line.get_linestyle() == "-")
    assert [t for t in figure.axes[-1].get_xticks() if t % 1] == []
