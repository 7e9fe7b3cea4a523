"""What is counted over all samples, for each kind of task."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from export import compare
from pipeline.task import TASKS


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
