"""torchvision's classification networks and timm's, by their own names: what they are built with, and their pretrained weights.

Their registries are imported with torch, in seconds, so only where such a name was given. A hint for another name reads the
names off the libraries' sources instead.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models import sized
from models.plugin import PluginError

if TYPE_CHECKING:
    from torch import Tensor

    from models.wrapper import Data

LIBRARIES = ("torchvision", "timm")
_REGISTERED = re.compile(r"^@register_model(?:\(\))?\s*\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
_AUXILIARY = ("googlenet", "inception_v3")  # a second head that only training has
_HELD_BACK = {"weights": "pretrained", "pretrained": "pretrained", "checkpoint_path": "weights"}  # have a flag of their own
_NO_ANSWER = 10.0  # s, after which a server counts as not there


def library_of(name: str) -> str:
    """Return `torchvision` or `timm` where a name begins with it, else nothing."""
    library = name.partition(":")[0]
    return library if library in LIBRARIES and ":" in name else ""


@lru_cache
def check(name: str) -> int:
    """Return the image size that a network's own weights were trained at. Raises PluginError if there is no such network."""
    library, _, short = name.partition(":")
    if library == "timm":
        return _timm_config(short).input_size[-1]
    models = _torchvision()
    known = models.list_models(module=models)
    if short not in known:
        raise PluginError(_unknown(library, short, known))
    (side,) = models.get_model_weights(short).DEFAULT.transforms().crop_size
    return side


def maker(name: str) -> Callable[..., Any]:
    """Return the function that builds a network. Raises PluginError if there is no such network."""
    check(name)
    library, _, short = name.partition(":")
    return partial(_timm().create_model, short) if library == "timm" else _torchvision().get_model_builder(short)


