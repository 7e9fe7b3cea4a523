"""Recipes and flags to values: a flag that replaces a choice of a recipe replaces all that was found together with it.

A learning rate belongs to its optimizer, a step limit to the epochs, a frozen layer to the way in which it was initialized.
Left beside another choice such a value is no default but a mistake that nobody made, so it becomes the new choice's own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from models.recipes import optimizers
from pipeline.data.spec import Source
from pipeline.losses import has_weights

_SUMS = ("sse",)  # losses that are a sum over the batch: their gradient grows with it
_WARMUP = {"one_cycle": 0.3}  # the share that torch's OneCycleLR rises; no other schedule needs a rise
_ARGS = {"model_args": "", "data_args": "dataset", "loss_args": "loss"}  # and the choice that may leave the recipe's behind
_NUM_CUTS = 3  # of a step schedule that says nothing of its own, over the whole training


@dataclass
class Merged:
    """The fields that recipe and flags set, and how they came about: what replaced what, as {field: (before, now)}."""

    fields: dict[str, Any]
    kept: dict[str, Any] = field(default_factory=dict)  # what is as the recipe has it
    overridden: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    reset: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def describe(self, *, leave_out: Collection[str] = ()) -> str:
        """Return what came from the recipe, and what from flags and what they reset, each with the value before."""
        kept = [f"{name}={text_of(value) or 'none'}" for name, value in self.kept.items() if name not in leave_out]
        parts = [" ".join(kept)]
        for what, changes in (("given", self.overridden), ("reset with it", self.reset)):
            words = [
                f"{k}={text_of(now) or 'none'} (was {text_of(was) or 'none'})"
                for k, (was, now) in changes.items()
                if k not in leave_out
            ]
            if words:
                parts.append(f"{what}: {', '.join(words)}")
        return "; ".join(part for part in parts if part)


def merge(
    model: str, own: Mapping[str, Any], given: Mapping[str, Any], defaults: Mapping[str, Any], *, source: Source, home: str
) -> Merged:
    """Return the values for a recipe and the fields `given` by flags.

    `own` holds what the recipe sets for the data that is meant, which is `source`; `home` names the data set that it was found
    on, and `defaults` has a value of every field.
    """
    found = dict(defaults) | dict(own)
    before = dict(found, dataset=home)
    given = dict(given)
    for name in _ARGS:
        if name in given:
            owner = _ARGS[name]
            same = not owner or given.get(owner, before[owner]) == before[owner]
            given[name] = {**(found[name] if same else {}), **given[name]}
    replaced = {name for name, value in given.items() if value != before[name]}
    now = found | dict(given)
    reset: dict[str, Any] = {}
    if "dataset" in replaced:
        reset |= _dataset(found, source)
    if "loss" in replaced:
        reset |= _loss(found, now)
    if "optimizer" in replaced:
        reset |= _optimizer(model, now, is_image=source.spec.is_image)
    if {"optimizer", "scheduler"} & replaced:
        reset["warmup_ratio"] = _WARMUP.get(now["scheduler"], 0.0)
    if "epochs" in replaced:
        reset["max_steps"] = 0
    elif given.get("max_steps") and "epochs" not in given:
        reset["epochs"] = 0
    elif "batch_size" in replaced and found["max_steps"]:
        reset["max_steps"] = max(1, round(found["max_steps"] * found["batch_size"] / now["batch_size"]))
    if {"weights", "pretrained"} & replaced:
        reset["init"] = "random"  # or it would write over the first layer of what was given
    if "init" in replaced or "init" in reset:
        reset["layer_lr"] = ""
    if not (found | reset | dict(given))["momentum"]:
        reset["nesterov"] = False
    reset = {name: value for name, value in reset.items() if name not in given and value != found[name]}
    fields = found | reset | dict(given)
    if fields["scheduler"] == "step" and not ({"step_size"} & (set(given) | set(own))):
        cuts_every = max(1, num_epochs(fields, source) // _NUM_CUTS)
        if cuts_every != fields["step_size"]:
            reset["step_size"] = fields["step_size"] = cuts_every
    overridden = {name: (before[name], given[name]) for name in given if name in replaced}
    kept = {name: value for name, value in own.items() if fields[name] == value}
    return Merged(fields, kept, overridden, {name: (found[name], value) for name, value in reset.items()})


def _dataset(found: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """A recipe for data with a test set of its own may train on all the rest; elsewhere no sample would be left to test on."""
    reset: dict[str, Any] = {} if source.has_test_set else {"val_split": "auto", "test_split": "auto"}
    return reset | {"data_args": {}} | ({} if found["class_weights"] == "balanced" else {"class_weights": "none"})


def _loss(found: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Label smoothing belongs to its loss; so does the learning rate of sgd, between a mean over the batch and a sum."""
    reset: dict[str, Any] = {"loss_args": {}} | ({} if now["loss"] == "cross_entropy" else {"label_smoothing": 0.0})
    reset |= {} if has_weights(now["loss"]) else {"class_weights": "none"}
    if now["optimizer"] == "sgd" and (found["loss"] in _SUMS) != (now["loss"] in _SUMS):
        factor = now["batch_size"] if found["loss"] in _SUMS else 1 / now["batch_size"]
        reset["lr"] = float(f"{found['lr'] * factor:.3g}")
    return reset


def _optimizer(model: str, now: Mapping[str, Any], *, is_image: bool) -> dict[str, Any]:
    """Everything that scales or shapes a step; sgd's learning rate is that of a mean over the batch."""
    values = optimizers(model, is_image=is_image)[now["optimizer"]]
    reset = {"momentum": 0.0, "nesterov": False, "layer_weight_decay": "", "head_lr": "auto"} | dict(values)
    if now["optimizer"] == "sgd" and now["loss"] in _SUMS:
        reset["lr"] = float(f"{reset['lr'] / now['batch_size']:.3g}")
    if any(value != "0" for _, _, value in (part.partition("=") for part in now["layer_lr"].split(",") if part)):
        reset["layer_lr"] = ""  # a frozen layer stays frozen, whatever moves the others
    return reset


def held_out(fields: Mapping[str, Any], source: Source) -> tuple[int, int]:
    """Return the numbers of training samples that are held out for validation and for the test."""
    val, test = (
        own if fields[name] == "auto" else fields[name]
        for name, own in (("val_split", source.val_fraction), ("test_split", source.test_fraction))
    )
    return (
        0 if source.has_val_set else round(source.num_train * val),
        0 if source.has_test_set else round(source.num_train * test),
    )


def steps_per_epoch(fields: Mapping[str, Any], source: Source) -> int:
    """Return the optimizer steps of one epoch, as told by the data set's description."""
    return max(1, -(-(source.num_train - sum(held_out(fields, source))) // fields["batch_size"]))


def num_epochs(fields: Mapping[str, Any], source: Source) -> int:
    """Return the epochs of a training, the last of which may be cut short by `max_steps`."""
    limits = [fields["epochs"]] if fields["epochs"] else []
    if fields["max_steps"]:
        limits.append(math.ceil(fields["max_steps"] / steps_per_epoch(fields, source)))
    return min(limits, default=0)


def text_of(value: object) -> str:
    """Return a value as a flag would give it."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={text_of(each)}" for name, each in value.items())
    if isinstance(value, tuple):
        return ",".join(map(text_of, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
