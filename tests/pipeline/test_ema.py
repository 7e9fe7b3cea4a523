"""The moving average of the weights: torch's own numbers, its own validation, and nothing lost on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

import models
from pipeline import manifest
from pipeline.checkpoint import newest_checkpoint
from pipeline.config import RunConfig
from pipeline.ema import Average
from pipeline.plots.curves import kept_epoch
from pipeline.signals import Interrupted
from tests.models import test_registry
from tests.networks import NORMED
from tests.pipeline.test_checkpoint import _StopAt
from tests.trainings import curve, fit, same_weights

Make = Callable[..., RunConfig]
FLAGS: dict[str, Any] = {"model": "normed", "epochs": 3, "batch_size": 200, "ema_decay": 0.9, "lr": 0.02, "log_every": 1}


@pytest.fixture(autouse=True)
def normed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.MODELS, "normed", NORMED)  # type: ignore[arg-type]


def test_it_is_torchs_own_average_once_the_first_steps_are_over() -> None:
    """(1 + n) / (10 + n) reaches 0.9 at the 80th step; from there on torch's AveragedModel has the same weights."""
    model = test_registry._model("lenet")
    model.network.conv1.requires_grad_(False)
    ours = Average(model, 0.9)
    for step in range(1, 90):
        assert ours.decay_in(step) == pytest.approx(min(0.9, (1 + step) / (10 + step)))
        with torch.no_grad():
            for parameter in model.network.fc3.parameters():
                parameter.add_(torch.randn_like(parameter))
        if step == 80:
            theirs = AveragedModel(ours.model, avg_fn=lambda mean, new, _: 0.9 * mean + 0.1 * new)
            theirs.update_parameters(ours.model)  # its first call copies
        ours.update(step)
        if step >= 80:
            theirs.update_parameters(model)
    for name, value in theirs.module.named_parameters():
        torch.testing.assert_close(dict(ours.model.named_parameters())[name], value)
    assert torch.equal(ours.model.network.conv1.weight, model.network.conv1.weight)
    assert not any(parameter.requires_grad for parameter in ours.model.parameters())


def test_its_own_validation_chooses_the_weights_that_are_kept(make_config: Make, tmp_path: Path) -> None:
    training = fit(make_config(**FLAGS), tmp_path / "run")
    rows = [row for row in curve(training) if "val/loss" in row]
    assert all({"val/loss", "val/accuracy", "val/ema/loss", "val/ema/accuracy"} <= set(row) for row in rows)
    best = min(rows, key=lambda row: row["val/ema/loss"] if training.config.monitor == "loss" else -row["val/ema/accuracy"])
    assert training.state.best_epoch == round(best["epoch"])
    kept = kept_epoch(rows, training.config.monitor)
    assert kept and kept[0] == best and "val/ema" in kept[1]
    stored, last = training.run.load_model(), training.run.load_model(manifest.LAST_WEIGHTS)
    with torch.no_grad():
        loss = training.val_loss_sum(stored(training.val.x)[0], training.val.y).item() / len(training.val)
    assert loss == pytest.approx(best["val/ema/loss"], rel=1e-5)
    assert all(torch.equal(value, training.model.state_dict()[name]) for name, value in last.state_dict().items())
    differ = {name for name, value in stored.named_parameters() if not torch.equal(value, dict(last.named_parameters())[name])}
    assert len(differ) == len(list(stored.parameters()))
    assert training.average and torch.equal(training.average.model.network.bn1.running_var, last.network.bn1.running_var)  # type: ignore[union-attr]


@pytest.mark.parametrize("at", [4, 9])
def test_a_run_stopped_at_any_step_resumes_its_average_bit_for_bit(make_config: Make, tmp_path: Path, at: int) -> None:
    whole = fit(make_config(**FLAGS), tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(make_config(**FLAGS), tmp_path / "run", _StopAt(at))
    resumed = fit(make_config(**FLAGS), tmp_path / "run")
    tail = curve(resumed)
    assert tail == curve(whole)[-len(tail) :]
    for name in (manifest.WEIGHTS, manifest.LAST_WEIGHTS):
        assert same_weights(tmp_path / "whole" / name, tmp_path / "run" / name)


def test_without_validation_the_average_is_what_a_run_ends_with(make_config: Make, tmp_path: Path) -> None:
    training = fit(make_config(**FLAGS | {"epochs": 1}, val_split=0), tmp_path / "run")
    found = newest_checkpoint(tmp_path / "run")
    assert found and training.average
    stored = training.run.load_model().state_dict()
    assert all(torch.equal(value, training.average.model.state_dict()[name]) for name, value in stored.items())


def test_the_weights_are_trained_as_without_it(make_config: Make, tmp_path: Path) -> None:
    flags = FLAGS | {"epochs": 1}
    fit(make_config(**flags), tmp_path / "with")
    fit(make_config(**flags | {"ema_decay": 0}), tmp_path / "without")
    assert same_weights(*(tmp_path / name / manifest.LAST_WEIGHTS for name in ("with", "without")))
