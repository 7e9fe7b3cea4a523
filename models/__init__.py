"""The registry of networks: what each takes and gives, and how it is best trained.

Nothing here imports torch, so that the command line can check a configuration in a moment; `build_model` does, when called.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.wrapper import Model


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One network.

    `builder` names a class as `module:Class`; it is called with `num_outputs`, `input_shape` and the fields in `options`.
    `input_shape` is the shape of one sample; `None` stands for any length. `layers` are the prefixes of its parameters'
    names. `recipes` maps a recipe, or `recipe:data set` where one data set needs other values, to configuration fields.
    `optimizers` maps each optimizer to the fields that replace a recipe's when a flag chooses it.
    """

    summary: str
    builder: str
    tasks: tuple[str, ...]
    input_shape: tuple[int | None, ...]
    layers: tuple[str, ...]
    recipes: Mapping[str, Mapping[str, object]]
    optimizers: Mapping[str, Mapping[str, object]]
    options: tuple[str, ...] = ()

    def recipe(self, name: str, dataset: str | None = None) -> dict[str, object]:
        """Return the fields that recipe `name` sets, for `dataset` (default: the recipe's own data set)."""
        base = dict(self.recipes[name])
        return base | dict(self.recipes.get(f"{name}:{dataset or base['dataset']}", {}))


_IMAGES = {  # found on MNIST's validation samples: label smoothing brings most of it
    "dataset": "digits", "loss": "cross_entropy", "preprocess": "standardize", "monitor": "accuracy", "optimizer": "adamw",
    "lr": 5e-3, "weight_decay": 0.1, "label_smoothing": 0.05, "scheduler": "one_cycle", "warmup_ratio": 0.3, "batch_size": 48,
    "precision": "auto",
}  # fmt: skip

_MNIST = {  # the best of 17 candidates for both networks: docs/search-cnn.jsonl, docs/search-lenet.jsonl
    "epochs": 5, "optimizer": "muon", "lr": 3.5e-3, "weight_decay": 0.2, "warmup_ratio": 0.2, "init": "pca", "augment_shift": 1,
}  # fmt: skip

_NESTEROV = {"momentum": 0.9, "nesterov": True}

_FOR_IMAGES = {  # benchmarks/optimizers.py holds each against the others, on every data set
    "sgd": {"lr": 0.03, "weight_decay": 1e-4} | _NESTEROV, "adam": {"lr": 5e-3, "weight_decay": 0.0},
    "adamw": {"lr": 5e-3, "weight_decay": 0.05}, "rmsprop": {"lr": 2e-3, "weight_decay": 0.0},
    "muon": {"lr": 3.5e-3, "weight_decay": 0.05},
}  # fmt: skip

_FOR_VECTORS = {
    "sgd": {"lr": 0.2, "weight_decay": 1e-4} | _NESTEROV, "adam": {"lr": 0.02, "weight_decay": 0.0},
    "adamw": {"lr": 0.02, "weight_decay": 0.05}, "rmsprop": {"lr": 0.01, "weight_decay": 0.0},
    "muon": {"lr": 0.02, "weight_decay": 0.05},
}  # fmt: skip

_FOR_A_CUBIC = {  # four numbers to fit, and nothing to regularize
    "sgd": {"lr": 0.05, "weight_decay": 0.0} | _NESTEROV, "adam": {"lr": 0.1, "weight_decay": 0.0},
    "adamw": {"lr": 0.1, "weight_decay": 0.0}, "rmsprop": {"lr": 0.05, "weight_decay": 0.0},
    "muon": {"lr": 0.1, "weight_decay": 0.0},
}  # fmt: skip