def fixed_arguments(name: str, data: Data, args: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a library's network is built with: the width of its head, its channels and its image size.

    Raises PluginError for data that is no images, a number of channels that it cannot take, and arguments that are flags.
    """
    if taken := [argument for argument in args if argument in _HELD_BACK]:
        raise PluginError(f"does not take {taken[0]} among --model_args. Use --{_HELD_BACK[taken[0]]}.")
    if len(data.sample_shape) != 3:
        raise PluginError(f"takes images, and the data has samples of shape {data.sample_shape}. Use --model mlp, or your own.")
    channels, *sides = data.sample_shape
    library, _, short = name.partition(":")
    if library == "timm":
        chosen: dict[str, Any] = {"num_classes": data.num_outputs, "in_chans": channels}
        return chosen | ({"img_size": tuple(sides)} if _timm_config(short).fixed_input_size else {}) | dict(args)
    if channels not in (1, 3):
        raise PluginError(
            f"takes grey or RGB images, and the data has {channels} channels. Use timm:{short}, or your own network."
        )
    chosen = {"num_classes": data.num_outputs}
    if short in _AUXILIARY:
        chosen |= {"aux_logits": False, "init_weights": True}
    return chosen | sized.arguments(short, *sides) | dict(args)


def repeats_grey(name: str, data: Data) -> bool:
    """Tell whether images of one channel have to be repeated to three before the network."""
    return library_of(name) == "torchvision" and data.sample_shape[0] == 1


def notes(name: str, data: Data) -> list[str]:
    """Return what is told of a library's network on this data."""
    if repeats_grey(name, data):
        return [f"model={name} takes RGB: grey images are repeated to three channels inside the model, in exported files too."]
    return []


def statistics(name: str, data: Data) -> dict[str, list[float]]:
    """Return the mean and std that a network's pretrained weights belong to, one for each channel, in the units of the data.

    Nothing is downloaded. A network of timm that takes another number of channels has them in turn, and for grey their average.
    """
    library, _, short = name.partition(":")
    check(name)
    if library == "timm":
        config = _timm_config(short)
        mean, std = list(config.mean), list(config.std)
    else:
        weights = _torchvision().get_model_weights(short).DEFAULT.transforms()
        mean, std = list(weights.mean), list(weights.std)
    channels = 3 if library == "torchvision" else data.sample_shape[0]
    low, high = data.value_range or (0, 1)
    fitted = ([sum(v) / len(v)] if channels == 1 else [v[k % len(v)] for k in range(channels)] for v in (mean, std))
    mean, std = fitted
    return {"mean": [low + value * (high - low) for value in mean], "std": [value * (high - low) for value in std]}


def state(name: str, data: Data) -> dict[str, Tensor]:
    """Return a network's pretrained weights as its library gives them, downloaded unless they are on the disk.

    Raises PluginError where there are none, or no way to their server: that takes ten seconds at most.
    """
    library, _, short = name.partition(":")
    check(name)
    if library == "timm":
        return _timm_state(name, short, data)
    import torch

    weights = _torchvision().get_model_weights(short).DEFAULT
    if not (Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name).is_file():
        _need_server(name, weights.url)
    with _impatient(name):
        return dict(weights.get_state_dict(progress=False, check_hash=True))


def _timm_state(name: str, short: str, data: Data) -> dict[str, Tensor]:
    hub = importlib.import_module("huggingface_hub")
    config = _timm_config(short)
    if not (config.hf_hub_id or config.url):
        raise PluginError("has no pretrained weights in timm. Leave --pretrained out, or name a network that has some.")
    repository = config.hf_hub_id or ""
    names = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")
    if not any(isinstance(hub.try_to_load_from_cache(repository, file), str) for file in names if repository):
        _need_server(name, hub.constants.ENDPOINT if repository else config.url)
    arguments = {k: v for k, v in fixed_arguments(name, data, {}).items() if k != "num_classes"}
    with _impatient(name):
        return dict(_timm().create_model(short, pretrained=True, **arguments).state_dict())


@contextmanager
def _impatient(name: str) -> Iterator[None]:
    """Let no connection wait for longer than `_NO_ANSWER`, and turn what goes wrong with it into a sentence."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NO_ANSWER)
    try:
        yield
    except PluginError:
        raise
    except Exception as error:  # urllib, httpx and the hub have no error in common
        raise PluginError(_offline(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")) from error
    finally:
        socket.setdefaulttimeout(before)


def _need_server(name: str, url: str) -> None:
    """Raise PluginError unless a server answers, whatever it says: a name that is not resolved may hang for a minute."""
    found: list[str] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_NO_ANSWER / 2).close()
            found.append("")
        except urllib.error.HTTPError:
            found.append("")
        except Exception as error:
            found.append(str(getattr(error, "reason", error)))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_NO_ANSWER)
    if not found or found[0]:
        host = url.split("/")[2]
        raise PluginError(_offline(f"{host}: {found[0] if found else 'no answer'}"))


def _offline(reason: str) -> str:
    return (
        f"has pretrained weights that cannot be downloaded ({reason}). Give a file instead (--weights FILE), train from "
        "scratch (--pretrained false), or try again where there is a network."
    )


def _torchvision() -> Any:
    try:
        from torchvision import models
    except ImportError as error:
        raise PluginError(f"needs torchvision, which cannot be imported ({error}). Install it beside this torch.") from error
    return models


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise PluginError(
            "needs timm, which is not installed. Install it: pip install 'trainyard[timm]', or uv sync --extra timm."
        ) from error


@lru_cache
def _timm_config(short: str) -> Any:
    timm = _timm()
    architecture, _, tag = short.partition(".")
    if not timm.is_model(architecture):
        raise PluginError(_unknown("timm", architecture, timm.list_models()))
    try:
        config = timm.get_pretrained_cfg(short)
    except RuntimeError:
        config = None
    if config is None:
        tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
        raise PluginError(f"has no weights called {tag}. There are: {', '.join(tags) or 'none'}.")
    return config


def _unknown(library: str, short: str, known: list[str]) -> str:
    near = get_close_matches(short, known, n=3)
    hint = f" Did you mean {' or '.join(f'{library}:{each}' for each in near)}?" if near else ""
    return f"is not a classification network of {library}.{hint} It has {len(known)}, from {known[0]} to {known[-1]}."


@lru_cache
def names_by_source(library: str) -> tuple[str, ...]:
    """Return the names of a library's networks, read off its files without importing it; none where it is not installed."""
    spec = importlib.util.find_spec(library)
    if spec is None or not spec.origin:
        return ()
    sources = sorted((Path(spec.origin).parent / "models").glob("*.py"))
    return tuple(name for path in sources for name in _REGISTERED.findall(path.read_text(errors="replace")))


def named(name: str) -> str:
    """Return `library:name` for a network that is called so in a library, or nothing."""
    return next((f"{library}:{name}" for library in LIBRARIES if name in names_by_source(library)), "")


def resembling(name: str) -> str:
    """Return `library:x` for a network of a library whose name comes near, or nothing."""
    for library in LIBRARIES:
        if near := get_close_matches(name, names_by_source(library), n=1, cutoff=0.8):
            return f"{library}:{near[0]}"
    return ""
