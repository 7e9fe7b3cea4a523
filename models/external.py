"""Networks that are not built in: what their constructors are given, and one look at what they answer.

A constructor gets what it asks for by one of the names in `given`, and what `--model_args` say, which wins. The look is at two
random samples in evaluation mode. It leaves torch's random numbers and the network's buffers as they were.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.plugin import PluginError, describe
from models.wrapper import Data, Model

_TORCH = str(Path(torch.__file__).parent)


def given(data: Data) -> dict[str, Any]:
    """Return what a constructor may ask for, by the name of its argument."""
    shape, num_outputs = data.sample_shape, data.num_outputs
    names = {"input_shape": shape} | dict.fromkeys(("num_outputs", "num_classes", "out_features", "output_dim"), num_outputs)
    if len(shape) == 3:
        return (
            names
            | dict.fromkeys(("in_channels", "in_chans", "channels"), shape[0])
            | dict.fromkeys(("image_size", "img_size"), shape[1] if shape[1] == shape[2] else shape[1:])
        )
    return names | dict.fromkeys(("in_features", "num_features", "input_dim"), math.prod(shape))


def parameters_of(maker: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the arguments of a class or function by name; none where it does not tell."""
    for evaluate in (True, False):  # annotations may name what is imported for type checkers only
        try:
            return dict(inspect.signature(maker, eval_str=evaluate).parameters)
        except ValueError:
            return {}
        except Exception:
            continue
    return {}


def arguments(maker: Callable[..., Any], data: Data, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments for a constructor. Raises PluginError where it needs one that nobody gives.

    `channels` and `num_features` may mean a network's width: where they have a default other than 1 or 3, they are left alone.
    """
    parameters = parameters_of(maker)
    chosen = {
        name: value
        for name, value in given(data).items()
        if name in parameters
        and (name not in ("channels", "num_features") or parameters[name].default in (inspect.Parameter.empty, 1, 3))
    } | dict(args)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if unknown := [name for name in args if name not in named and not takes_all]:
        raise PluginError(f"has no argument {unknown[0]} (--model_args). It takes: {', '.join(named) or 'none'}.")
    missing = [name for name, p in named.items() if p.default is p.empty and name not in chosen]
    if missing:
        raise PluginError(
            f"needs the argument {missing[0]}, which nobody gives. Give --model_args {missing[0]}=..., or give it a default. "
            f"What comes from the data is called: {', '.join(given(data))}."
        )
    return chosen


def make(maker: Callable[..., Any], data: Data, args: Mapping[str, Any]) -> nn.Module:
    """Call a constructor and return its network. Raises PluginError with the line where it fails.

    On torch's meta device, a constructor that computes with values is called on the CPU instead, and what it made is moved.
    """
    chosen = arguments(maker, data, args)
    try:
        try:
            network = maker(**chosen)
        except Exception as error:
            if torch.get_default_device().type != "meta" or "meta" not in str(error):
                raise
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                network = maker(**chosen).to("meta")
    except PluginError:
        raise
    except Exception as error:  # somebody else's code raises what it likes
        told = ", ".join(f"{name}={value}" for name, value in chosen.items())
        raise PluginError(f"cannot be built with {told or 'no arguments'}: {describe(error, skip=(_TORCH,))}.") from error
    if not isinstance(network, nn.Module):
        raise PluginError(f"gives a {type(network).__name__} when it is called, and not a torch.nn.Module.")
    return network


def look(model: Model, data: Data) -> bool:
    """Return whether the network gives (scores, features), and not scores alone. Raises PluginError for any other answer.

    On the meta device, a network that needs values to answer is not judged: it is when it is built in earnest.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [buffer for buffer in model.buffers() if not nn.parameter.is_lazy(buffer)]
    is_meta = any(tensor.is_meta for tensor in (*model.network.parameters(), *model.network.buffers()))
    before = [] if is_meta else [buffer.clone() for buffer in buffers]
    x = samples(data, 2, device="meta" if is_meta else "cpu")
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            answer = model.network(model.standardized(x))
            for buffer, value in zip(buffers, before, strict=not is_meta):
                buffer.copy_(value)
    except Exception as error:  # somebody else's code raises what it likes
        if is_meta and "meta" in str(error).lower():
            return False
        shape = tuple(x.shape)
        small = " A larger --image_size may help." if len(shape) == 4 and min(shape[2:]) < 224 else ""
        raise PluginError(f"cannot answer samples of shape {shape}: {describe(error, skip=(_TORCH,))}.{small}") from error
    finally:
        for module, training in modes:
            module.training = training
    return _has_features(answer, data.num_outputs)


def samples(data: Data, count: int, *, device: str = "cpu", seed: int = 0) -> Tensor:
    """Return random samples in the shape, dtype and range of the data, from a generator of their own."""
    shape = (count, *data.sample_shape)
    if device == "meta":
        return torch.empty(shape, device=device)
    generator = torch.Generator().manual_seed(seed)
    if data.value_range is None:
        return torch.randn(shape, generator=generator, device=device)
    low, high = data.value_range
    return torch.randint(low, high + 1, shape, generator=generator, device=device).to(
        torch.uint8 if low >= 0 else torch.float32
    )


def _has_features(answer: object, num_outputs: int) -> bool:
    if not isinstance(answer, Tensor) and not (
        isinstance(answer, (tuple, list)) and len(answer) == 2 and all(isinstance(part, Tensor) for part in answer)
    ):
        what = f" of {len(answer)}" if isinstance(answer, (tuple, list, dict)) else ""
        raise PluginError(
            f"answers with a {type(answer).__name__}{what}. Let forward return the scores, or (scores, features)."
        )
    scores, features = (answer, None) if isinstance(answer, Tensor) else answer
    if tuple(scores.shape) != (2, num_outputs):
        hint = ""
        if num_outputs == 1 and tuple(scores.shape) == (2,):
            hint = " Return scores[:, None]."
        elif scores.ndim == 2:
            hint = " Its constructor can take num_outputs, or num_classes, and make the last layer as wide."
        raise PluginError(f"answers two samples with scores of shape {tuple(scores.shape)}, and not (2, {num_outputs}).{hint}")
    if scores.dtype != torch.float32:
        raise PluginError(f"answers with {str(scores.dtype).removeprefix('torch.')} scores. Let forward return float32.")
    if features is None:
        return False
    if features.ndim < 2 or len(features) != 2 or not features.is_floating_point():
        raise PluginError(
            f"gives features of shape {tuple(features.shape)} and type {str(features.dtype).removeprefix('torch.')} for two "
            "samples. Let forward return (scores, features) with features (B, F) of floats, or the scores alone."
        )
    return True
