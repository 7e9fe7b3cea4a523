"""The expected calibration error by hand, and the temperature that is fitted."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from pipeline import calibration
from pipeline.task import TASKS


def _scores(kind: str, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    width = {"multiclass": 4, "binary": 1, "multilabel": 3}[kind]
    scores = rng.normal(size=(count, width)).astype(np.float32) * 3
    if kind == "multilabel":
        return scores, (rng.random((count, width)) < 1 / (1 + np.exp(-scores / 2))).astype(np.float32)
    wide = calibration.of_classes(scores) / 2  # the truth is drawn at temperature 2
    share = np.exp(wide) / np.exp(wide).sum(1, keepdims=True)
    return scores, (rng.random((count, 1)) > share.cumsum(1)).sum(1)


@pytest.mark.parametrize("kind", ["multiclass", "binary", "multilabel"])
def test_confidence_and_likelihood_are_those_of_torch(kind: str) -> None:
    scores, target = _scores(kind)
    task = TASKS[kind]
    for temperature in (1.0, 2.5):
        p = task.probabilities(torch.from_numpy(scores.astype(np.float64)) / temperature).numpy()
        sure = calibration.confidence(scores, has_labels=task.has_labels, temperature=temperature)
        cost = calibration.negative_log_likelihood(scores, target, temperature=temperature)
        if task.has_labels:
            np.testing.assert_allclose(sure, np.maximum(p, 1 - p))
            np.testing.assert_allclose(cost, -np.log(np.where(target == 1, p, 1 - p)).mean(1))
        else:
            np.testing.assert_allclose(sure[:, 0], p.max(1))
            np.testing.assert_allclose(cost, -np.log(p[np.arange(len(p)), target]))


def test_the_calibration_error_is_that_of_its_definition() -> None:
    sure = np.array([0.31, 0.33, 0.9, 0.95, 1.0, 1 / 15, 0.0])
    right = np.array([True, False, True, True, False, False, False])
    found = calibration.expected_error(calibration.table(sure, right))
    expected, edges = 0.0, np.linspace(0, 1, 16)
    for low, high in pairwise(edges):  # (low, high], the first with its 0
        inside = (sure > low) & (sure <= high) | ((low == 0) & (sure == 0))
        if inside.any():
            expected += abs(sure[inside].mean() - right[inside].mean()) * inside.sum() / len(sure)
    assert found == pytest.approx(expected) and expected > 0.1


@pytest.mark.parametrize("kind", ["multiclass", "binary", "multilabel"])
def test_the_temperature_is_that_of_the_least_cost_and_near_the_true_one(kind: str) -> None:
    scores, target = _scores(kind, 4000)
    found = calibration.fit_temperature(scores, target)
    assert 1.8 < found < 2.2

    def cost(t: float) -> float:
        return float(calibration.negative_log_likelihood(scores, target, temperature=t).mean())

    assert cost(found) < min(cost(found * 1.02), cost(found / 1.02), cost(1.0))


@pytest.mark.parametrize("gap", [1.0, 50.0])
def test_samples_that_are_all_decided_right_have_no_best_temperature(gap: float) -> None:
    scores = np.eye(3, dtype=np.float32)[[0, 1, 2, 2]] * gap
    with pytest.raises(ValueError, match="all of them are decided right"):
        calibration.fit_temperature(scores, np.array([0, 1, 2, 2]))


def test_scores_that_say_nothing_have_no_best_temperature() -> None:
    with pytest.raises(ValueError, match="the scores say nothing"):
        calibration.fit_temperature(np.array([[1.0, 0.0], [0.0, 1.0]], np.float32), np.array([1, 0]))
