"""Standardization as the first layer of every model, so that the exported graph takes the raw input that training took.

The statistics are buffers: they travel with the weights and are part of every exported file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

_MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Data(Protocol):
    """What a model has to know of its data (a DataSpec): the shape of a sample, the outputs, and the statistics."""

    @property
    def sample_shape(self) -> tuple[int, ...]: ...
    @property
    def num_outputs(self) -> int: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...
    @property
    def value_range(self) -> tuple[int, int] | None: ...
    @property
    def target_mean(self) -> tuple[float, ...]: ...
    @property
    def target_std(self) -> tuple[float, ...]: ...


class Model(nn.Module):
    """(x - mean) / std, then the network.

    Takes (B, *input_shape), uint8 or float32. Gives `(output, features)`: the output (B, num_outputs) float32, raw scores or
    predicted values, and the activations (B, num_features) float32 that the last layer reads. Where the network gives a tensor
    alone (`has_features` is False), the features are the output itself; those of more than two axes are flattened. With
    `repeat_grey`, images of one channel are repeated to three before all else: the network knows no others. With
    `target_std`, the network's values are in that unit, around `target_mean`, and are turned back as the last step.
    """

    mean: Tensor
    std: Tensor
    target_mean: Tensor

    def __init__(
        self, network: nn.Module, *, mean: Sequence[float], std: Sequence[float], input_shape: Sequence[int],
        has_features: bool = True, repeat_grey: bool = False, target_mean: Sequence[float] = (),
        target_std: Sequence[float] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.network = network
        self.has_features, self.repeat_grey = has_features, repeat_grey
        shape = (-1, *[1] * (len(input_shape) - 1))  # one value a channel, or one a feature
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(shape))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(shape))
        if target_std:
            self.register_buffer("target_mean", torch.tensor(target_mean, dtype=torch.float32))  # (K,)
            self.register_buffer("target_std", torch.tensor(target_std, dtype=torch.float32))

    def standardized(self, x: Tensor) -> Tensor:
        x = x.float()
        if self.repeat_grey:
            x = x.expand(-1, 3, -1, -1)  # (B, 3, H, W)
        return (x - self.mean) / self.std

    @property
    def hidden_matrices(self) -> tuple[str, ...]:
        """The names of the weights between the first and the last layer; muon is for these.

        A network may name them itself, in `hidden_matrices`; else they are the weights of all linear and convolutional layers
        but the first and the last, in the order in which the network has them.
        """
        own = getattr(self.network, "hidden_matrices", None)
        if own is None:
            names = {id(parameter): name for name, parameter in self.network.named_parameters()}
            weights = [m.weight for m in self.network.modules() if isinstance(m, _MATRICES) and id(m.weight) in names]
            own = [names[key] for key in dict.fromkeys(map(id, weights))][1:-1]
        return tuple(f"network.{name}" for name in own)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self.has_features:
            scores = self._in_own_unit(self.network(self.standardized(x)))
            return scores, scores
        scores, features = self.network(self.standardized(x))
        return self._in_own_unit(scores), features.flatten(1) if features.ndim > 2 else features

    def _in_own_unit(self, scores: Tensor) -> Tensor:
        return scores if self.target_unit is None else scores * self.target_unit + self.target_mean

    @property
    def target_unit(self) -> Tensor | None:
        """The unit in which errors of each target are measured, (K,); None where it is the target's own."""
        return self._buffers.get("target_std")


def check_width(hidden: int) -> None:
    """Raise ValueError where a layer would have no units."""
    if hidden < 1:
        raise ValueError(f"hidden={hidden} is no width of a layer; it takes at least 1")


def statistics(kind: str, data: Data) -> dict[str, list[float]]:
    """Return the mean and std that preprocessing `kind` uses: one value a channel (images) or a feature (vectors).

    `none` leaves the input as it is, `scale` maps its range to [0, 1], `standardize` gives mean 0 and deviation 1; a constant
    feature keeps deviation 1. Data that was not prepared has no statistics yet and is left as it is. Raises ValueError when
    `scale` is asked for data without a fixed range.
    """
    size = data.sample_shape[0]
    if kind == "standardize" and data.mean:
        return {"mean": list(data.mean), "std": [s if s > 0 else 1.0 for s in data.std]}
    if kind == "scale":
        if data.value_range is None:
            raise ValueError("preprocess=scale needs data with a fixed range of values. Use --preprocess standardize.")
        low, high = data.value_range
        return {"mean": [float(low)] * size, "std": [float(high - low)] * size}
    return {"mean": [0.0] * size, "std": [1.0] * size}
