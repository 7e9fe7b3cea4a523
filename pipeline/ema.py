"""The moving average of the weights: updated in every optimizer step where the weights are, and asked for nothing.

Buffers are not averaged: those of the weights are copied when the average is evaluated or saved.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from models.wrapper import Model


class Average:
    """avg <- d avg + (1 - d) weights after each step, in a copy of the model.

    d is `decay`, and in the first steps (1 + n) / (10 + n), where n counts the steps: an average of few steps would be little
    more than the random weights that it began with.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.decay, self._source, self.model = decay, model, copy.deepcopy(model).requires_grad_(False)
        own = dict(self.model.named_parameters())
        moving = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._weights: list[Tensor] = [parameter.detach() for parameter in moving.values()]
        self._averages: list[Tensor] = [own[name] for name in moving]

    def decay_in(self, step: int) -> float:
        """Return d in optimizer step `step`, counted from 1."""
        return min(self.decay, (1 + step) / (10 + step))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step`, counted from 1."""
        torch._foreach_lerp_(self._averages, self._weights, 1 - self.decay_in(step))

    @torch.no_grad()
    def current(self) -> Model:
        """Return the model of the averaged weights, with the buffers that the weights have now."""
        for mine, theirs in zip(self.model.buffers(), self._source.buffers(), strict=True):
            mine.copy_(theirs)
        return self.model
