"""The module that every format is made from."""

from __future__ import annotations

from typing import Any

import torch

from export.module import export_module
from pipeline.data.loader import open_split


def test_the_named_outputs_are_the_models_scores_their_probabilities_and_its_features(exported: Any) -> None:
    run, kind = exported.run, exported.run.task
    x = open_split(exported.data, "test").x[:9]
    with torch.no_grad():
        scores, features = run.load_model()(x)
        outputs = dict(zip(kind.outputs, export_module(run)(x), strict=True))
    if not kind.has_decisions:
        assert list(outputs) == ["prediction"] and torch.equal(outputs["prediction"], scores)
        return
    assert torch.equal(outputs["logits"], scores) and torch.equal(outputs["features"], features)
    torch.testing.assert_close(outputs["probabilities"], kind.probabilities(scores))
    torch.testing.assert_close(outputs["probabilities"].sum(1), torch.ones(9))
    assert torch.equal(outputs["probabilities"].argmax(1), kind.decide(scores))
