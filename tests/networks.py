"""Networks for tests that need more than the built-in ones have, and how to have them under a name."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from models import MODELS, ModelSpec


class Normed(nn.Module):
    """A small convolutional network with batch normalization: (B, C, 8, 8) to scores (B, num_outputs) and 16 features."""

    def __init__(self, *, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_shape[0], 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.fc = nn.Linear(16, num_outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.layer1(self.bn1(self.conv1(x)).relu()).mean((2, 3))  # (B, 16)
        return self.fc(features), features


NORMED = ModelSpec(
    summary="a network for tests", builder="tests.networks:Normed", tasks=("multiclass",), input_shape=(1, 8, 8),
    layers=("conv1", "bn1", "layer1", "fc"),
)  # fmt: skip


def add_normed() -> None:
    """Have `model=normed` stand for `Normed`, in this process."""
    known: Any = MODELS
    known["normed"] = NORMED
