"""What is counted over all samples, for each kind of task."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export import compare
from pipeline.task import TASKS, task


@pytest.mark.parametrize("name", TASKS)
def test_the_metric_is_the_tasks_own_and_a_sample_decided_otherwise_counts_once(name: str) -> None:
    task, rng = TASKS[name], np.random.default_rng(0)
    want = rng.normal(size=(50, 1 if name == "binary" else 3)).astype(np.float32)
    got = want.copy()
    got[7] = -got[7]
    labels = task.decide(torch.from_numpy(want)).numpy() if task.has_decisions else want + 0.5
    score = compare.score(got, want, labels, task)
    for value, scores in ((score.value, got), (score.want, want)):
        total = task.metric_sum(torch.from_numpy(scores), torch.from_numpy(labels))
        assert value == pytest.approx(task.metric_value(float(total), 50), rel=1e-6)
    assert score.flips == (1 if task.has_decisions else None)
    assert not score.agrees


def test_a_logit_near_zero_is_as_exact_as_the_largest_beside_it_and_a_target_of_a_regression_is_its_own() -> None:
    want = np.array([[-24.0, 0.001], [0.5, 0.001]], np.float32)
    for gap, outside in ((1e-4, 1), (3e-4, 2), (1.09e-5, 0)):  # allowed: 2.4e-4 in the first sample, 1e-5 in the second
        got = {"all": [want + np.array([[0, gap], [0, gap]], np.float32)]}
        found = {
            name: compare.compare(got, {"all": [want]}, names=["x"], labels=np.zeros(2), task=task(name)).differences["all"][0]
            for name in ("multiclass", "regression")
        }
        assert found["multiclass"].num_outside == outside
        assert found["regression"].num_outside == (2 if outside else 0)
    assert found["regression"].allowed == "1e-05 + 0.001 x |torch|"
    broken = {"all": [np.full_like(want, np.inf)]}
    nothing = compare.compare(broken, broken, names=["x"], labels=np.zeros(2), task=task("multiclass")).differences["all"][0]
    assert nothing.num_not_finite == 4 and not nothing.agrees
