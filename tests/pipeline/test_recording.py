from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config import RunConfig
from pipeline.progress import Progress
from tests.trainings import begin, curve

Make = Callable[..., RunConfig]
WHOLE = {  # the whole split in one batch
    "mean loss": {"model": "mlp", "recipe": "seed"},
    "by hand": {"model": "moons", "recipe": "seed"},
    "sum loss": {"model": "polynomial", "recipe": "seed"},
    "linear": {"model": "polynomial", "recipe": "seed", "gradient": "linear"},
    "clipped": {"model": "mlp", "batch_size": 1000, "grad_clip": 0.01},
    "rmsprop": {"model": "mlp", "batch_size": 1000, "optimizer": "rmsprop", "momentum": 0.9},
    "nesterov": {"model": "mlp", "batch_size": 1000, "optimizer": "sgd", "momentum": 0.9, "nesterov": "true"},
    "weight decay": {"model": "moons", "batch_size": 1000, "optimizer": "adamw", "weight_decay": 0.1},
    "muon": {"model": "mlp", "batch_size": 1000, "optimizer": "muon"},
    "a frozen layer": {"model": "mlp", "batch_size": 1000, "layer_lr": "hidden=0"},
}


@pytest.mark.parametrize("case", WHOLE)
def test_a_recorded_step_gives_the_same_weights_and_curve_bit_for_bit(make_config: Make, tmp_path: Path, case: str) -> None:
    config = make_config(**WHOLE[case] | {"epochs": 30, "log_every": 10})
    recorded, plain = begin(config, tmp_path / "recorded"), begin(config, tmp_path / "plain")
    assert recorded.repeats and len(recorded.batches) == 1
    plain.repeats = False
    for training in (recorded, plain):
        training.fit(Progress())
    assert recorded.step_record and not plain.step_record
    assert curve(recorded) == curve(plain)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, recorded.model.state_dict()[name]), name


@pytest.mark.parametrize(
    "flag", [{"batch_size": 100}, {"dropout": 0.1}, {"accumulation_steps": 2}, {"precision": "bf16"}, {"workers": 1}]
)
def test_what_differs_from_step_to_step_is_not_recorded(make_config: Make, tmp_path: Path, flag: dict[str, Any]) -> None:
    flags = {"model": "mlp", "batch_size": 1000} | flag
    assert not begin(make_config(**flags), tmp_path / "run").repeats
