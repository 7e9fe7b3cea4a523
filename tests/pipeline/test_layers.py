"""Which parameters learn, and how fast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import models
from pipeline import layers, manifest
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.norms import set_training
from pipeline.optimizers import build_optimizer, set_lr
from pipeline.resolve import resolve
from pipeline.signals import Interrupted
from pipeline.skeleton import refuse_impossible
from tests.models import test_registry
from tests.networks import NORMED, Normed
from tests.pipeline.test_checkpoint import _StopAt
from tests.trainings import fit, same_weights

Make = Callable[..., RunConfig]


@pytest.fixture
def normed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.MODELS, "normed", NORMED)  # type: ignore[arg-type]


def _names(text: str) -> list[tuple[str, torch.Tensor]]:
    """Return parameters of these names: a matrix, or with `'` a vector."""
    return [(f"network.{n.rstrip(chr(39))}", torch.zeros(2) if n.endswith("'") else torch.zeros(2, 2)) for n in text.split()]


RESNET = """conv1.weight bn1.weight' layer1.0.conv1.weight layer1.0.bn1.weight' layer1.1.conv1.weight layer2.0.conv1.weight
    fc.weight fc.bias'"""
VIT = """cls_token pos_embed patch_embed.proj.weight blocks.0.norm1.weight' blocks.0.attn.qkv.weight blocks.1.attn.qkv.weight
    norm.weight' head.weight head.bias'"""
TORCHVISION = """class_token conv_proj.weight encoder.pos_embedding encoder.layers.layer_0.mlp.weight
    encoder.layers.layer_1.mlp.weight encoder.ln.weight' heads.h.weight"""
NO_NAMES = "features.0.weight features.1.weight classifier.0.weight' classifier.2.weight"


@pytest.mark.parametrize(
    ("text", "expected", "head"),
    [
        (RESNET, "conv1 conv1 layer1 layer1 layer1 layer2 fc fc", "fc"),
        (VIT, "cls_token pos_embed patch_embed blocks.0 blocks.0 blocks.1 blocks.1 head head", "head"),
        (TORCHVISION, "class_token conv_proj encoder encoder.layers.layer_0 encoder.layers.layer_1 encoder heads", "heads.h"),
        (NO_NAMES, "features.0 features.1 features.1 classifier.2", "classifier.2"),
        ("first.weight head.weight late.weight'", "first head head", "head"),
        ("a' b' c'", "a a a", ""),
    ],
)  # fmt: skip
def test_layers_are_counted_from_the_head_and_a_normalization_with_the_one_before_it(
    text: str, expected: str, head: str
) -> None:
    found = layers.distances(_names(text))
    assert [layer for _, layer in found.values()] == expected.split()
    order = list(dict.fromkeys(expected.split()))
    assert [k for k, _ in found.values()] == [len(order) - 1 - order.index(layer) for layer in expected.split()]
    assert layers.head_of(_names(text)) == head


def test_patterns_take_parameters_and_whole_modules() -> None:
    for pattern in ("layer1", "layer1.*", "layer1.0.conv1.weight", "*.weight", "layer1.0", "l*"):
        assert layers.matches("layer1.0.conv1.weight", pattern), pattern
    for pattern in ("layer", "conv1", "Layer1", "layer1.0.conv", "*.bias"):
        assert not layers.matches("layer1.0.conv1.weight", pattern), pattern


def _rates(**flags: str) -> dict[str, float]:
    model, config = test_registry._model("cnn"), resolve({"model": "cnn", "lr": "1"} | flags)
    optimizer = build_optimizer(model, config)
    found = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {n: found.get(id(p), 0.0) for n, p in ((layers.short(n), p) for n, p in model.named_parameters())}


def test_rates_fall_from_the_head_to_the_input_and_a_layers_own_rate_wins() -> None:
    by_decay = _rates(layer_decay="0.5")
    expected = {"conv1": 0.125, "conv2": 0.25, "fc1": 0.5, "fc2": 1}
    assert by_decay == {f"{layer}.{kind}": rate for layer, rate in expected.items() for kind in ("weight", "bias")}
    assert _rates(head_lr="3") == {name: 3 if name.startswith("fc2") else 1 for name in by_decay}
    mixed = _rates(layer_decay="0.5", head_lr="3", layer_lr="fc1=7", freeze="conv1,*.bias", layer_weight_decay="conv2=0.3")
    learning = {"conv2.weight": 0.25, "fc1.weight": 7, "fc2.weight": 3}
    assert mixed == {name: learning.get(name, 0) for name in by_decay}
    assert _rates(layer_lr="fc2=9", head_lr="3")["fc2.weight"] == 9


