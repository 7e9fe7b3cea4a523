"""The perceptron of one hidden tanh layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.wrapper import check_width


class Perceptron(nn.Module):
    """Linear, tanh, Linear. (B, D) float32 to raw scores (B, num_outputs) and hidden activations (B, hidden)."""

    def __init__(self, *, input_shape: tuple[int, ...], num_outputs: int, hidden: int = 25, dropout: float = 0.0) -> None:
        super().__init__()
        check_width(hidden)
        self.hidden = nn.Linear(input_shape[0], hidden)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(hidden, num_outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.tanh(self.hidden(x))
        return self.output(self.dropout(features)), features
