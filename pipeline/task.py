"""The kinds of task: all in which multiclass, multilabel, binary and regression differ, and the losses and metrics of each.

A new loss is an entry of `losses.LOSSES`, a new metric one of `metrics.METRICS`. Torch, numpy and scikit-learn are imported
only where they compute, so that the command line can ask in a moment which loss fits which data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.losses import LOSSES, loss_named, over_outputs
from pipeline.metrics import METRICS, Results

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

    Array = NDArray[Any]
    LossSum = Callable[[Tensor, Tensor], Tensor]


class Task:
    """A kind of task. Scores are (B, K) float32 from a network; what K and the targets are, each kind says."""

    name: str
    metric = "accuracy"  # the one metric that is summed while training: accuracy or rmse
    outputs: tuple[str, ...] = ("logits", "probabilities", "features")  # of an exported model, in this order
    pictures: tuple[str, ...] = ("curves",)  # of `plots.draw.PICTURES`, in the order in which they are drawn
    has_decisions = True  # whether scores stand for labels
    has_strata = True  # whether each sample is of one class, so that splits can keep the classes' shares
    has_labels = False  # whether a sample has any number of them, each of which is there or not

    @property
    def losses(self) -> tuple[str, ...]:
        """The names of the losses that fit, the usual one first."""
        return tuple(name for name, loss in LOSSES.items() if self.name in loss.tasks)

    def loss_sum(
        self,
        name: str,
        *,
        label_smoothing: float = 0.0,
        network: nn.Module | None = None,
        args: Mapping[str, Any] | None = None,
        weights: Tensor | None = None,
        unit: Tensor | None = None,
    ) -> LossSum:
        """Return a function of scores (B, K) and targets that gives the sum of the samples' losses, 0-d.

        `args` are the loss's own arguments, `weights` those of the classes, as `class_weights` returns them.

        A sum, because the gradient of a global batch is the sum over all ranks' samples divided once by the global count: a
        mean taken on each rank would weigh the ranks wrongly as soon as a batch does not divide evenly. A network may bring
        hand-written losses of its own in `losses`, {name: function of scores and `like_scores(scores, target)`}. Values are
        compared in a `unit` of their own, (K,), so that no target outweighs the others.
        """
        if unit is not None:
            plain = self.loss_sum(name, label_smoothing=label_smoothing, network=network, args=args, weights=weights)
            return lambda scores, target: plain(scores / unit, target / unit)
        if by_hand := getattr(network, "losses", {}).get(name):
            if weights is not None:
                return lambda scores, target: (
                    by_hand(scores, self.like_scores(scores, target)) * self.weight_of(target, weights)
                ).sum()
            return lambda scores, target: by_hand(scores, self.like_scores(scores, target)).sum()
        return partial(loss_named(name).sum, self, label_smoothing=label_smoothing, weights=weights, **(args or {}))

    def weight_of(self, target: Tensor, weights: Tensor) -> Tensor:
        """Return the weight of each sample's loss for its targets, in a shape that multiplies the losses of scores (B, K)."""
        raise NotImplementedError

    def class_counts(self, target: Tensor, num_classes: int) -> Tensor:
        """Return how many samples each class has, (C,) float64; for multilabel (C, 2), without the label and with it."""
        return target.bincount(minlength=num_classes).double()

    def metric_sum(self, scores: Tensor, target: Tensor) -> Tensor:
        """Return the number of right decisions, or the sum of squared errors, 0-d; of several outputs, their average."""
        right = (self.decide(scores) == target).sum()
        return over_outputs(right.double(), scores) if target.ndim == 2 else right

    def metric_value(self, total: float, count: int) -> float:
        """Turn a sum of `metric_sum` over `count` samples into `metric`."""
        return total / count

    def gain(self, value: float, *, over: float) -> float:
        """Return by how much one value of `metric` is better than another: the difference; of rmse, the share of the other."""
        return value - over

    def report(
        self, scores: Tensor, target: Tensor, *, classes: Sequence[str] = (), targets: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Return every metric of `METRICS` that fits and is defined, as JSON values, for scores (N, K) on the CPU.

        `classes` are the names of the classes or labels, `targets` those of several regression targets (default: 0, 1, ...).
        """
        predicted = self.decide(scores) if self.has_decisions else scores
        names = classes or targets or [str(k) for k in range(scores.shape[1])]
        found = Results(scores.numpy(), true=target.numpy(), predicted=predicted.numpy(), names=tuple(names))
        fitting = {name: metric.compute(found) for name, metric in METRICS.items() if self.name in metric.tasks}
        return {name: value for name, value in fitting.items() if value is not None}

    def export_outputs(self, scores: Tensor, features: Tensor, *, temperature: float = 1.0) -> tuple[Tensor, ...]:
        """Return what an exported model gives, in the order of `outputs`; torch.export can trace it.

        Probabilities are those of scores / temperature.
        """
        return scores, self.probabilities(scores if temperature == 1 else scores / temperature), features

    def num_outputs(self, num_classes: int, num_targets: int = 1) -> int:
        """Return K, for as many classes or labels, or regression targets."""
        return num_classes

    def takes_classes(self, count: int) -> bool:
        """Tell whether samples of one of `count` classes each can be told apart by it."""
        return False

    def decide(self, scores: Tensor) -> Tensor:
        """Return the labels that scores (B, K) stand for, int64: (B,), or (B, K) of 0 and 1 for multilabel."""
        raise NotImplementedError

    def some_targets(self, scores: Tensor, num_classes: int) -> Tensor:
        """Return targets as a data set may have them, for trying a loss on scores (B, K)."""
        import torch

        return torch.arange(len(scores)) % max(2, num_classes)

    def probabilities(self, scores: Tensor) -> Tensor:
        """Return the probability of each class or label, (B, C), for scores (B, K)."""
        raise NotImplementedError

    def like_scores(self, scores: Tensor, target: Tensor) -> Tensor:
        """Return targets in the shape and dtype of scores (B, K), as bce and the squared losses compare them."""
        raise NotImplementedError

    def activated(self, scores: Tensor) -> Tensor:
        """Return what the squared losses compare with the targets: the scores themselves, or their logistic."""
        return scores

    def wrong_targets(self, target: Array, num_classes: int) -> str:
        """Return what is wrong with the targets of a data set, as `has ...`, or nothing."""
        if len(target) and (target.min() < 0 or target.max() >= num_classes):
            return f"has labels from {target.min()} to {target.max()} for the {num_classes} classes 0 to {num_classes - 1}"
        return ""


class _Multiclass(Task):
    """One class a sample. Targets are labels (B,) int64, K is the number of classes."""

    name = "multiclass"
    pictures = ("curves", "confusion_matrix", "tsne", "roc_pr", "top_losses", "activations", "scatter", "decision_regions")

    def takes_classes(self, count: int) -> bool:
        return True

    def decide(self, scores: Tensor) -> Tensor:
        return scores.argmax(1)

    def probabilities(self, scores: Tensor) -> Tensor:
        return scores.softmax(1)

    def like_scores(self, scores: Tensor, target: Tensor) -> Tensor:
        import torch.nn.functional as F

        return F.one_hot(target, scores.shape[1]).to(scores.dtype)

    def weight_of(self, target: Tensor, weights: Tensor) -> Tensor:
        return weights[target]


class _Multilabel(Task):
    """Several yes-or-no labels a sample. Targets are (B, K) float32 of 0 and 1; accuracy is the share of right labels."""

    name = "multilabel"
    has_strata = False
    has_labels = True

    def some_targets(self, scores: Tensor, num_classes: int) -> Tensor:
        return (scores.flip(0) > 0).to(scores.dtype)

    def decide(self, scores: Tensor) -> Tensor:
        return (scores > 0).long()

    def probabilities(self, scores: Tensor) -> Tensor:
        return scores.sigmoid()

    def like_scores(self, scores: Tensor, target: Tensor) -> Tensor:
        return target

    def weight_of(self, target: Tensor, weights: Tensor) -> Tensor:
        return weights[:, 0] + target * (weights[:, 1] - weights[:, 0])

    def class_counts(self, target: Tensor, num_classes: int) -> Tensor:
        having = target.double().sum(0)
        return (having.new_tensor([len(target), 0]) + having[:, None] * having.new_tensor([-1, 1])).clamp(min=0)

    def activated(self, scores: Tensor) -> Tensor:
        return scores.sigmoid()

    def wrong_targets(self, target: Array, num_classes: int) -> str:
        if target.ndim != 2 or target.shape[1] != num_classes or num_classes < 2:
            return f"has targets {target.shape}, not (N, {num_classes}) with a column for each of two labels or more"
        return "" if ((target == 0) | (target == 1)).all() else "has labels other than 0 and 1"


class _Binary(Task):
    """Two classes, one score. Targets are labels (B,) int64; a score above 0 is class 1."""

    name = "binary"
    pictures = _Multiclass.pictures

    def takes_classes(self, count: int) -> bool:
        return count == 2

    def num_outputs(self, num_classes: int, num_targets: int = 1) -> int:
        return 1

    def decide(self, scores: Tensor) -> Tensor:
        return (scores[:, 0] > 0).long()

    def probabilities(self, scores: Tensor) -> Tensor:
        import torch

        return torch.cat([-scores, scores], dim=1).sigmoid()  # (B, 2): 1 - p, p

    def like_scores(self, scores: Tensor, target: Tensor) -> Tensor:
        return target[:, None].to(scores.dtype)

    def weight_of(self, target: Tensor, weights: Tensor) -> Tensor:
        return weights[target][:, None]

    def activated(self, scores: Tensor) -> Tensor:
        return scores.sigmoid()


class _Regression(Task):
    """K values a sample. Targets are (B, K) float32, and scores the predictions themselves."""

    name = "regression"
    metric = "rmse"
    outputs = ("prediction",)
    pictures = ("curves", "fitted_curve")
    has_decisions = has_strata = False

    def some_targets(self, scores: Tensor, num_classes: int) -> Tensor:
        return scores.flip(0)

    def num_outputs(self, num_classes: int, num_targets: int = 1) -> int:
        return num_targets

    def metric_sum(self, scores: Tensor, target: Tensor) -> Tensor:
        return over_outputs(((scores - target) ** 2).sum(), scores)

    def metric_value(self, total: float, count: int) -> float:
        return (total / count) ** 0.5

    def gain(self, value: float, *, over: float) -> float:
        return (over - value) / over if over > 0 else -value

    def export_outputs(self, scores: Tensor, features: Tensor, *, temperature: float = 1.0) -> tuple[Tensor, ...]:
        return (scores,)

    def like_scores(self, scores: Tensor, target: Tensor) -> Tensor:
        return target

    def wrong_targets(self, target: Array, num_classes: int) -> str:
        return ""


TASKS: Mapping[str, Task] = {each.name: each for each in (_Multiclass(), _Multilabel(), _Binary(), _Regression())}


def task(name: str) -> Task:
    """Return a task by its name. Raises ValueError where there is none."""
    if name not in TASKS:
        raise ValueError(f"task={name} is not known. Choose one of: {', '.join(TASKS)}.")
    return TASKS[name]


def of_classes(count: int) -> str:
    """Return the name of the usual task for samples of one of `count` classes each."""
    return _Binary.name if count == 2 else _Multiclass.name
