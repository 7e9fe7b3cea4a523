from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from models import handwritten
from models.two_layer import TwoLayer


def _double(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_linear_backward_agrees_with_finite_differences() -> None:
    assert gradcheck(handwritten.linear, (_double(7, 3), _double(3, 2), _double(2)))


def test_logistic_backward_agrees_with_finite_differences() -> None:
    assert gradcheck(handwritten.logistic, (_double(5, 4) * 3,))


def test_binary_cross_entropy_backward_agrees_with_finite_differences() -> None:
    probability = torch.rand(6, 1, dtype=torch.float64) * 0.9 + 0.05
    target = torch.tensor([[0.0], [1], [1], [0], [1], [0]], dtype=torch.float64)
    assert gradcheck(lambda p: handwritten.binary_cross_entropy(p, target), (probability.requires_grad_(),))


def test_operators_give_the_values_of_torch() -> None:
    x, weight, bias = torch.randn(8, 5), torch.randn(5, 3), torch.randn(3)
    torch.testing.assert_close(handwritten.linear(x, weight, bias), nn.functional.linear(x, weight.T, bias))
    torch.testing.assert_close(handwritten.logistic(x), torch.sigmoid(x))
    p, t = torch.sigmoid(x), (torch.rand(8, 5) > 0.5).float()
    torch.testing.assert_close(
        handwritten.binary_cross_entropy(p, t), nn.functional.binary_cross_entropy(p, t, reduction="none")
    )


def test_a_confident_mistake_costs_a_hundred_and_keeps_the_gradient_finite() -> None:
    p = torch.tensor([[0.0], [1.0]], requires_grad=True)
    loss = handwritten.binary_cross_entropy(p, torch.tensor([[1.0], [0.0]]))
    loss.sum().backward()
    assert loss.flatten().tolist() == [100.0, 100.0]
    assert p.grad is not None and p.grad.isfinite().all()


def test_moons_walks_the_same_path_as_its_autograd_twin() -> None:
    """200 steps of gradient descent by hand-written backward and by autograd end at the same weights."""
    by_hand = TwoLayer(input_shape=(2,), num_outputs=1, hidden=5)
    twin = nn.Sequential(nn.Linear(2, 5), nn.Sigmoid(), nn.Linear(5, 1), nn.Sigmoid())
    with torch.no_grad():
        for ours, theirs in ((by_hand.hidden, twin[0]), (by_hand.output, twin[2])):
            theirs.weight.copy_(ours.weight.T)
            theirs.bias.copy_(ours.bias)
    x, y = torch.randn(64, 2), (torch.rand(64, 1) > 0.5).float()
    steps = torch.optim.SGD(by_hand.parameters(), lr=0.2), torch.optim.SGD(twin.parameters(), lr=0.2)
    for _ in range(200):
        losses = by_hand.losses["bce"](by_hand(x)[0], y).mean(), nn.functional.binary_cross_entropy(twin(x), y)
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
        for optimizer, loss in zip(steps, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(by_hand.hidden.weight.T, twin[0].weight, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(by_hand.output.weight.T, twin[2].weight, rtol=1e-4, atol=1e-5)


def test_weights_start_normal_and_biases_zero() -> None:
    layer = handwritten.Linear(200, 100)
    assert abs(layer.weight.std().item() - 1) < 0.02 and abs(layer.weight.mean().item()) < 0.02
    assert not layer.bias.any()
