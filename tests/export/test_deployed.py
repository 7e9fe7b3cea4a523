from __future__ import annotations

from typing import Any

import torch

from export.module import OUTPUTS, deployed
from pipeline import metrics
from pipeline.data.loader import open_split


def test_the_named_outputs_are_the_models_scores_their_probabilities_and_its_features(exported: Any) -> None:
    run = exported.run
    x = open_split(exported.data, "test").x[:9]
    with torch.no_grad():
        scores, features = run.load_model()(x)
        outputs = dict(zip(OUTPUTS[run.task], deployed(run)(x), strict=True))
    if run.task == "regression":
        assert list(outputs) == ["prediction"] and torch.equal(outputs["prediction"], scores)
        return
    assert torch.equal(outputs["logits"], scores) and torch.equal(outputs["features"], features)
    torch.testing.assert_close(outputs["probabilities"], metrics.probabilities(run.task, scores))
    torch.testing.assert_close(outputs["probabilities"].sum(1), torch.ones(9))
    assert torch.equal(outputs["probabilities"].argmax(1), metrics.predicted_labels(run.task, scores))
