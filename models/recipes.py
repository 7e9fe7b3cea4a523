"""How each built-in model is best trained: recipes, and what another optimizer needs. Without torch.

A recipe maps names of configuration fields to values; `recipe:data set` adds what one data set needs. `reference` is the recipe
of the text that the model came from.
"""

from __future__ import annotations

from collections.abc import Mapping

Recipe = Mapping[str, object]

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

RECIPES: Mapping[str, Mapping[str, Recipe]] = {
    "polynomial": {
        "default": {
            "dataset": "sine", "loss": "mse", "preprocess": "standardize", "monitor": "loss", "optimizer": "sgd",
            "lr": 0.05, "momentum": 0.9, "nesterov": True, "scheduler": "cosine", "epochs": 60, "batch_size": 400,
            "checkpoint_every": "500", "model_args": {"gradient": "autograd"},
        },
        "reference": {
            "dataset": "sine", "loss": "sse", "preprocess": "none", "val_split": 0.0, "test_split": 0.0, "optimizer": "sgd",
            "lr": 1e-6, "epochs": 2000, "batch_size": 2000, "checkpoint_every": "500", "model_args": {"gradient": "manual"},
        },
    },
    "mlp": {
        "default": {
            "dataset": "breast_cancer", "loss": "bce", "preprocess": "standardize", "monitor": "loss",
            "optimizer": "adam", "lr": 0.01, "epochs": 40, "batch_size": 32, "checkpoint_every": "1000",
            "model_args": {"hidden": 25},
        },
        "reference": {
            "dataset": "breast_cancer", "loss": "mse", "preprocess": "none", "val_split": 0.0, "test_split": 0.0,
            "optimizer": "adam",
            "lr": 1e-3, "epochs": 1000, "batch_size": 569, "checkpoint_every": "200", "model_args": {"hidden": 25},
        },
    },
    "two_layer": {
        "default": {
            "dataset": "moons", "loss": "bce", "preprocess": "standardize", "monitor": "loss", "optimizer": "adam",
            "lr": 0.05, "scheduler": "cosine", "epochs": 60, "batch_size": 64, "checkpoint_every": "500",
            "model_args": {"hidden": 32},
        },
        "reference": {
            "dataset": "moons", "loss": "bce", "preprocess": "none", "monitor": "accuracy", "optimizer": "sgd",
            "lr": 0.2, "epochs": 1000, "batch_size": 640, "checkpoint_every": "200", "model_args": {"hidden": 5},
        },
    },
    "lenet": {
        "default": _IMAGES | {"lr": 0.01, "epochs": 20, "batch_size": 32},
        "default:mnist": _MNIST | {"batch_size": 48},
        "reference": {
            "dataset": "digits", "loss": "cross_entropy", "preprocess": "scale", "monitor": "accuracy",
            "optimizer": "sgd", "lr": 0.01, "epochs": 20, "batch_size": 4,
        },
    },
    "cnn": {
        "default": _IMAGES | {"epochs": 10},
        "default:mnist": _MNIST,
        "fast": _IMAGES | {
            "dataset": "mnist", "val_split": 0.0, "epochs": 0, "max_steps": 200, "batch_size": 192, "optimizer": "muon",
            "lr": 7e-3, "weight_decay": 0.05, "warmup_ratio": 0.2, "init": "pca", "layer_lr": "conv1=0",
        },
        "accurate": _IMAGES | {
            "dataset": "mnist", "val_split": 0.0, "epochs": 12, "batch_size": 72, "optimizer": "muon", "lr": 4e-3,
            "weight_decay": 0.05, "warmup_ratio": 0.2, "init": "pca", "augment_shift": 2, "augment_affine": 0.2,
        },
        "reference": {
            "dataset": "mnist", "loss": "cross_entropy", "preprocess": "scale", "val_split": 0.0, "optimizer": "adam",
            "lr": 0.01, "epochs": 20, "batch_size": 50,
        },
    },
}  # fmt: skip

OPTIMIZERS: Mapping[str, Mapping[str, Recipe]] = {
    "polynomial": _FOR_A_CUBIC,
    "mlp": _FOR_VECTORS,
    "two_layer": _FOR_VECTORS,
    "lenet": _FOR_IMAGES,
    "cnn": _FOR_IMAGES,
}
"""What replaces a recipe's values where a flag chooses another optimizer."""


def recipe(model: str, name: str, dataset: str | None = None) -> dict[str, object]:
    """Return the fields that a recipe of a built-in `model` sets, for `dataset` (default: the recipe's own data set)."""
    recipes = RECIPES[model]
    base = dict(recipes[name])
    return base | dict(recipes.get(f"{name}:{dataset or base['dataset']}", {}))


def recipe_for_own(
    model: str, *, is_image: bool, num_train: int, loss: str, monitor: str, is_pretrained: bool = False
) -> dict[str, object]:
    """Return the fields that the default recipe sets for data that is the user's own, or for a model that is.

    A batch grows with the number of training samples, so that an epoch has some hundred steps; few samples are gone through
    more often.
    """
    batch_size = next((size for size in (32, 64, 128, 256, 512) if num_train < 200 * size), 1024)
    shared: dict[str, object] = {"loss": loss, "monitor": monitor, "preprocess": "standardize", "optimizer": "adamw"}
    shared |= {"weight_decay": 0.05, "scheduler": "one_cycle"}
    steps = max(1, num_train // batch_size)
    if not is_image:
        epochs = min(100, max(40, 2000 // steps))
        return shared | {
            "lr": 3e-3, "warmup_ratio": 0.2, "epochs": epochs, "batch_size": batch_size, "checkpoint_every": "1000",
            **({"model_args": {"hidden": 128}} if model == "mlp" else {}),
        }  # fmt: skip
    shared |= {"label_smoothing": 0.05} if loss == "cross_entropy" else {}
    shared |= {"lr": 3e-4, "epochs": 10} if is_pretrained else {"lr": 2e-3, "epochs": 20}
    return shared | {"warmup_ratio": 0.3, "precision": "auto", "batch_size": min(batch_size, 128)}


def optimizers(model: str, *, is_image: bool) -> Mapping[str, Recipe]:
    """Return what replaces a recipe's values where a flag chooses another optimizer."""
    return OPTIMIZERS.get(model, _FOR_IMAGES if is_image else _FOR_VECTORS)


def names(model: str) -> list[str]:
    """Return the names of the recipes of `model`."""
    return [name for name in RECIPES.get(model, ("default",)) if ":" not in name]
