"""The convolutional network for MNIST whose 128 features are drawn with t-SNE."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class CNN(nn.Module):
    """(B, 1, 28, 28) float32 to logits (B, num_outputs) and the 128 features before the last layer."""

    hidden_matrices = ("conv2.weight", "fc1.weight")

    def __init__(self, *, input_shape: tuple[int, ...], num_outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_shape[0], 16, 5, padding=2)
        self.conv2 = nn.Conv2d(16, 32, 5, padding=2)
        self.fc1 = nn.Linear(32 * 7 * 7, 128)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(128, num_outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # the largest of four, then ReLU: the same numbers as the other way round, for a quarter of the ReLU's work
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # (B, 16, 14, 14)
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # (B, 32, 7, 7)
        features = F.relu(self.fc1(x.flatten(1)))  # (B, 128)
        return self.fc2(self.dropout(features)), features
