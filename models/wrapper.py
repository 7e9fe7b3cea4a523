"""Standardization as the first layer of every model, so that the exported graph takes the raw input that training took.

The statistics are buffers: they travel with the weights and are part of every exported file.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Model(nn.Module):
    """(x - mean) / std, then the network.

    Takes (B, *input_shape), uint8 or float32. Gives `(output, features)`: the output (B, num_outputs) float32, raw scores or
    predicted values, and the activations (B, num_features) float32 that the last layer reads.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, *, mean: Sequence[float], std: Sequence[float], input_shape: Sequence[int]) -> None:
        super().__init__()
        self.network = network
        shape = (-1, *[1] * (len(input_shape) - 1))  # one value a channel, or one a feature
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(shape))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(shape))

    def standardized(self, x: Tensor) -> Tensor:
        return (x.float() - self.mean) / self.std

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.network(self.standardized(x))


def statistics(
    kind: str, *, mean: Sequence[float], std: Sequence[float], input_range: Sequence[float] | None
) -> dict[str, list[float]]:
    """Return the mean and std that preprocessing `kind` uses, given a training split's statistics and value range.

    `none` leaves the input as it is, `scale` maps its range to [0, 1], `standardize` gives mean 0 and deviation 1; a constant
    feature keeps deviation 1. Raises ValueError when `scale` is asked for data without a fixed range.
    """
    if kind == "standardize":
        return {"mean": list(mean), "std": [s if s > 0 else 1.0 for s in std]}
    if kind == "none":
        return {"mean": [0.0] * len(mean), "std": [1.0] * len(std)}
    if input_range is None:
        raise ValueError("preprocess=scale needs data with a fixed range of values. Use --preprocess standardize.")
    low, high = input_range
    return {"mean": [float(low)] * len(mean), "std": [float(high - low)] * len(std)}
