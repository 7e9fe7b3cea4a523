"""The pictures of a search say what its trials were."""

from __future__ import annotations

from typing import Any

import pytest
from matplotlib.axes import Axes

from pipeline.plots.search import importances, parallel_coordinates

SCALES: dict[str, Any] = {"lr": "log", "optimizer": ("adamw", "muon"), "batch_size": "linear"}


def _rows(count: int = 6) -> list[dict[str, Any]]:
    return [
        {
            "number": k, "value": 0.5 + 0.08 * k if k != 4 else 0.2, "is_complete": k != 4,
            "values": {"lr": f"1e-{1 + k % 4}", "optimizer": ("adamw", "muon")[k % 2], "batch_size": str(16 + k)},
        }
        for k in range(count)
    ]  # fmt: skip


def _lines(axes: Axes) -> list[Any]:
    return [line for line in axes.lines if len(line.get_xdata()) > 2]  # not the axes themselves


def test_each_trial_is_a_line_and_the_best_one_is_thick() -> None:
    figure = parallel_coordinates(_rows(), SCALES, metric="val/accuracy", is_larger_better=True)
    axes = figure.axes[0]
    widths = [line.get_linewidth() for line in _lines(axes)]
    assert len(widths) == 6 and widths.index(max(widths)) == 5
    assert [label.get_text() for label in axes.get_xticklabels()] == [*SCALES, "val/accuracy"]
    assert "5 trials, 1 ended early (grey); the thick line is trial 5" in figure.get_suptitle()
    assert len(_lines(axes)[4].get_xdata()) == 3, "one that ended below all others leaves before the metric's axis"
    texts = {text.get_text() for text in axes.texts}
    assert {"adamw", "muon", "0.1", "0.0001", "16", "21"} <= texts


def test_the_smallest_is_the_best_where_less_is_better() -> None:
    figure = parallel_coordinates(_rows(3), SCALES, metric="val/loss", is_larger_better=False)
    assert "the thick line is trial 0, the best" in figure.get_suptitle()


def test_a_logarithmic_axis_has_equal_steps_between_powers() -> None:
    lines = _lines(parallel_coordinates(_rows(4), SCALES, metric="val/loss", is_larger_better=True).axes[0])
    assert [line.get_ydata()[0] for line in lines] == pytest.approx([1, 2 / 3, 1 / 3, 0])


def test_importances_add_up_and_the_largest_stands_on_top() -> None:
    axes = importances({"lr": 0.7, "optimizer": 0.3}, metric="val/accuracy", num_trials=9).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["optimizer", "lr"]
    assert {text.get_text() for text in axes.texts} == {"70%", "30%"}


def test_nothing_to_draw_is_said() -> None:
    for figure in (
        importances({}, metric="val/loss", num_trials=1),
        parallel_coordinates([], SCALES, metric="val/loss", is_larger_better=True),
    ):
        assert len(figure.texts) == 1 and figure.texts[0].get_text()
