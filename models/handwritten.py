"""Written out by hand: linear, logistic and binary cross entropy with their backward passes, and activation functions.

Autograd only carries the gradients between them; `tests/models/test_handwritten.py` proves each backward with gradcheck. They
compute in the dtype they are given and cannot be differentiated twice. The tests hold each activation against torch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

_MIN_LOG = -100.0  # as torch.nn.BCELoss: a confident mistake costs 100, not infinity


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight + bias  # (B, in) @ (in, out) + (out,)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return grad @ weight.T, x.T @ grad, grad.sum(0)


class _Logistic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        y = torch.reciprocal(1 + torch.exp(-x))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return grad * y * (1 - y)


class _BinaryCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, probability: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(probability, target)
        log_p, log_q = probability.log().clamp_min(_MIN_LOG), (1 - probability).log().clamp_min(_MIN_LOG)
        return -(target * log_p + (1 - target) * log_q)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        p, target = ctx.saved_tensors
        return grad * (p - target) / (p * (1 - p)).clamp_min(1e-12), None


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x W + b: (B, in), (in, out), (out,) to (B, out)."""
    return _Linear.apply(x, weight, bias)


def logistic(x: Tensor) -> Tensor:
    """Return 1 / (1 + exp(-x)), of the shape of x."""
    return _Logistic.apply(x)


def binary_cross_entropy(probability: Tensor, target: Tensor) -> Tensor:
    """Return the loss of each element, of the shape of `probability`; `target` is 0 or 1 in the same dtype and shape."""
    return _BinaryCrossEntropy.apply(probability, target)


class Linear(nn.Module):
    """The linear operator as a layer: weights (in, out) from N(0, 1), bias zero."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_inputs, num_outputs))
        self.bias = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


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
