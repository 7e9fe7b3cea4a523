"""The key of each stage: all that its outputs hang on; and `stages.json`, which says by what those of a run folder were made.

A key is made of arguments, the SHA-256 of the inputs, the bytes of our modules and of the user's own code, the versions of
libraries, and the kind of device and number of ranks. It is written after a stage's last file and before these are sealed: cut
off anywhere, there is no seal without the key that belongs to it. A stage that was done by hand has none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import models
from models import libraries, plugin
from pipeline import files, losses, machine, manifest, sources
from pipeline.config import RUNTIME_FIELDS, RunConfig, to_json
from pipeline.errors import UserError

Key = dict[str, Any]

FILE = manifest.STAGES
BEGUN = "begun"  # what a training was begun with: one that goes on with anything else is not what its arguments say
LATER = ("evaluate", "export", "verify", "report")
_UNASKED: Key = {"arguments": {}, "inputs": {}}  # of one that goes on: they are the run's own, and the run has checked them
EXPORT = ("formats", "max_metric_drop", "min_speedup")  # fields that no weight hangs on
_ARGUMENTS = {"export": ("formats", "max_metric_drop"), "verify": ("max_metric_drop", "min_speedup")}
_MODULES = {
    "train": ("pipeline.fitting",), "evaluate": ("pipeline.evaluate", "pipeline.baseline", "pipeline.plots.draw"),
    "export": ("export.artifacts",), "verify": ("export.verify", "export.runner", "pipeline.tracking.registry"),
    "report": ("pipeline.pages.report",),
}  # fmt: skip
_LIBRARIES = {
    "train": ("torch", "numpy"), "evaluate": ("torch", "numpy", "scikit-learn", "matplotlib"),
    "export": ("torch", "numpy", "onnx", "onnxscript", "onnxruntime"), "verify": ("torch", "numpy", "onnx", "onnxruntime"),
    "report": ("numpy",),
}  # fmt: skip
_MADE_FROM = {"evaluate": ("train",), "export": ("train",), "verify": ("train", "export"),
              "report": ("train", "evaluate", "export", "verify")}  # fmt: skip


def keys(
    config: RunConfig, prepared: Mapping[str, Any], *, num_ranks: int, device: str, tracking: str,
    places: Mapping[str, str] | None = None,
) -> dict[str, Key]:  # fmt: skip
    """Return the key of each stage of a training on prepared tensors with this manifest; of those behind it without inputs.

    `device` is its kind, `tracking` where MLflow is to have the run, and `places` names the copies of own model and loss that a
    run keeps, by field. Raises UserError for own code or weights that cannot be read.
    """
    places = {"model": config.model, "loss": config.loss} | dict(places or {})
    builtin = models.find(places["model"])
    own = dict(_own_code(config, places))
    library = [libraries.library_of(config.model)] if builtin.is_library else []
    network = [builtin.builder.partition(":")[0]] if builtin.is_builtin else []
    formats = sources.modules_of("export.formats")
    found: dict[str, Key] = {"prepare": prepared["identity"]}
    values = to_json(config)
    left_out = {*RUNTIME_FIELDS, *EXPORT}
    for stage, modules in _MODULES.items():
        named = _ARGUMENTS.get(stage, ())
        arguments = {n: v for n, v in values.items() if (n not in left_out if stage == "train" else n in named)}
        more = [*network, *(formats if stage in ("export", "verify") else ())]
        found[stage] = {
            "arguments": arguments, "code": sources.digests(*modules, *more) | own,
            "versions": machine.versions(*_LIBRARIES[stage], *library), "device": device,
        }  # fmt: skip
    inputs = {"data": prepared["spec"]["sha256"]}
    if config.weights:
        try:
            inputs["weights"] = files.sha256(Path(config.weights))
        except OSError as error:
            raise UserError(f"weights={config.weights} cannot be read ({error.strerror}). Give a file of weights.") from error
    found["train"] |= {"inputs": inputs, "num_ranks": num_ranks, "tracking": tracking}
    return found


def _own_code(config: RunConfig, places: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield what the user's own code is called, and its SHA-256."""
    for name, is_own in (("model", models.find(places["model"]).is_own), ("loss", losses.is_own(config.loss))):
        if is_own:
            try:
                yield f"{name} {getattr(config, name)}", _digest(places[name])
            except plugin.PluginError as error:
                raise UserError(f"{name}={getattr(config, name)} {error}") from error


