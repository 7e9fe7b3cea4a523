"""Mixup and cutmix: each sample of a global batch mixed with the next one of it, and the loss with it.

The next one in the epoch's order is a random other sample, the same on any number of ranks, and a part of a batch needs one row
more to have it. How much of a sample is its own is drawn once for each step, and at least a half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.task import LossSum


@dataclass(frozen=True)
class Mixing:
    """For each step of an epoch: the share of a sample that is its own, (S,) float32, and the box that is not (cutmix).

    `boxes` (S, 4) has top, bottom, left and right; an empty one means mixup, where all values are mixed.
    """

    shares: Tensor
    boxes: NDArray[Any]

    def apply(self, step: int, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """Mix samples x (B + 1, ...), each with the one behind it; return x (B, ...), both targets (B, ...) and the share."""
        share, (top, bottom, left, right) = self.shares[step], self.boxes[step].tolist()
        mixed, other = x[:-1].float(), x[1:].float()
        if bottom > top:
            mixed = mixed.clone()  # the rows of `other` are nearly the same ones
            mixed[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
        else:
            mixed = torch.lerp(other, mixed, share)
        return mixed, y[:-1], y[1:], share


def draw(
    num_steps: int,
    seed: tuple[int, int],
    *,
    mixup: float,
    cutmix: float,
    shape: Sequence[int],
    device: torch.device,
) -> Mixing | None:
    """Draw how the samples of an epoch's steps are mixed; None where both parameters of Beta(a, a) are 0.

    Where both are given, each step does one of them, as a coin falls. `shape` is that of a sample; cutmix is for images. A box
    has about the drawn share of the area and its middle anywhere (Yun et al., "CutMix", 2019); what lies outside of the image
    is cut off, and the share is that of what remains.
    """
    if not mixup and not cutmix:
        return None
    generator = np.random.default_rng(seed)
    coins, middles = generator.random(num_steps), generator.random((num_steps, 2))
    by_mixup, by_cutmix = (generator.beta(alpha or 1, alpha or 1, num_steps) for alpha in (mixup, cutmix))
    cuts = coins < 0.5 if mixup and cutmix else np.full(num_steps, bool(cutmix))
    shares = np.where(cuts, by_cutmix, by_mixup)
    shares = np.maximum(shares, 1 - shares)  # whichever has more counts as the sample itself
    boxes = np.zeros((num_steps, 4), int)
    if cutmix:
        size = np.array(shape[-2:])
        sides = (size * np.sqrt(1 - shares)[:, None]).astype(int)
        corners = (middles * size).astype(int) - sides // 2
        low, high = np.clip(corners, 0, size), np.clip(corners + sides, 0, size)
        empty = ~cuts | (high <= low).any(1)
        boxes = np.where(empty[:, None], 0, np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], 1))
        shares = np.where(cuts, 1 - (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / size.prod(), shares)
    return Mixing(torch.from_numpy(shares.astype(np.float32)).to(device), boxes)


def mixed_loss(loss_sum: LossSum, scores: Tensor, own: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """Return the sum of the losses of scores (B, K), 0-d, for two targets each, and the share of the first."""
    return share * loss_sum(scores, own) + (1 - share) * loss_sum(scores, other)
