"""Muon: what it does to a matrix, and that everything else takes AdamW's steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pipeline.muon import Muon, orthogonal_product
from pipeline.optimizers import build_optimizer
from pipeline.resolve import resolve


@pytest.mark.parametrize("shape", [(16, 25), (128, 400), (300, 40)])
def test_singular_values_come_near_1_and_singular_vectors_stay(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = left.T @ torch.mm(*orthogonal_product(matrix)) @ right.T
    assert values.diagonal().min() > 0.6 and values.diagonal().max() < 1.25
    torch.testing.assert_close(values, values.diagonal().diag(), atol=1e-9, rtol=0)


def _two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2))


def _steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 3) -> list[torch.Tensor]:
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    for _ in range(count):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


def test_without_an_orthogonal_group_it_is_adamw() -> None:
    ours, torchs = _two_layers(), _two_layers()
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1, "fused": True}
    after = _steps(ours, Muon(ours.parameters(), **options)), _steps(torchs, torch.optim.AdamW(torchs.parameters(), **options))
    assert all(torch.equal(a, b) for a, b in zip(*after, strict=True))


def test_a_step_has_the_size_of_adamws_and_the_momentum_of_its_beta() -> None:
    model = _two_layers()
    hidden = model[1].weight
    optimizer = Muon([{"params": [hidden], "orthogonal": True}], lr=0.01, weight_decay=0.0, betas=(0.9, 0.99))
    before = hidden.detach().clone()
    hidden.grad = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    step = (before - hidden.detach()) / (0.01 * 0.2 * 8**0.5)
    torch.testing.assert_close(torch.linalg.svdvals(step), torch.ones(6), atol=0.35, rtol=0)
    torch.testing.assert_close(optimizer.state[hidden]["momentum"], hidden.grad * 0.1)


@pytest.mark.parametrize("shape", [(8, 3, 5, 5), (90, 3, 5, 5), (6, 8), (8, 6)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_step_is_the_orthogonal_one_after_weight_decay_however_the_weights_lie(
    shape: tuple[int, ...], channels_last: bool
) -> None:
    weights = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    if channels_last and len(shape) == 4:
        weights = nn.Parameter(weights.detach().to(memory_format=torch.channels_last))
    weights.grad = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    before = weights.detach().clone()
    Muon([{"params": [weights], "orthogonal": True}], lr=0.01, weight_decay=0.5).step()
    step = torch.mm(*orthogonal_product(weights.grad.flatten(1))).view(shape)
    size = 0.01 * 0.2 * max(weights.flatten(1).shape) ** 0.5
    torch.testing.assert_close(weights.detach(), before * (1 - 0.01 * 0.5) - size * step)


def test_the_matrices_between_the_first_and_the_last_are_the_orthogonal_ones() -> None:
    import models
    from pipeline.data import find

    config = resolve({"model": "cnn", "optimizer": "muon"})
    model = models.build("cnn", find("mnist").spec, {})
    names = {id(p): name for name, p in model.named_parameters()}
    groups = build_optimizer(model, config).param_groups
    hidden = [names[id(p)] for group in groups if group.get("orthogonal") for p in group["params"]]
    assert hidden == ["network.conv2.weight", "network.fc1.weight"]
    assert sum(len(group["params"]) for group in groups) == len(names)