def _digest(name: str) -> str:
    """Return the SHA-256 of a file with all that it imports of its folder, or of all modules of an installed package."""
    place, _ = plugin.parts(name)
    if plugin.is_file(place):
        return plugin.source_of(name).sha256
    top = plugin.locate(place.partition(".")[0])
    if top is None or top.name != "__init__.py":
        return plugin.source_of(name).sha256
    return files.digest_of({str(path.relative_to(top.parent)): files.sha256(path) for path in top.parent.rglob("*.py")})


def with_inputs(folder: Path, stage: str, key: Key) -> Key:
    """Return the key of a stage behind the training with the SHA-256 of all that it was, or would be, made from."""
    made_from = sum((manifest.FILES[each] for each in _MADE_FROM[stage]), ())
    sealed = manifest.read(folder)[1]
    return key | {"inputs": {name: digest for name, digest in sealed.items() if manifest.matches(name, made_from)}}


def read(folder: Path) -> dict[str, Key]:
    """Return the keys of a run folder's stages, by stage; none where the file is missing or was changed."""
    try:
        values = files.read_json(folder / FILE)
        if values.pop("sha256") != files.digest_of(values):
            return {}
        return {str(stage): dict(key) for stage, key in values.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def note(folder: Path, stage: str, key: Key | None) -> None:
    """Write down by what a stage has been done; without a key, that nothing is known of it."""
    known = read(folder)
    if known.get(stage) == key:
        return
    values = {name: value for name, value in known.items() if name != stage} | ({stage: key} if key else {})
    files.write_json(folder / FILE, values | {"sha256": files.digest_of(values)})


def begin(folder: Path, wanted: Mapping[str, Key]) -> None:
    """Write down with what a training begins, before it does."""
    values: dict[str, Any] = {"prepare": wanted["prepare"], BEGUN: wanted["train"]}
    files.write_json(folder / FILE, values | {"sha256": files.digest_of(values)})


def resumed(folder: Path, wanted: Mapping[str, Key]) -> dict[str, Key]:
    """Return the keys for a training that goes on: without its own, if it was begun by other code or on another machine."""
    begun = read(folder).get(BEGUN)
    others = {name: key for name, key in wanted.items() if name != "train"}
    if not begun or differences(begun | _UNASKED, wanted["train"] | _UNASKED):
        return others
    return others | {"train": begun}


def differences(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return in short sentences what a key has otherwise than it was."""
    said = []
    for name in dict.fromkeys([*wanted, *known]):
        now, was = wanted.get(name), known.get(name)
        if now == was:
            continue
        if name == "raw":
            said.append("the raw files have changed")
            continue
        if not isinstance(now, dict) or not isinstance(was, dict):
            said.append(f"{name} {_changed(now, was)}")
            continue
        changed = [each for each in dict.fromkeys([*now, *was]) if now.get(each) != was.get(each)]
        if name == "code":
            said += [f"{_file(each)} {_come_or_gone(each, now, was)}" for each in changed]
        elif name == "inputs":
            said += [f"{'the data' if each == 'data' else each} {_come_or_gone(each, now, was)}" for each in changed]
        else:
            said += [f"{each} {_changed(now.get(each), was.get(each))}" for each in changed]
    return said


def _file(module: str) -> str:
    return module if " " in module else module.replace(".", "/") + ".py"


def _come_or_gone(name: str, now: Mapping[str, Any], was: Mapping[str, Any]) -> str:
    return "is new" if name not in was else "is gone" if name not in now else "has changed"


def _changed(now: object, was: object) -> str:
    return f"is {_text(now)}, was {_text(was)}"


def _text(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else "not there" if value is None else str(value)
    return (text or "empty")[:80]
