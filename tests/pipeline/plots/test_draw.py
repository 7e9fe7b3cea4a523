"""Which pictures a run gets: what a task names is there, and what does not fit the data is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data import find
from pipeline.data.loader import Split
from pipeline.evaluate import Evaluation
from pipeline.plots import draw
from pipeline.plots.draw import PICTURES
from pipeline.resolve import resolve
from pipeline.run import Run
from pipeline.task import TASKS


def test_every_tasks_pictures_can_be_drawn_and_every_picture_is_of_a_task() -> None:
    assert {name for task in TASKS.values() for name in task.pictures} == set(PICTURES)
    assert all(task.pictures.count(name) == 1 for task in TASKS.values() for name in task.pictures)


def _found(model: str, x: Any, y: Any, scores: Any, **more: Any) -> Evaluation:
    config = resolve({"model": model})
    run = Run(folder=Path("run"), config=config, mlflow_run_id="", git_commit="", data=find(config.dataset).spec)
    values: dict[str, Any] = {"features": torch.randn(len(x), 4), "report": {}} | more
    return Evaluation(run=run, model=torch.nn.Identity(), data=Path(), name="test", split=Split(x, y), scores=scores, **values)  # type: ignore[arg-type]


def test_a_curve_is_drawn_of_one_feature_and_one_target() -> None:
    x, y = torch.linspace(0, 1, 9)[:, None], torch.randn(9, 2)
    assert PICTURES["fitted_curve"](_found("polynomial", x, y[:, :1], y[:, :1]))
    assert PICTURES["fitted_curve"](_found("polynomial", x, y, y)) is None
    assert PICTURES["fitted_curve"](_found("polynomial", x.expand(9, 2), y[:, :1], y[:, :1])) is None


@pytest.mark.parametrize("width", [1, 2])
def test_roc_and_precision_recall_are_of_the_second_classs_margin(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Two classes are told apart by one score, or by the difference of two."""
    seen: list[Any] = []
    monkeypatch.setattr(draw.evaluation, "roc_pr", lambda margin, **_: seen.append(margin))
    scores, x, y = torch.randn(9, width), torch.randn(9, 30), torch.arange(9) % 2
    PICTURES["roc_pr"](_found("mlp", x, y, scores))
    np.testing.assert_array_equal(seen[0], (scores[:, 0] if width == 1 else scores[:, 1] - scores[:, 0]).numpy())


@pytest.mark.parametrize("name", ["top_losses", "activations", "scatter", "decision_regions"])
def test_pictures_of_images_and_of_points_are_not_drawn_of_long_vectors(name: str) -> None:
    assert PICTURES[name](_found("mlp", torch.randn(9, 30), torch.arange(9) % 2, torch.randn(9, 1))) is None


def test_a_picture_that_fits_is_saved_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw, "PICTURES", dict.fromkeys(PICTURES, lambda found: None) | {"scatter": lambda found: "a figure"})
    saved: list[tuple[Any, ...]] = []
    monkeypatch.setattr(draw, "save", lambda figure, path, *, about: saved.append((figure, path, about)))
    draw.draw(_found("mlp", torch.randn(9, 30), torch.arange(9) % 2, torch.randn(9, 1)))
    assert saved == [("a figure", Path("run/plots/scatter.png"), "mlp on breast_cancer, run run")]
