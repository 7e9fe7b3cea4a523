"""Two logistic layers built from hand-written operators only, the loss included: the classifier of the two moons.

The last logistic belongs to the loss, so that the network gives raw scores as every other model does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from models.handwritten import Linear, binary_cross_entropy, logistic
from models.wrapper import check_width


def _logistic_cross_entropy(scores: Tensor, target: Tensor) -> Tensor:
    return binary_cross_entropy(logistic(scores), target)


class TwoLayer(nn.Module):
    """Linear, logistic, Linear. (B, D) float32 to raw scores (B, 1) and hidden activations (B, hidden)."""

    losses: ClassVar[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
        "bce": _logistic_cross_entropy
    }  # used in place of torch's own

    def __init__(self, *, input_shape: tuple[int, ...], num_outputs: int, hidden: int = 32) -> None:
        super().__init__()
        check_width(hidden)
        self.hidden = Linear(input_shape[0], hidden)
        self.output = Linear(hidden, num_outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = logistic(self.hidden(x))
        return self.output(features), features