def test_each_rate_has_a_name_of_its_own_in_the_curves() -> None:
    model, config = test_registry._model("cnn"), resolve({"lr": "1", "layer_decay": "0.5", "head_lr": "2", "optimizer": "muon"})
    told = set_lr(build_optimizer(model, config), 0.5)
    assert told == {"train/lr/conv1": 0.0625, "train/lr/conv2": 0.125, "train/lr/fc1": 0.25, "train/lr/fc2": 1}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"freeze": "conv9,conv1"}, "freeze=conv9,conv1 has conv9, which no parameter of model=cnn matches. Its layers "),
        ({"freeze": ","}, "freeze=, has no pattern"),
        ({"freeze": "*"}, "freeze=* freezes every layer, so that nothing would learn"),
        ({"freeze": "conv*", "layer_lr": "fc1=0,fc2=0"}, "freeze=conv* and layer_lr=fc1=0,fc2=0 freezes every layer"),
        ({"freeze": "fc1", "layer_lr": "fc1=0.1"}, "layer_lr=fc1=0.1 gives fc1 a learning rate, and freeze=fc1 freezes it"),
        ({"freeze": "fc2", "head_lr": "0.1"}, "head_lr=0.1 has no effect on model=cnn: the head (fc2) is frozen"),
        ({"layer_lr": "fc2=1", "head_lr": "0.1"}, "head_lr=0.1 has no effect"),
        ({"layer_decay": "0.5", "freeze": "conv*,fc1"}, "layer_decay=0.5 has no effect on model=cnn: every layer but the last"),
        ({"model": "polynomial", "layer_decay": "0.5"}, "layer_decay=0.5 has no effect on model=polynomial"),
    ],
)  # fmt: skip
def test_what_would_have_no_effect_is_refused_before_anything_is_created(flags: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as error:
        refuse_impossible(resolve(flags))
    (message,) = error.value.messages
    assert message.startswith(said) and message.endswith(".")


@pytest.mark.parametrize(
    ("name", "value"), [("head_lr", "0"), ("layer_decay", "0"), ("layer_decay", "1.5"), ("head_lr", "nan")]
)
def test_a_rate_out_of_range_is_told(name: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"^{name}={value} is "):
        resolve({name: value})


def test_settings_that_fit_are_taken() -> None:
    refuse_impossible(resolve({"freeze": "conv1,conv2.bias", "head_lr": "0.1", "layer_decay": "0.9", "layer_lr": "fc1=0"}))
    assert resolve({"head_lr": "auto", "layer_decay": "1", "freeze": ""}) == resolve({})


def test_a_normalization_is_frozen_with_its_parameters_and_keeps_its_statistics(
    normed: None, make_config: Make, tmp_path: Path
) -> None:
    training = fit(make_config(model="normed", epochs=1, freeze="conv1,bn1", val_split="0.2"), tmp_path / "run")
    network, fresh = training.model.network, training.run.build_model().network
    assert isinstance(network, Normed) and isinstance(fresh, Normed)
    moved = {n for n, value in network.state_dict().items() if not torch.equal(value, fresh.state_dict()[n])}
    assert moved == {n for n in network.state_dict() if n.startswith(("layer1", "fc"))}
    for epoch in range(2):  # as the evaluation leaves it, and as training has it
        network.eval() if epoch else None
        set_training(training.model)
        assert training.model.training and network.layer1[1].training and not network.bn1.training


def test_a_normalization_without_parameters_or_with_a_bias_that_learns_is_trained() -> None:
    network = nn.Sequential(nn.BatchNorm1d(3, affine=False), nn.BatchNorm1d(3), nn.Linear(3, 3))
    network[1].weight.requires_grad_(False)
    set_training(network)
    assert all(module.training for module in network)


def test_a_resumed_fine_tuning_is_the_whole_one_bit_for_bit(normed: None, make_config: Make, tmp_path: Path) -> None:
    flags = {"model": "normed", "freeze": "conv1,bn1", "head_lr": "0.01", "layer_decay": "0.5"}
    whole = fit(make_config(**flags, epochs=2), tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(make_config(**flags, epochs=2, log_every=1), tmp_path / "run", _StopAt(13))  # of 24 steps
    fit(make_config(**flags, epochs=2), tmp_path / "run")
    for name in (manifest.WEIGHTS, manifest.LAST_WEIGHTS):
        assert same_weights(whole.run.folder / name, tmp_path / "run" / name)
