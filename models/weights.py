"""Weights from elsewhere into a model: a file that somebody gives, or what a network's own library has.

A file is safetensors, or a state dict that torch reads without running anything (weights_only); which of them, its first bytes
say, not its name. Only the last layers may differ, in the number of their outputs: they keep what was drawn for them.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models import libraries, sized
from models.plugin import PluginError
from models.wrapper import Data, Model

_SHOWN = 10
_INSIDE = ("state_dict", "model_state_dict", "model", "model_ema", "weights")  # where a checkpoint has its state dict
_PREFIXES = ("module.", "_orig_mod.", "network.", "model.")  # of DDP, torch.compile, our own files, and Lightning
_STATISTICS = ("mean", "std")  # in our own files, beside `network.*`
_FEWEST = 0.5  # of a network's weights, that have to be in a file for it to be one of this network's
_GLOBAL = re.compile(r"(?:GLOBAL|class|global)\s*:?\s+([\w.]+\.[\w.]+)")


class WeightsError(PluginError):
    """What is wrong with a file of weights: the end of a sentence that begins `weights=FILE `."""


def load_weights(model: Model, file: Path) -> list[str]:
    """Put the weights of a file into a model, and return sentences about what is not as one would expect.

    The model's statistics follow the file where it has some (our own files do). Raises WeightsError, and leaves the model as
    it was, for a file that is no weights, that holds more than tensors or values that are not finite, or that does not fit. A
    model on the meta device takes no values, but is checked alike.
    """
    state, notes = read(file)
    state, more = _without_prefixes(state, set(model.network.state_dict()))
    given = {name: state.pop(name) for name in _STATISTICS if name in state and name not in model.network.state_dict()}
    notes += more + load_state(model, state)
    if set(given) == set(_STATISTICS) and all(value.shape == getattr(model, name).shape for name, value in given.items()):
        with torch.no_grad():
            for name, value in given.items():
                getattr(model, name).copy_(value)
        notes.append("The mean and std of the input are those that these weights were trained with.")
    elif given:
        notes.append("The file's own mean and std do not fit this data and are left out.")
    return notes


def pretrained(name: str, data: Data) -> dict[str, Tensor]:
    """Return the pretrained weights of `torchvision:x` or `timm:x`, for `load_state`; downloaded unless they are on the disk.

    Raises PluginError, the end of a sentence that begins `model=name `, where there are none or no way to them.
    """
    if not libraries.library_of(name):
        raise PluginError("has no pretrained weights: only networks of torchvision and timm do. Give a file: --weights FILE.")
    return libraries.state(name, data)


def load_state(model: Model, state: Mapping[str, Tensor]) -> list[str]:
    """Put a state dict into a model's network, and return sentences about what was left out, or was not there.

    Entries that are missing keep what was drawn for them, and those of no use are left out; both are told. So do weights and
    biases of the last layers, those after the last one that fits, which differ in the number of outputs alone. The positions of
    a vision transformer are interpolated, and told too. Raises WeightsError for any other shape, and for a file that has less
    than half of the network's weights.
    """
    own = model.network.state_dict()
    state, notes = sized.fit_positions(model.network, state)
    weights = [name for name, _ in model.network.named_parameters()]
    misfits = [name for name, value in own.items() if name in state and value.shape != state[name].shape]
    head = _head(own, weights, state, misfits)
    wrong = [name for name in misfits if name not in head]
    found = [name for name in weights if name in state]
    if not state or len(found) < _FEWEST * len(weights):
        raise WeightsError(
            f"holds weights of another network: of {len(weights)} weights it has {len(found)}"
            f"{_listed(', and not', [n for n in weights if n not in state])}{_listed('. It has', list(state))}. Give those of "
            "this network."
        )
    if wrong:
        shapes = [f"{name} {tuple(state[name].shape)}, not {tuple(own[name].shape)}" for name in wrong]
        raise WeightsError(f"does not fit this network{_listed('', shapes)}. Give the weights of the same network.")
    if broken := [n for n, value in state.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())]:
        raise WeightsError(
            f"holds values that are not finite{_listed(' in', broken)}. Give weights of a training that went well."
        )
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    with torch.no_grad():
        for name, value in state.items():
            if name in own and name not in head:
                own[name].copy_(value)  # the network's own tensor, which state_dict does not copy
    if head:
        old, new = (each[head[0]].shape[0] for each in (state, own))
        notes.append(f"The last layer has {old} outputs in the file and {new} here, so it is drawn anew ({', '.join(head)}).")
    if missing:
        notes.append(f"Not in the file, and as they were drawn{_listed(':', missing)}.")
    if unexpected:
        notes.append(f"In the file, and of no use here{_listed(':', unexpected)}.")
    return notes


def read(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors of a file by name, on the CPU, and what is told of it. Nothing in it is run. Raises WeightsError."""
    try:
        with file.open("rb") as opened:
            start, size = opened.read(16), file.stat().st_size
    except OSError as error:
        raise WeightsError(f"cannot be read ({error.strerror}). Give a file of weights.") from error
    length = int.from_bytes(start[:8], "little")
    if len(start) == 16 and start[8:9] == b"{" and length <= size:
        return _safetensors(file), []
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return _state_dict(file)
    raise WeightsError("is neither a safetensors file nor a state dict of torch.save. Give one of these.")


