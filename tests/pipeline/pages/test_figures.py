"""What the report counts again is what scikit-learn counted at the evaluation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.answers import Answers
from pipeline.pages import figures
from pipeline.task import TASKS


def _found(kind: str) -> Answers:
    rng = np.random.default_rng(5)
    task, count = TASKS[kind], 120
    scores = rng.normal(size=(count, {"binary": 1, "regression": 2}.get(kind, 4))).astype(np.float32)
    target = {
        "multiclass": rng.integers(0, 3, count), "binary": rng.integers(0, 2, count),
        "multilabel": (rng.random((count, 4)) < 0.4).astype(np.float32),
        "regression": 1000 + rng.normal(size=(count, 2)).astype(np.float32),
    }[kind]  # fmt: skip
    decided = task.decide(torch.from_numpy(scores)).numpy() if task.has_decisions else None
    return Answers(scores=scores, target=target, decided=decided, split="test", split_sha256="")


@pytest.mark.parametrize("kind", TASKS)
def test_each_figure_is_that_of_the_evaluation_and_lies_in_its_interval(kind: str) -> None:
    found, task = _found(kind), TASKS[kind]
    names = [f"name {k}" for k in range(max(2, found.scores.shape[1]))] if task.has_decisions else ["a", "b"]
    want = task.report(torch.from_numpy(found.scores), torch.from_numpy(found.target), classes=names)
    told = figures.estimates(found, has_labels=task.has_labels)
    flat = {name: value for name, value in want.items() if isinstance(value, float)}
    flat |= {f"{name}_macro": want["macro"][f"{name}{'-score' * (name == 'f1')}"] for name in ("precision", "recall", "f1")
             if "macro" in want}  # fmt: skip
    for k, name in enumerate(names):
        of_class = (want.get("classes") or want.get("targets"))[name]
        flat |= {f"class {k} {key.removesuffix('-score')}": value for key, value in of_class.items() if key != "support"}
    shared = told.keys() & flat.keys()
    assert task.metric in shared and len(shared) >= (5 if task.has_decisions else 6)
    for name in shared - ({"roc_auc"} if task.has_labels else set()):
        assert told[name].value == pytest.approx(flat[name], rel=1e-5), name
        low, high = told[name].interval or (0, 0)
        assert low <= told[name].value <= high or low == high, name
    assert figures.metric(figures.per_sample(found).mean(), found) == pytest.approx(want[task.metric], rel=1e-6)
