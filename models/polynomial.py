"""A cubic y = a + b x + c x^2 + d x^3, its gradient derived by hand, taken by autograd, or by nn.Linear on (x, x^2, x^3).

All three start from the same four normal random numbers, so they walk the same path. Where the input is standardized, the
coefficients belong to the standardized x: `formula` gives them back for the raw one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from numpy.polynomial import Polynomial as Series
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from models.wrapper import Model


class _Cubic(torch.autograd.Function):
    """dL/da = sum g, dL/db = sum g x, dL/dc = sum g x^2, dL/dd = sum g x^3, with g = dL/dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return a + b * x + c * x**2 + d * x**3

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return None, g.sum(), (g * x).sum(), (g * x**2).sum(), (g * x**3).sum()


class _SquaredError(torch.autograd.Function):
    """dL/dy = 2 (y - target)."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(y, target)
        return (y - target) ** 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        y, target = ctx.saved_tensors
        return grad * 2 * (y - target), None


class Polynomial(nn.Module):
    """(B, 1) float32 to the prediction (B, 1) and its terms (x, x^2, x^3) as (B, 3)."""

    def __init__(
        self, *, input_shape: tuple[int, ...], num_outputs: int, gradient: Literal["manual", "autograd", "linear"] = "autograd"
    ) -> None:
        super().__init__()
        assert input_shape == (1,) and num_outputs == 1
        self.gradient = gradient
        start = torch.randn(4)
        self.losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
        if gradient == "linear":
            self.linear = nn.Linear(3, 1)
            with torch.no_grad():
                self.linear.bias.copy_(start[:1])
                self.linear.weight.copy_(start[1:].reshape(1, 3))
        else:
            self.a, self.b, self.c, self.d = (nn.Parameter(value.clone()) for value in start)
        if gradient == "manual":
            self.losses = {"mse": _SquaredError.apply, "sse": _SquaredError.apply}

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        terms = torch.cat([x, x**2, x**3], dim=1)  # (B, 3)
        if self.gradient == "linear":
            return self.linear(terms), terms
        if self.gradient == "manual":
            return _Cubic.apply(x, self.a, self.b, self.c, self.d), terms
        return self.a + self.b * x + self.c * x**2 + self.d * x**3, terms

    def coefficients(self) -> list[float]:
        """Return [a, b, c, d] for the input that this network is given."""
        if self.gradient == "linear":
            return [*self.linear.bias.tolist(), *self.linear.weight[0].tolist()]
        return [p.item() for p in (self.a, self.b, self.c, self.d)]


def coefficients(model: Model) -> list[float]:
    """Return [a, b, c, d] for the raw input, standardization undone."""
    assert isinstance(model.network, Polynomial)
    z = Series([-model.mean.item() / model.std.item(), 1 / model.std.item()])  # z = (x - mean) / std
    expanded = Series(model.network.coefficients())(z).coef.tolist()
    return expanded + [0.0] * (4 - len(expanded))


def formula(model: Model) -> str:
    """Return `y = a + b x + c x^2 + d x^3` with the fitted numbers, for the raw input."""
    a, *rest = coefficients(model)
    signs = [("-" if value < 0 else "+", abs(value), term) for value, term in zip(rest, ("x", "x^2", "x^3"), strict=True)]
    return f"y = {a:.4f}" + "".join(f" {sign} {value:.4f} {term}" for sign, value, term in signs)
