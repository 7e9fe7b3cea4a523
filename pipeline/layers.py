"""Which parameters learn, and how fast: frozen ones, the head, and rates that fall from the head to the input.

Everything goes by the names of the parameters, in the order in which the network has made them, so that it can be told of a
model without memory, before anything is created.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from pipeline.checks import layer_of, layer_values
from pipeline.config import RunConfig

_NUMBERED = re.compile(r"(?:[^.]*\.)*?[^.]*\d(?=\.)")  # up to the first part that ends in a number


@dataclass(frozen=True)
class Rate:
    """The peak learning rate of a parameter, 0 if it is frozen, and the layer whose name it goes by; "" for all the rest."""

    lr: float
    layer: str = ""


def patterns(freeze: str) -> list[str]:
    """Return the patterns of `--freeze`."""
    return [part.strip() for part in freeze.split(",") if part.strip()]


def matches(name: str, pattern: str) -> bool:
    """Tell whether a pattern of `--freeze` takes a parameter, as parameters.md calls it, or the module that it lies in."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def short(name: str) -> str:
    """Return the name of a parameter as parameters.md has it."""
    return name.removeprefix("network.")


def block_of(name: str) -> str:
    """Return what counts as one layer for `--layer_decay`: a name up to its first part that ends in a number, or its first.

    `layer1` for `layer1.0.conv1.weight`, `blocks.3` for `blocks.3.attn.qkv.weight`, `norm` for `norm.weight`.
    """
    name = short(name)
    found = _NUMBERED.match(name)
    return found[0] if found else name.partition(".")[0]


def distances(parameters: Sequence[tuple[str, Tensor]]) -> dict[str, tuple[int, str]]:
    """Return for each parameter how many layers lie between it and the last one, and the layer's name.

    A layer without a matrix, as a normalization is, counts with the one before it.
    """
    has_matrix = {block_of(name) for name, parameter in parameters if parameter.ndim > 1}
    layers: list[str] = []
    place: dict[str, int] = {}
    for name, _ in parameters:
        block = block_of(name)
        if block not in place:
            if block in has_matrix or not layers:
                layers.append(block)
            place[block] = len(layers) - 1
    return {name: (len(layers) - 1 - place[block_of(name)], layers[place[block_of(name)]]) for name, _ in parameters}


def head_of(parameters: Sequence[tuple[str, Tensor]]) -> str:
    """Return the module that is the head: the last one, in the order in which the network made them, that holds a matrix.

    Where there is no matrix at all, it is the last one with a parameter; "" is the network itself.
    """
    names = [name for name, parameter in parameters if parameter.ndim > 1] or [name for name, _ in parameters]
    return short(names[-1]).rpartition(".")[0] if names else ""


def in_head(name: str, head: str) -> bool:
    """Tell whether a parameter is of the head."""
    return short(name).rpartition(".")[0] == head


def rates(named: Iterable[tuple[str, Tensor]], config: RunConfig) -> dict[str, Rate]:
    """Return the peak rate of each parameter: frozen before all, then `layer_lr`, `head_lr`, `layer_decay` and `lr`."""
    parameters = list(named)
    own, decays = layer_values(config.layer_lr), layer_values(config.layer_weight_decay)
    frozen, far, head = patterns(config.freeze), distances(parameters), head_of(parameters)

    def rate(name: str) -> Rate:
        layer, (distance, block) = layer_of(name), far[name]
        if any(matches(short(name), pattern) for pattern in frozen):
            return Rate(0.0, layer)
        if layer in own:
            return Rate(own[layer], layer)
        if config.head_lr != "auto" and in_head(name, head):
            return Rate(float(config.head_lr), head or layer)
        if config.layer_decay < 1 and distance:
            return Rate(config.lr * config.layer_decay**distance, block)
        return Rate(config.lr, layer if layer in decays else "")

    return {name: rate(name) for name, _ in parameters}


def problems(model: nn.Module, config: RunConfig) -> list[str]:
    """Return what is wrong with the settings of single layers for this very model, in sentences."""
    parameters = list(model.named_parameters())
    names = [short(name) for name, _ in parameters]
    layers, found = list(dict.fromkeys(layer_of(name) for name in names)), rates(parameters, config)
    told = []
    for field in ("layer_lr", "layer_weight_decay"):
        text = getattr(config, field)
        if missing := [layer for layer in layer_values(text) if layer not in layers]:
            told.append(
                f"{field}={text} names {', '.join(missing)}, which this form of model={config.model} lacks. Its layers are: "
                f"{', '.join(layers)}."
            )
    given = patterns(config.freeze)
    idle = [pattern for pattern in given if not any(matches(name, pattern) for name in names)]
    if config.freeze and (idle or not given):
        told.append(
            f"freeze={config.freeze} has {' and '.join(idle) or 'no pattern'}, which no parameter of model={config.model} "
            f"matches. Its layers are: {', '.join(layers)}; a pattern is `{layers[0]}`, or `*.bias`."
        )
    learning = {layer_of(name) for name, rate in found.items() if rate.lr}
    if not learning:
        text = " and ".join(f"{field}={getattr(config, field)}" for field in ("freeze", "layer_lr") if getattr(config, field))
        told.append(f"{text} freezes every layer, so that nothing would learn. Leave one out.")
        return told
    for layer, rate in layer_values(config.layer_lr).items():
        if rate and layer in layers and layer not in learning:
            told.append(
                f"layer_lr={config.layer_lr} gives {layer} a learning rate, and freeze={config.freeze} freezes it. Leave it "
                "out of one of the two."
            )
    for field, neutral, why in (("head_lr", "auto", f"the head ({head_of(parameters) or 'its own parameters'})"),
                                ("layer_decay", 1.0, "every layer but the last")):  # fmt: skip
        value = getattr(config, field)
        changed: dict[str, Any] = {field: neutral}
        if value != neutral and rates(parameters, dataclasses.replace(config, **changed)) == found:
            told.append(
                f"{field}={value} has no effect on model={config.model}: {why} is frozen, not there or has a rate of its own. "
                f"Leave --{field} out."
            )
    return told


def parameter_table(model: nn.Module) -> Iterator[str]:
    """Yield the lines of a Markdown table of the parameters: name, shape, number of values."""
    yield "| parameter | shape | values |"
    yield "|---|---|---:|"
    total = 0
    for name, parameter in model.named_parameters():
        total += parameter.numel()
        yield f"| {name.removeprefix('network.')} | {tuple(parameter.shape)} | {parameter.numel()} |"
    yield f"| **all {len(list(model.parameters()))} tensors** | | {total} |"
