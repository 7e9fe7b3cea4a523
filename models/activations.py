"""Activation functions written out by hand, as plain tensor arithmetic; the tests hold each against torch's own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "logistic": lambda x: 1 / (1 + torch.exp(-x)),
    "tanh": lambda x: (torch.exp(x) - torch.exp(-x)) / (torch.exp(x) + torch.exp(-x)),
    "relu": lambda x: x.clamp(min=0),
    "leaky_relu": lambda x: x.clamp(min=0) + 0.1 * x.clamp(max=0),
    "hard_logistic": lambda x: (x / 6 + 0.5).clamp(0, 1),
    "hard_tanh": lambda x: x.clamp(-1, 1),
    "elu": lambda x: x.clamp(min=0) + torch.exp(x.clamp(max=0)) - 1,
    "softplus": lambda x: torch.log(1 + torch.exp(x)),
    "swish": lambda x: x / (1 + torch.exp(-x)),
}
