"""The networks, and the one door to them: `find` says what a model takes, `build` makes it.

A name is that of a built-in, or `torchvision:resnet18`, `timm:resnet18`, `file.py:Net` or `package.module:Net`. Nothing here
imports torch, so that the command line can check a configuration in a moment; `build` does, and `find` for a library's names. A
user's file is read by `find`, and run by `build` and `parameters`.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models import libraries, plugin
from models.plugin import Code, PluginError

if TYPE_CHECKING:
    from models.wrapper import Data, Model

_TASKS = ("multiclass", "multilabel", "binary", "regression")
_GIVEN = ("self", "input_shape", "num_outputs")  # what a built-in network is told by us


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One network.

    `builder` names what makes it: a built-in one as `module:Class`, called with `input_shape`, `num_outputs` and its own
    arguments by keyword; any other as it was given. `input_shape` is the shape of one sample, in which None stands for any
    length; None instead of a shape says that only building it can tell. `layers` are the prefixes of its parameters' names,
    none where they are not known before it is built. `image_size` is the side of images that suits it, 0 where nothing says so;
    only built-in ones take no other. `kind` is `builtin`, `torchvision`, `timm`, `file` or `package`.
    """

    summary: str
    builder: str
    tasks: tuple[str, ...]
    input_shape: tuple[int | None, ...] | None
    layers: tuple[str, ...] = ()
    image_size: int = 0
    kind: str = "builtin"

    @property
    def is_builtin(self) -> bool:
        return self.kind == "builtin"

    @property
    def is_library(self) -> bool:
        """Whether it is one of torchvision or timm."""
        return not self.is_builtin and not self.is_own

    @property
    def is_own(self) -> bool:
        """Tell whether building it runs code that neither we nor a library of networks have written."""
        return self.kind in ("file", "package")


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
        tasks=_TASKS,
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
        tasks=_TASKS,
        input_shape=(None, 32, 32),
        image_size=32,
        layers=("conv1", "conv2", "fc1", "fc2", "fc3"),
    ),
    "cnn": ModelSpec(
        summary="two 5x5 convolutions and two linear layers on 28x28 images; its 128 features are an output too",
        builder="models.cnn:CNN",
        tasks=_TASKS,
        input_shape=(None, 28, 28),
        image_size=28,
        layers=("conv1", "conv2", "fc1", "fc2"),
    ),
}


def find(name: str) -> ModelSpec:
    """Return the model that `--model` names; nothing of it is run.

    Raises ValueError (PluginError) with the end of a sentence that begins `model=name `.
    """
    if name in MODELS:
        return MODELS[name]
    if library := libraries.library_of(name):
        side = libraries.check(name)
        return ModelSpec(
            summary=f"{name.partition(':')[2]} of {library}", builder=name, tasks=_TASKS, input_shape=(None, None, None),
            image_size=side, kind=library,
        )  # fmt: skip
    if ":" not in name:
        raise PluginError(_unknown(name))
    plugin.check(name)
    kind = "file" if plugin.is_file(plugin.parts(name)[0]) else "package"
    return ModelSpec(summary=f"your own, of {name}", builder=name, tasks=_TASKS, input_shape=None, kind=kind)


def label(name: str) -> str:
    """Return a short name of a model for folders and titles: `Net` for `nets.py:Net`."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name.rpartition(":")[2])[:64] or "model"


def source_of(name: str) -> Code | None:
    """Return the code of a model that is given as `file.py:Class`; None for others. Raises PluginError as `plugin.code_of`."""
    return None if name in MODELS or libraries.library_of(name) else plugin.code_of(name)


def network_class(name: str) -> Callable[..., Any]:
    """Return the class (or function) whose call makes the network, and whose signature says what arguments it has.

    What a user's file draws or seeds when it is loaded leaves torch's random numbers as they were.
    """
    spec = find(name)
    if spec.is_builtin:
        module, _, attribute = spec.builder.partition(":")
        return getattr(importlib.import_module(module), attribute)
    if not spec.is_own:
        return libraries.maker(name)
    import torch

    with torch.random.fork_rng(devices=[]):
        made = plugin.load(name)
    if isinstance(made, torch.nn.Module):
        raise PluginError(
            "is a network that is already made, so that no seed draws its weights. Name its class, or a function."
        )
    assert callable(made)
    return made


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """Return the arguments that `--model_args` may give, by name. Raises PluginError where the network cannot be loaded."""
    from models.external import parameters_of

    taken = parameters_of(network_class(name))
    return {key: value for key, value in taken.items() if key not in _GIVEN} if name in MODELS else taken


def build(name: str, data: Data, args: Mapping[str, Any], *, preprocess: str = "none") -> Model:
    """Build a network behind its preprocessing, on the CPU, in float32 and training mode.

    `args` are the network's own arguments. Weights are drawn from torch's global generator. `preprocess=pretrained` takes the
    mean and std that the library's pretrained weights belong to. Raises what a built-in network raises for arguments that it
    cannot take: ValueError, TypeError or RuntimeError. What is wrong with any other is a PluginError: the end of a sentence
    that begins `model=name `.
    """
    from models.wrapper import Model, statistics

    target_mean, target_std = (data.target_mean, data.target_std) if preprocess == "standardize" else ((), ())
    if name in MODELS:
        network = network_class(name)(input_shape=data.sample_shape, num_outputs=data.num_outputs, **args)
        scales = statistics(preprocess, data)
        return Model(
            network, mean=scales["mean"], std=scales["std"], input_shape=data.sample_shape, target_mean=target_mean,
            target_std=target_std,
        )  # fmt: skip
    from models.external import look, make

    library = libraries.library_of(name)
    maker = network_class(name)
    if library:
        args = libraries.fixed_arguments(name, data, args)
    network = make(maker, data, args)
    scales = libraries.statistics(name, data) if library and preprocess == "pretrained" else statistics(preprocess, data)
    model = Model(
        network, mean=scales["mean"], std=scales["std"], input_shape=data.sample_shape,
        repeat_grey=libraries.repeats_grey(name, data), target_mean=target_mean, target_std=target_std,
    )  # fmt: skip
    model.has_features = look(model, data)
    return model


def notes(name: str, data: Data) -> list[str]:
    """Return what is to be told of a model on this data, as sentences."""
    return libraries.notes(name, data) if libraries.library_of(name) else []


def _unknown(name: str) -> str:
    """Return the end of the sentence about a name that is neither a built-in nor has a colon."""
    if name.endswith(".py"):
        if not Path(name).is_file():
            return f"names the file {name}, which does not exist. Give file.py:Name."
        classes = plugin.networks_in(Path(name).resolve())
        return "is a file. Say which class of it" + (
            f": {' or '.join(f'{name}:{c}' for c in classes)}." if classes else f", as in {name}:Net."
        )
    near = get_close_matches(name, MODELS, n=1)
    found = libraries.named(name) or (near[0] if near else libraries.resembling(name))
    hint = f" Did you mean {found}?" if found else ""
    return f"is not known.{hint} Choose one of: {', '.join(MODELS)}; or torchvision:NAME, timm:NAME, file.py:Class."
