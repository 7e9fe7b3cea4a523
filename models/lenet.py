"""LeNet: two convolutions and three linear layers, for 32x32 images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class LeNet(nn.Module):
    """(B, 1, 32, 32) float32 to logits (B, num_outputs) and the 84 features before the last layer."""

    hidden_matrices = ("conv2.weight", "fc1.weight", "fc2.weight")

    def __init__(self, *, input_shape: tuple[int, ...], num_outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_shape[0], 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.dropout = nn.Dropout(dropout)
        self.fc3 = nn.Linear(84, num_outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # the largest of four, then ReLU: the same numbers as the other way round, for a quarter of the ReLU's work
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # (B, 6, 14, 14)
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # (B, 16, 5, 5)
        features = F.relu(self.fc2(F.relu(self.fc1(x.flatten(1)))))  # (B, 84)
        return self.fc3(self.dropout(features)), features