def _safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise WeightsError(f"is a damaged safetensors file ({error}). Give a whole one.") from error


def _state_dict(file: Path) -> tuple[dict[str, Tensor], list[str]]:
    try:
        with warnings.catch_warnings(action="ignore"):  # what they are about is told below
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = _GLOBAL.search(str(error))
        raise WeightsError(
            f"is a pickle of more than tensors ({found[1] if found else 'objects'}), which could run anything and is not read. "
            "Save the state dict alone: torch.save(model.state_dict(), FILE)."
        ) from error
    except Exception as error:  # a damaged archive meets whatever code reads it
        first = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        script = "torchscript" in str(error).lower()
        advice = "is TorchScript, which holds code" if script else f"is damaged, or no state dict ({first[:200]})"
        raise WeightsError(f"{advice}. Give safetensors, or what torch.save made of model.state_dict().") from error
    notes: list[str] = []
    if isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        inside = next((name for name in _INSIDE if isinstance(content.get(name), Mapping)), None)
        if inside:
            others = [str(name) for name in content if name != inside]
            notes = [f"The weights are the file's entry {inside!r}{_listed('; left out', others)}."]
            content = content[inside]
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"holds a {type(content).__name__} and no state dict. Give what model.state_dict() returns.")
    strangers = [str(name) for name, v in content.items() if not (isinstance(name, str) and _is_plain(v))]
    if len(strangers) == len(content):
        raise WeightsError(f"holds no tensors{_listed(', but', strangers)}. Give what model.state_dict() returns.")
    if strangers:
        notes.append(f"In the file, and no plain tensors{_listed(':', strangers)}.")
    return {name: value for name, value in content.items() if str(name) not in strangers}, notes


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def _without_prefixes(state: dict[str, Tensor], own: set[str]) -> tuple[dict[str, Tensor], list[str]]:
    """Take off what wrappers put before every name, unless the network's own names begin with it."""
    removed = []
    while prefix := next((p for p in _PREFIXES if _all_begin(state, p) and not any(n.startswith(p) for n in own)), ""):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
        removed.append(prefix)
    return state, [f"The names in the file begin with {''.join(removed)}, which was taken off."] if removed else []


def _all_begin(state: Mapping[str, Tensor], prefix: str) -> bool:
    names = [name for name in state if name not in _STATISTICS]
    return bool(names) and all(name.startswith(prefix) for name in names)


def _head(own: Mapping[str, Tensor], weights: list[str], state: Mapping[str, Tensor], misfits: list[str]) -> list[str]:
    """Return the misfits that are weights and biases of the last layers, and differ in the number of outputs alone."""
    last = max((k for k, name in enumerate(weights) if name in state and name not in misfits), default=-1)
    end = [name for name in weights[last + 1 :] if name in misfits] if last >= 0 else []
    widths = {(state[name].shape[:1], own[name].shape[:1]) for name in end}
    alike = all(state[name].ndim and state[name].shape[1:] == own[name].shape[1:] for name in end)
    is_layer = len({name.rpartition(".")[2] for name in end} - {"weight", "bias"}) == 0
    return end if len(widths) == 1 and alike and is_layer else []


def _listed(before: str, names: list[str]) -> str:
    """Return ` before a, b, ...` with the first ten and how many there are; nothing for none."""
    if not names:
        return ""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (
        f"{before} {', '.join(names[:_SHOWN])}{more}".replace("  ", " ") if before else f": {', '.join(names[:_SHOWN])}{more}"
    )
