"""A flag that replaces a choice of a recipe replaces what was found with it, and says so."""

from __future__ import annotations

import pytest

from models import MODELS
from models.recipes import OPTIMIZERS as OWN
from models.recipes import names
from pipeline.resolve import applicable, describe, resolve

OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop", "muon")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_another_optimizer_brings_its_own_values_and_the_recipes_own_none(model: str, optimizer: str) -> None:
    for recipe in names(model):
        base, chosen = resolve({"model": model, "recipe": recipe}), resolve(
            {"model": model, "recipe": recipe, "optimizer": optimizer}
        )  # fmt: skip
        if optimizer == base.optimizer:
            assert chosen == base
            continue
        own = OWN[model][optimizer]
        scale = base.batch_size if optimizer == "sgd" and base.loss == "sse" else 1
        assert chosen.lr == pytest.approx(own["lr"] / scale, rel=0.01)  # type: ignore[operator]
        assert chosen.weight_decay == own["weight_decay"]
        assert (chosen.momentum, chosen.nesterov) == (own.get("momentum", 0), own.get("nesterov", False))
        assert chosen.warmup_ratio == (0.3 if base.scheduler == "one_cycle" else 0)


def test_a_value_that_was_given_stays() -> None:
    chosen = resolve({"model": "lenet", "optimizer": "adam", "weight_decay": "0.1", "lr": "0.5", "warmup_ratio": "0.1"})
    assert (chosen.weight_decay, chosen.lr, chosen.warmup_ratio) == (0.1, 0.5, 0.1)
    assert resolve({"model": "lenet", "lr": "0.5"}).weight_decay == resolve({"model": "lenet"}).weight_decay


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"recipe": "fast"}, {"epochs": 0, "max_steps": 200, "layer_lr": "conv1=0", "val_split": 0, "test_split": "auto"}),
        ({"recipe": "fast", "epochs": "5"}, {"epochs": 5, "max_steps": 0}),
        ({"recipe": "fast", "epochs": "5", "max_steps": "300"}, {"epochs": 5, "max_steps": 300}),
        ({"recipe": "fast", "batch_size": "32"}, {"max_steps": 1200}),
        ({"recipe": "fast", "init": "random"}, {"layer_lr": "", "max_steps": 200}),
        ({"recipe": "fast", "optimizer": "sgd"}, {"layer_lr": "conv1=0"}),
        ({"recipe": "fast", "dataset": "digits"}, {"val_split": "auto", "test_split": "auto"}),
        ({"recipe": "accurate", "dataset": "digits"}, {"val_split": "auto", "test_split": "auto"}),
        ({"model": "mlp", "recipe": "reference"}, {"val_split": 0, "test_split": 0}),
        ({"model": "mlp", "recipe": "reference", "dataset": "moons"}, {"val_split": "auto", "test_split": "auto"}),
        ({"model": "mlp", "model_args": "dropout=0.1"}, {"model_args": {"hidden": 25, "dropout": 0.1}}),
        ({"model": "two_layer", "data_args": "noise=0.1"}, {"data_args": {"noise": 0.1}}),
        ({"max_steps": "70"}, {"epochs": 0, "max_steps": 70}),
        ({"loss": "mse"}, {"label_smoothing": 0}),
        ({"scheduler": "constant"}, {"warmup_ratio": 0}),
        ({"scheduler": "step"}, {"warmup_ratio": 0, "step_size": 3}),
        ({"model": "mlp", "scheduler": "one_cycle"}, {"warmup_ratio": 0.3}),
        ({"model": "polynomial", "loss": "sse"}, {"lr": 0.05 / 400}),
        ({"model": "polynomial", "recipe": "reference", "loss": "mse"}, {"lr": 2e-3}),
        ({"model": "polynomial", "momentum": "0"}, {"nesterov": False}),
        ({"model": "polynomial", "optimizer": "adam"}, {"momentum": 0, "nesterov": False}),
    ],
)
def test_what_belongs_to_a_choice_goes_with_it(flags: dict[str, str], expected: dict[str, object]) -> None:
    chosen = resolve(flags)
    for name, value in expected.items():
        assert getattr(chosen, name) == (value if isinstance(value, str | dict) else pytest.approx(value)), name


def test_one_line_says_what_is_the_recipes_what_was_given_and_what_was_reset_by_it() -> None:
    assert describe({"model": "two_layer", "recipe": "reference"}) == (
        "two_layer on moons, recipe reference: loss=bce preprocess=none monitor=accuracy optimizer=sgd lr=0.2 epochs=1000 "
        "batch_size=640 checkpoint_every=200 model_args=hidden=5"
    )
    assert describe({"model": "lenet", "optimizer": "adam", "output_dir": "x", "seed": "3"}) == (
        "lenet on digits, recipe default: loss=cross_entropy preprocess=standardize monitor=accuracy label_smoothing=0.05 "
        "scheduler=one_cycle warmup_ratio=0.3 batch_size=32 precision=auto epochs=20; given: optimizer=adam (was adamw), "
        "seed=3 (was 0); reset with it: lr=0.005 (was 0.01), weight_decay=0.0 (was 0.1)"
    )


def test_what_has_no_effect_is_not_among_the_parameters() -> None:
    cnn, polynomial = applicable(resolve({"model": "cnn"})), applicable(resolve({"model": "polynomial"}))
    assert not {"model_args", "momentum", "nesterov", "step_size", "gamma", "data_dir", "max_steps"} & set(cnn)
    assert {"image_size", "label_smoothing", "init", "lr", "warmup_ratio", "augment_shift"} <= set(cnn)
    assert not {"label_smoothing", "init", "image_size", "augment_shift"} & set(polynomial)
    assert {"model_args.gradient", "momentum", "nesterov"} <= set(polynomial)
