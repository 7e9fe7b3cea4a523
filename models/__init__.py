"""The networks, and the one door to them: `find` says what a model takes, `build` makes it.

Nothing here imports torch, so that the command line can check a configuration in a moment; `build` does, when called.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.wrapper import Data, Model


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One network.

    `builder` names a class as `module:Class`; it is called with `input_shape`, `num_outputs` and its own arguments by keyword.
    `input_shape` is the shape of one sample; None stands for any length. `layers` are the prefixes of its parameters' names.
    """

    summary: str
    builder: str
    tasks: tuple[str, ...]
    input_shape: tuple[int | None, ...]
    layers: tuple[str, ...]

    @property
    def image_size(self) -> int:
        """The side of the images that it takes; 0 for none."""
        return self.input_shape[-1] or 0 if len(self.input_shape) == 3 else 0


MODELS: Mapping[str, ModelSpec] = {
    "polynomial": ModelSpec(
        summary="a cubic y = a + b x + c x^2 + d x^3 with hand-derived, autograd or nn.Linear gradients",
        builder="models.polynomial:Polynomial",
        tasks=("regression",),
        input_shape=(1,),
        layers=("a", "b", "c", "d", "linear"),
    ),
    "mlp": ModelSpec(
        summary="a perceptron with one hidden tanh layer",
        builder="models.perceptron:Perceptron",
        tasks=("binary", "multiclass"),
        input_shape=(None,),
        layers=("hidden", "output"),
    ),
    "two_layer": ModelSpec(
        summary="two logistic layers built from operators with hand-written forward and backward",
        builder="models.two_layer:TwoLayer",
        tasks=("binary",),
        input_shape=(None,),
        layers=("hidden", "output"),
    ),
    "lenet": ModelSpec(
        summary="LeNet: two convolutions and three linear layers on 32x32 images",
        builder="models.lenet:LeNet",
        tasks=("multiclass",),
        input_shape=(1, 32, 32),
        layers=("conv1", "conv2", "fc1", "fc2", "fc3"),
    ),
    "cnn": ModelSpec(
        summary="two 5x5 convolutions and two linear layers on 28x28 images; its 128 features are an output too",
        builder="models.cnn:CNN",
        tasks=("multiclass",),
        input_shape=(1, 28, 28),
        layers=("conv1", "conv2", "fc1", "fc2"),
    ),
}


def find(name: str) -> ModelSpec:
    """Return the model that `--model` names. Raises ValueError with the end of a sentence that begins `model=name `."""
    if name in MODELS:
        return MODELS[name]
    near = get_close_matches(name, MODELS, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ValueError(f"is not known.{hint} Choose one of: {', '.join(MODELS)}.")


def label(name: str) -> str:
    """Return a short name of a model for folders and titles: `Net` for `nets.py:Net`."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name.rpartition(":")[2])[:64] or "model"


def network_class(name: str) -> Any:
    """Return the class (or function) whose call makes the network, and whose signature says what arguments it has."""
    module, _, attribute = find(name).builder.partition(":")
    return getattr(importlib.import_module(module), attribute)


def build(name: str, data: Data, args: Mapping[str, Any], *, preprocess: str = "none") -> Model:
    """Build a network behind its preprocessing, on the CPU, in float32 and training mode.

    `args` are the network's own arguments. Weights are drawn from torch's global generator. Raises what the network raises for
    arguments that it cannot take: ValueError, TypeError or RuntimeError.
    """
    from models.wrapper import Model, statistics

    network = network_class(name)(input_shape=data.sample_shape, num_outputs=data.num_outputs, **args)
    return Model(network, **statistics(preprocess, data), input_shape=data.sample_shape)
