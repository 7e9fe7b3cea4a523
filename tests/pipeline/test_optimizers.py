from __future__ import annotations

import pytest
import torch

from models.wrapper import Model
from pipeline.config import RunConfig
from pipeline.optimizers import build_optimizer, lr_factor, set_lr
from pipeline.resolve import resolve
from tests.models import test_registry


def _model(name: str, **flags: str) -> tuple[Model, RunConfig]:
    return test_registry._model(name), resolve({"model": name} | flags)


def _course(steps_per_epoch: int = 10, **flags: str) -> list[float]:
    config = resolve(flags)
    total = config.epochs * steps_per_epoch
    return [lr_factor(s, config, total_steps=total, steps_per_epoch=steps_per_epoch) for s in range(total)]


def test_constant_stays_and_warmup_rises_to_it() -> None:
    assert set(_course(scheduler="constant", warmup_ratio="0", epochs="3")) == {1.0}
    course = _course(scheduler="constant", warmup_ratio="0.5", epochs="2")
    assert course[:10] == pytest.approx([(k + 1) / 11 for k in range(10)]) and set(course[10:]) == {1.0}


def test_step_cuts_by_gamma_every_step_size_epochs() -> None:
    course = _course(scheduler="step", warmup_ratio="0", epochs="6", step_size="2", gamma="0.5")
    assert [course[e * 10] for e in range(6)] == [1, 1, 0.5, 0.5, 0.25, 0.25] and course[19:21] == [1, 0.5]


def test_cosine_falls_from_the_peak_to_nearly_nothing() -> None:
    course = _course(scheduler="cosine", warmup_ratio="0", epochs="10")
    assert course[0] == 1 and course[50] == pytest.approx(0.5) and 0 < course[-1] < 0.001
    assert course == sorted(course, reverse=True)


def test_one_cycle_rises_from_a_25th_and_falls_again() -> None:
    course = _course(scheduler="one_cycle", warmup_ratio="0.3", epochs="10")
    assert course[0] == pytest.approx(1 / 25, abs=0.01) and max(course) == course[30] == 1 and course[-1] < 0.001
    assert course[:31] == sorted(course[:31])


@pytest.mark.parametrize("scheduler", ["constant", "step", "cosine", "one_cycle"])
@pytest.mark.parametrize("warmup_ratio", ["0.1", "0.5", "0.99"])
def test_every_course_is_defined_for_trainings_of_any_length(scheduler: str, warmup_ratio: str) -> None:
    for epochs in ("2", "20") if scheduler == "step" else ("1", "2", "20"):
        assert all(0 <= f <= 1 for f in _course(1, scheduler=scheduler, warmup_ratio=warmup_ratio, epochs=epochs))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
def test_optimizers_take_the_fields_of_the_configuration(optimizer: str) -> None:
    flags = {"momentum": "0.9"} if optimizer in ("sgd", "rmsprop") else {}
    built = build_optimizer(*_model("mlp", optimizer=optimizer, lr="0.25", weight_decay="0.125", **flags))
    assert type(built).__name__.lower() == optimizer
    (group,) = built.param_groups
    assert (group["lr"], group["weight_decay"], group.get("momentum", 0.9)) == (0.25, 0.125, 0.9)


def test_sgd_is_the_texts_update_by_hand() -> None:
    model, config = _model("mlp", optimizer="sgd", lr="0.5", weight_decay="0", momentum="0")
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.randn(4, 30))[0].sum().backward()
    build_optimizer(model, config).step()
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(new, old - 0.5 * new.grad)


def test_layers_have_rates_and_decays_of_their_own() -> None:
    model, config = _model("cnn", layer_lr="fc2=0.5,conv1=0.002", layer_weight_decay="fc2=0.25")
    optimizer = build_optimizer(model, config)
    names = {id(p): n for n, p in model.named_parameters()}
    by_name = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert by_name["network.fc2.weight"] == by_name["network.fc2.bias"] == (0.5, 0.25)
    assert by_name["network.conv1.weight"] == (0.002, config.weight_decay)
    assert by_name["network.fc1.weight"] == (config.lr, config.weight_decay) and len(by_name) == 8
    peaks = [group["lr"] for group in optimizer.param_groups]
    assert set_lr(optimizer, 0.5) == {"train/lr/conv1": 0.001, "train/lr": config.lr / 2, "train/lr/fc2": 0.25}
    assert [group["lr"] for group in optimizer.param_groups] == [peak / 2 for peak in peaks]  # the schedule moves every group


def test_a_layer_with_a_rate_of_0_is_frozen() -> None:
    model, config = _model("cnn", layer_lr="conv1=0")
    optimizer = build_optimizer(model, config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8))[0].sum().backward()
    optimizer.step()
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    assert still == {"network.conv1.weight", "network.conv1.bias"}
    assert all((p.grad is None) == (name in still) for name, p in model.named_parameters())