MODELS: dict[str, ModelSpec] = {
    "polynomial": ModelSpec(
        summary="a cubic y = a + b x + c x^2 + d x^3 with hand-derived, autograd or nn.Linear gradients",
        builder="models.polynomial:Polynomial",
        tasks=("regression",),
        input_shape=(1,),
        layers=("a", "b", "c", "d", "linear"),
        optimizers=_FOR_A_CUBIC,
        options=("gradient",),
        recipes={
            "default": {
                "dataset": "sine", "loss": "mse", "preprocess": "standardize", "monitor": "loss", "optimizer": "sgd",
                "lr": 0.05, "momentum": 0.9, "nesterov": True, "scheduler": "cosine", "epochs": 60, "batch_size": 400,
                "checkpoint_every": "500", "gradient": "autograd",
            },
            "reference": {
                "dataset": "sine", "loss": "sse", "preprocess": "none", "holdout": False, "optimizer": "sgd", "lr": 1e-6,
                "epochs": 2000, "batch_size": 2000, "checkpoint_every": "500", "gradient": "manual",
            },
        },
    ),
    "mlp": ModelSpec(
        summary="a perceptron with one hidden tanh layer",
        builder="models.perceptron:Perceptron",
        tasks=("binary", "multiclass"),
        input_shape=(None,),
        layers=("hidden", "output"),
        optimizers=_FOR_VECTORS,
        options=("hidden", "dropout"),
        recipes={
            "default": {
                "dataset": "breast_cancer", "loss": "bce", "preprocess": "standardize", "monitor": "loss",
                "optimizer": "adam", "lr": 0.01, "epochs": 40, "batch_size": 32, "checkpoint_every": "1000", "hidden": 25,
            },
            "reference": {
                "dataset": "breast_cancer", "loss": "mse", "preprocess": "none", "holdout": False, "optimizer": "adam",
                "lr": 1e-3, "epochs": 1000, "batch_size": 569, "checkpoint_every": "200", "hidden": 25,
            },
        },
    ),
    "moons": ModelSpec(
        summary="two logistic layers built from operators with hand-written forward and backward",
        builder="models.two_layer:Moons",
        tasks=("binary",),
        input_shape=(None,),
        layers=("hidden", "output"),
        optimizers=_FOR_VECTORS,
        options=("hidden",),
        recipes={
            "default": {
                "dataset": "moons", "loss": "bce", "preprocess": "standardize", "monitor": "loss", "optimizer": "adam",
                "lr": 0.05, "scheduler": "cosine", "epochs": 60, "batch_size": 64, "checkpoint_every": "500", "hidden": 32,
            },
            "reference": {
                "dataset": "moons", "loss": "bce", "preprocess": "none", "monitor": "accuracy", "optimizer": "sgd",
                "lr": 0.2, "epochs": 1000, "batch_size": 640, "checkpoint_every": "200", "hidden": 5,
            },
        },
    ),
    "lenet": ModelSpec(
        summary="LeNet: two convolutions and three linear layers on 32x32 images",
        builder="models.lenet:LeNet",
        tasks=("multiclass",),
        input_shape=(1, 32, 32),
        layers=("conv1", "conv2", "fc1", "fc2", "fc3"),
        optimizers=_FOR_IMAGES,
        options=("dropout",),
        recipes={
            "default": _IMAGES | {"lr": 0.01, "epochs": 20, "batch_size": 32},
            "default:mnist": _MNIST | {"batch_size": 48},
            "reference": {
                "dataset": "digits", "loss": "cross_entropy", "preprocess": "scale", "monitor": "accuracy",
                "optimizer": "sgd", "lr": 0.01, "epochs": 20, "batch_size": 4,
            },
        },
    ),
    "cnn": ModelSpec(
        summary="two 5x5 convolutions and two linear layers on 28x28 images; its 128 features are an output too",
        builder="models.cnn:CNN",
        tasks=("multiclass",),
        input_shape=(1, 28, 28),
        layers=("conv1", "conv2", "fc1", "fc2"),
        optimizers=_FOR_IMAGES,
        options=("dropout",),
        recipes={
            "default": _IMAGES | {"epochs": 10},
            "default:mnist": _MNIST,
            "fast": _IMAGES | {
                "dataset": "mnist", "holdout": False, "epochs": 0, "max_steps": 200, "batch_size": 192, "optimizer": "muon",
                "lr": 7e-3, "weight_decay": 0.05, "warmup_ratio": 0.2, "init": "pca", "layer_lr": "conv1=0",
            },
            "accurate": _IMAGES | {
                "dataset": "mnist", "holdout": False, "epochs": 12, "batch_size": 72, "optimizer": "muon", "lr": 4e-3,
                "weight_decay": 0.05, "warmup_ratio": 0.2, "init": "pca", "augment_shift": 2, "augment_affine": 0.2,
            },
            "reference": {
                "dataset": "mnist", "loss": "cross_entropy", "preprocess": "scale", "holdout": False, "optimizer": "adam",
                "lr": 0.01, "epochs": 20, "batch_size": 50,
            },
        },
    ),
}  # fmt: skip


def build_model(
    name: str,
    *,
    input_shape: tuple[int, ...],
    num_outputs: int,
    preprocess: Mapping[str, Any],
    options: Mapping[str, object],
) -> Model:
    """Build a network behind its preprocessing, on the CPU, in float32 and training mode.

    `preprocess` holds `mean` and `std`, floats nested like one value per channel (images) or per feature (vectors).
    `options` may hold more fields than the network reads. Weights are drawn from torch's global generator.
    """
    from models.wrapper import Model

    spec = MODELS[name]
    module, _, attribute = spec.builder.partition(":")
    builder = getattr(importlib.import_module(module), attribute)
    network = builder(input_shape=input_shape, num_outputs=num_outputs, **{o: options[o] for o in spec.options})
    return Model(network, mean=preprocess["mean"], std=preprocess["std"], input_shape=input_shape)
