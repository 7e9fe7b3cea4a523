"""What every registered model keeps: a new one is tested by being registered."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import models
from models import MODELS
from models.handwritten import ACTIVATIONS
from models.recipes import names
from models.wrapper import Model, statistics
from pipeline.data import find
from pipeline.data.spec import DataSpec
from pipeline.resolve import resolve


def _data(name: str) -> DataSpec:
    config = resolve({"model": name})
    return find(config.dataset).spec.resized(config.image_size)


def _model(name: str, **args: object) -> Model:
    torch.manual_seed(0)
    return models.build(name, _data(name), args).eval()


def _input(name: str, batch: int) -> torch.Tensor:
    data = _data(name)
    if data.is_image:
        return torch.randint(0, 256, (batch, *data.sample_shape), dtype=torch.uint8)
    return torch.randn(batch, *data.sample_shape)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_gives_scores_and_features_for_any_batch(name: str, batch: int) -> None:
    model = _model(name)
    scores, features = model(_input(name, batch))
    assert scores.shape == (batch, _data(name).num_outputs) and scores.dtype == torch.float32
    assert features.ndim == 2 and len(features) == batch


@pytest.mark.parametrize("name", MODELS)
def test_a_sample_is_answered_alike_alone_and_in_a_batch(name: str) -> None:
    model = _model(name)
    x = _input(name, 6)
    torch.testing.assert_close(model(x)[0][2:3], model(x[2:3])[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_belongs_to_a_named_layer(name: str) -> None:
    model = _model(name)
    layers = {n.removeprefix("network.").partition(".")[0] for n, _ in model.named_parameters()}
    assert layers <= set(MODELS[name].layers)


@pytest.mark.parametrize(("name", "recipe"), [(n, r) for n in MODELS for r in names(n)])
def test_every_recipe_is_a_valid_configuration(name: str, recipe: str) -> None:
    config = resolve({"model": name, "recipe": recipe})
    assert config.model == name and config.recipe == recipe


def test_lenet_has_the_texts_ten_parameter_tensors() -> None:
    model = _model("lenet")
    sizes = [tuple(p.shape) for p in model.parameters()]
    assert sizes == [(6, 1, 5, 5), (6,), (16, 6, 5, 5), (16,), (120, 400), (120,), (84, 120), (84,), (10, 84), (10,)]


def test_cnn_gives_the_128_features_that_its_last_layer_reads() -> None:
    model = _model("cnn")
    scores, features = model(_input("cnn", 3))
    assert features.shape == (3, 128) and (features >= 0).all()
    torch.testing.assert_close(model.network.fc2(features), scores)


def test_dropout_acts_in_training_only() -> None:
    model = _model("cnn", dropout=0.5)
    x = _input("cnn", 4)
    assert torch.equal(model(x)[0], model(x)[0])
    model.train()
    assert not torch.equal(model(x)[0], model(x)[0])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_by_hand_agrees_with_torch(name: str) -> None:
    theirs = {
        "logistic": torch.sigmoid, "tanh": torch.tanh, "relu": F.relu, "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
        "hard_logistic": F.hardsigmoid, "hard_tanh": F.hardtanh, "elu": F.elu, "softplus": F.softplus, "swish": F.silu,
    }  # fmt: skip
    x = torch.linspace(-10, 10, 10_000)
    torch.testing.assert_close(ACTIVATIONS[name](x), theirs[name](x), rtol=1e-5, atol=1e-5)


def test_standardisation_is_part_of_the_model_and_of_its_weights() -> None:
    network = torch.nn.Sequential()
    network.forward = lambda x: (x, x)  # type: ignore[method-assign, assignment]
    model = Model(network, mean=[100.0], std=[50.0], input_shape=(1, 2, 2))
    x = torch.tensor([0, 100, 150, 255], dtype=torch.uint8).reshape(1, 1, 2, 2)
    assert model(x)[0].flatten().tolist() == pytest.approx([-2.0, 0.0, 1.0, 3.1])
    assert {"mean", "std"} <= set(model.state_dict())


def test_preprocessing_statistics() -> None:
    data = DataSpec(name="x", task="binary", sample_shape=(2,), mean=(3.0, 4.0), std=(2.0, 0.0))
    assert statistics("standardize", data) == {"mean": [3.0, 4.0], "std": [2.0, 1.0]}
    assert statistics("none", data) == {"mean": [0.0, 0.0], "std": [1.0, 1.0]}
    ranged = dataclasses.replace(data, value_range=(0, 255))
    assert statistics("scale", ranged) == {"mean": [0.0, 0.0], "std": [255.0, 255.0]}
    with pytest.raises(ValueError, match="fixed range"):
        statistics("scale", data)


@pytest.mark.parametrize("name", MODELS)
def test_hidden_matrices_are_weights_of_the_model(name: str) -> None:
    model = _model(name)
    weights = {n for n, parameter in model.named_parameters() if parameter.ndim > 1}
    assert set(model.hidden_matrices) < weights or not model.hidden_matrices


def test_the_registries_load_without_torch() -> None:
    code = "import sys, models, pipeline.config, pipeline.resolve; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
