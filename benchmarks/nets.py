"""A network with or without batch normalization, which are otherwise the same: for row 20 of benchmarks/scaling.py."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn


class Net(nn.Module):
    """(B, C, H, W) float32 to scores (B, num_classes), by three convolutions of stride 2."""

    def __init__(self, input_shape: Sequence[int], num_classes: int, norm: bool = True) -> None:
        super().__init__()
        widths = (input_shape[0], 32, 64, 128)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=not norm)]
            layers += [nn.BatchNorm2d(after)] * norm + [nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(x).mean((2, 3)))
        return scores
