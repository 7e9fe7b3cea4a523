from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

import models
from models.polynomial import Polynomial, _Cubic, _SquaredError, coefficients, formula
from models.wrapper import Model
from pipeline.data import find

GRADIENTS = ("manual", "autograd", "linear")


def _network(gradient: str) -> Polynomial:
    torch.manual_seed(3)
    return Polynomial(input_shape=(1,), num_outputs=1, gradient=gradient)


def test_hand_derived_gradients_agree_with_finite_differences() -> None:
    torch.manual_seed(0)
    scalars = [torch.randn((), dtype=torch.float64, requires_grad=True) for _ in range(4)]
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    assert torch.autograd.gradcheck(lambda *s: _Cubic.apply(x, *s), scalars)
    y = torch.randn(9, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: _SquaredError.apply(y, x), (y,))


def test_manual_autograd_and_linear_walk_the_same_path() -> None:
    """The text's 2000 steps of lr 1e-6 on the sum of squared errors, from the same four random numbers."""
    x = torch.linspace(-math.pi, math.pi, 2000)[:, None]
    y = x.sin()
    paths = {}
    for gradient in GRADIENTS:
        network = _network(gradient)
        squared = network.losses.get("sse", lambda p, t: (p - t) ** 2)
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-6)
        path = []
        for step in range(2000):
            loss = squared(network(x)[0], y).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 100 == 99:
                path.append([loss.item(), *network.coefficients()])
        paths[gradient] = np.array(path)
    for gradient in GRADIENTS[1:]:
        np.testing.assert_allclose(paths[gradient], paths["manual"], rtol=1e-4, atol=1e-5)
    assert paths["manual"][-1, 0] < paths["manual"][0, 0]


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_formula_is_in_the_raw_input_though_the_model_standardizes(gradient: str) -> None:
    torch.manual_seed(1)
    data = dataclasses.replace(find("sine").spec, mean=(0.7,), std=(1.9,))
    model = models.build("polynomial", data, {"gradient": gradient}, preprocess="standardize")
    assert isinstance(model, Model)
    x = torch.linspace(-3, 3, 50)[:, None]
    a, b, c, d = coefficients(model)
    torch.testing.assert_close(model(x)[0], a + b * x + c * x**2 + d * x**3, rtol=1e-4, atol=1e-4)
    assert formula(model).startswith("y = ") and formula(model).count(" x") == 3
