"""Losses: each the sum of the losses of single samples, so that parts of a batch add up on any number of ranks.

`file.py:function` is a loss too: called with scores (B, K) float32 and targets as the data has them, it returns (B,) losses.
Torch is imported only where something is computed.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from models.plugin import Code


class Task(Protocol):
    """What a loss has to know of a kind of task."""

    def like_scores(self, scores: Tensor, target: Tensor) -> Tensor: ...
    def activated(self, scores: Tensor) -> Tensor: ...
    def weight_of(self, target: Tensor, weights: Tensor) -> Tensor: ...
    def class_counts(self, target: Tensor, num_classes: int) -> Tensor: ...


_ALL = ("multiclass", "multilabel", "binary", "regression")
_GIVEN = ("label_smoothing", "weights")  # what a loss is told by us
_SMALLEST = 1e-8  # of 1 - p: its power has no slope at 0
_LARGEST = 1e6  # of a class's weight


@dataclass(frozen=True)
class Loss:
    """`sum` takes the task, scores and targets, `label_smoothing`, `weights` and its own arguments.

    `is_sum` says that no mean is taken of it afterwards, `has_weights` that classes may weigh differently; `limits` has the
    smallest and the largest value of each argument of its own.
    """

    tasks: tuple[str, ...]
    sum: Callable[..., Tensor]
    is_sum: bool = False
    has_weights: bool = False
    limits: Mapping[str, tuple[float, float]] | None = None


def _cross_entropy(
    task: Task, scores: Tensor, target: Tensor, *, label_smoothing: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    import torch.nn.functional as F

    return F.cross_entropy(scores, target, weight=weights, reduction="sum", label_smoothing=label_smoothing)


def _bce(task: Task, scores: Tensor, target: Tensor, *, weights: Tensor | None = None, **_: Any) -> Tensor:
    import torch.nn.functional as F

    each = None if weights is None else task.weight_of(target, weights)
    total = F.binary_cross_entropy_with_logits(scores, task.like_scores(scores, target), weight=each, reduction="sum")
    return over_outputs(total, scores)


def _focal(
    task: Task, scores: Tensor, target: Tensor, *, gamma: float = 2.0, weights: Tensor | None = None, **_: Any
) -> Tensor:
    """(1 - p)^gamma times the cross entropy, p being the probability of what is so: Lin et al., "Focal loss", 2017."""
    import torch
    import torch.nn.functional as F

    like = task.like_scores(scores, target)
    if like.shape[1:] == target.shape[1:] or scores.shape[1] == 1:
        entropy = F.binary_cross_entropy_with_logits(scores, like, reduction="none")  # (B, K)
    else:
        entropy = F.cross_entropy(scores, target, reduction="none")  # (B,)
    losses = (-torch.expm1(-entropy)).clamp_min(_SMALLEST) ** gamma * entropy
    if weights is not None:
        losses = losses * task.weight_of(target, weights)
    return over_outputs(losses.sum(), scores) if losses.ndim == 2 else losses.sum()


def _sse(task: Task, scores: Tensor, target: Tensor, **_: Any) -> Tensor:
    import torch.nn.functional as F

    return F.mse_loss(task.activated(scores), task.like_scores(scores, target), reduction="sum")


def _mse(task: Task, scores: Tensor, target: Tensor, **_: Any) -> Tensor:
    return over_outputs(_sse(task, scores, target), scores)


def _huber(task: Task, scores: Tensor, target: Tensor, *, delta: float = 1.0, **_: Any) -> Tensor:
    import torch.nn.functional as F

    return over_outputs(F.huber_loss(scores, task.like_scores(scores, target), reduction="sum", delta=delta), scores)


def over_outputs(total: Tensor, scores: Tensor) -> Tensor:
    """Return the sum over samples of their averages over the K outputs, for a sum over both."""
    return total / scores.shape[1] if scores.shape[1] > 1 else total


LOSSES: Mapping[str, Loss] = {  # all but sse average over the K outputs of a sample, sse sums them
    "cross_entropy": Loss(("multiclass",), _cross_entropy, has_weights=True),
    "nll": Loss(("multiclass",), _cross_entropy, has_weights=True),
    "bce": Loss(("binary", "multilabel"), _bce, has_weights=True),
    "mse": Loss(_ALL, _mse),
    "sse": Loss(("binary", "regression"), _sse, is_sum=True),
    "focal": Loss(("multiclass", "binary", "multilabel"), _focal, has_weights=True, limits={"gamma": (0, 100)}),
    "huber": Loss(("regression",), _huber, limits={"delta": (1e-6, 1e38)}),
}


def is_own(name: str) -> bool:
    """Tell whether a loss is given by its file."""
    return ":" in name


def address(name: str) -> str:
    """Return a loss's name, with the whole path of its file if it is given by that."""
    file, colon, function = name.rpartition(":")
    return f"{os.path.abspath(os.path.expanduser(file))}:{function}" if colon and file.endswith(".py") else name


def source_of(name: str) -> Code | None:
    """Return the code of a loss of a file, `file.py:function`; None for others. Raises PluginError as `plugin.code_of`."""
    from models.plugin import code_of

    return code_of(name) if is_own(name) else None


