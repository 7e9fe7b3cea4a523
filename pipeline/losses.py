"""The training losses, each as a sum over samples.

A sum, because the gradient of a global batch is the sum over all ranks' samples divided once by the global count: a mean
taken on each rank would weigh the ranks wrongly as soon as a batch does not divide evenly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LossSum = Callable[[Tensor, Tensor], Tensor]


def loss_sum(name: str, *, task: str, label_smoothing: float = 0.0, network: nn.Module | None = None) -> LossSum:
    """Return a function of raw scores or predictions (B, K) and targets that gives the sum of the samples' losses, 0-d.

    Targets are labels (B,) int64, or values (B, 1) float32 for regression. A network may bring hand-written losses of its own
    in `losses`. mse averages over the K outputs of a sample, sse sums them.
    """
    by_hand = getattr(network, "losses", {}).get(name)

    def target_of(scores: Tensor, target: Tensor) -> Tensor:
        if task == "regression":
            return target
        if task == "binary":
            return target[:, None].to(scores.dtype)
        return F.one_hot(target, scores.shape[1]).to(scores.dtype)

    if by_hand:
        return lambda scores, target: by_hand(scores, target_of(scores, target)).sum()
    if name in ("cross_entropy", "nll"):
        return lambda scores, target: F.cross_entropy(scores, target, reduction="sum", label_smoothing=label_smoothing)
    if name == "bce":
        return lambda scores, target: F.binary_cross_entropy_with_logits(scores, target_of(scores, target), reduction="sum")

    def squared(scores: Tensor, target: Tensor) -> Tensor:
        answer = torch.sigmoid(scores) if task == "binary" else scores
        total = F.mse_loss(answer, target_of(scores, target), reduction="sum")
        return total / scores.shape[1] if name == "mse" else total

    return squared


def loss_divisor(name: str, count: int) -> int:
    """Return what a sum over `count` samples is divided by: the count, or 1 where the loss is itself a sum."""
    return 1 if name == "sse" else count


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
        return self.total if name == "sse" else self.weighted / self.samples

    def over_steps(self, name: str) -> float:
        """Return the loss of a sample, or for sse of a batch, on average."""
        return self.total / self.steps if name == "sse" else self.weighted / self.samples