def loss_named(name: str) -> Loss:
    """Return a loss by its name, or the one of a file. Raises UserError where that cannot be loaded."""
    if not is_own(name):
        return LOSSES[name]
    function = _function(name)
    return Loss(_ALL, lambda task, scores, target, *, label_smoothing, weights, **args: function(scores, target, **args).sum())


def _function(name: str) -> Callable[..., Tensor]:
    from models.plugin import load

    try:
        function: Any = load(name)
    except ValueError as error:
        raise UserError(f"loss={name} {error}") from error
    return function


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """Return what `--loss_args` may give to a loss, by name. Raises UserError as `loss_named` does."""
    if is_own(name):
        own = inspect.signature(_function(name), eval_str=True).parameters
        return dict(list(own.items())[2:])  # behind scores and targets
    found = inspect.signature(LOSSES[name].sum).parameters
    return {n: p.replace(annotation=float) for n, p in found.items() if p.kind is p.KEYWORD_ONLY and n not in _GIVEN}


def out_of_range(name: str, args: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the values of a built-in loss's arguments, in sentences without their beginning."""
    limits = {} if is_own(name) else LOSSES[name].limits or {}
    return [
        f"{arg}={args[arg]} of {name} is out of range. Give a number from {low:g} to {high:g}."
        for arg, (low, high) in limits.items()
        if isinstance(args.get(arg), int | float) and not low <= args[arg] <= high
    ]


def wrong_losses(name: str, args: Mapping[str, Any], scores: Tensor, target: Tensor) -> str:
    """Try an own loss on B samples; return what is wrong with what it gives, as the end of a sentence, or nothing."""
    import torch

    function: Any = _function(name)
    scores = scores.clone().requires_grad_()
    try:
        losses = function(scores, target, **args)
        if not isinstance(losses, torch.Tensor) or losses.shape != (len(scores),):
            shape = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
            return f"gives {shape} for {len(scores)} samples, not one loss for each, ({len(scores)},). Do not sum or average."
        losses.sum().backward()
    except Exception as error:  # whatever somebody's function raises
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        return f"fails on scores {tuple(scores.shape)} and targets {tuple(target.shape)} ({reason[0]}). Mend it."
    return "" if losses.isfinite().all() else f"gives losses that are not finite for scores {tuple(scores.shape)}. Mend it."


def named_weights(text: str) -> dict[str, float]:
    """Return {class: weight} of `a=1,b=2` or a JSON object. Raises ValueError with the end of a sentence."""
    if text.startswith("{"):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError('is no JSON object. Write it as {"a": 1, "b": 2}, or as a=1,b=2.') from None
    else:
        found = {}
        for part in filter(None, text.split(",")):
            name, equals, number = part.rpartition("=")
            if not equals:
                raise ValueError(f"has {part!r} without a weight. Write none, balanced or class=1,class=2.")
            try:
                found[name.strip()] = float(number)
            except ValueError:
                found[name.strip()] = number
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LARGEST:
            raise ValueError(f"gives {value!r} for {name}. Give a number from 0 to {_LARGEST:g}.")
    if found and not any(found.values()):
        raise ValueError("gives every class that it names the weight 0. Give some more than that.")
    return found


def class_weights(text: str, task: Task, names: Sequence[str], target: Tensor) -> Tensor | None:
    """Return the weights of the classes, (C,) float32, for `none` nothing; for multilabel (C, 2), without a label and with it.

    `balanced` gives N / (C n) to a class of n of the N training samples, so that each class weighs the same and the mean weight
    is 1; 1 to a class without any. What is not named weighs 1; a label's weight is of the samples that have it.
    """
    import torch

    if text == "none":
        return None
    counts = task.class_counts(target, len(names))
    if text == "balanced":
        total = counts.sum(-1, keepdim=True)
        return torch.where(counts > 0, total / (counts.shape[-1] * counts.clamp(min=1)), 1.0).float()
    weights = torch.ones_like(counts, dtype=torch.float32)
    for name, value in named_weights(text).items():
        weights[(names.index(name), *([-1] if counts.ndim == 2 else []))] = value
    return weights


def loss_divisor(name: str, count: int) -> int:
    """Return what a sum over `count` samples is divided by: the count, also of weighted ones, or 1 for a loss that is a sum."""
    return 1 if name in LOSSES and LOSSES[name].is_sum else count  # for each step: one call, and no more


def is_sum(name: str) -> bool:
    """Tell whether a loss is itself a sum over the batch."""
    return name in LOSSES and LOSSES[name].is_sum


def has_weights(name: str) -> bool:
    """Tell whether classes may weigh differently in a loss."""
    return name in LOSSES and LOSSES[name].has_weights


@dataclass
class MeanLoss:
    """The losses of some optimizer steps, added up; each as training has it: a mean over its batch, or a sum for sse."""

    weighted: float = 0.0  # with the samples of each step as weights
    total: float = 0.0
    samples: int = 0
    steps: int = 0

    def add(self, loss: float, samples: int) -> None:
        self.weighted += loss * samples
        self.total += loss
        self.samples += samples
        self.steps += 1

    def over_samples(self, name: str) -> float:
        """Return the loss `name` over all samples, as evaluation has it: their mean, or their sum for sse."""
        return self.total if is_sum(name) else self.weighted / self.samples

    def over_steps(self, name: str) -> float:
        """Return the loss of a sample, or for sse of a batch, on average."""
        return self.total / self.steps if is_sum(name) else self.weighted / self.samples
