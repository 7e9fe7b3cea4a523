"""Filters made from the images."""

from __future__ import annotations

import torch
from torch import nn

from models.pca_init import set_pca_filters


def test_filters_are_the_directions_in_which_patches_vary_most_with_both_signs() -> None:
    generator = torch.Generator().manual_seed(0)
    across = torch.tensor([[1.0, -1.0], [1.0, -1.0]]) / 2
    strength = torch.randn(200, 1, 1, 1, generator=generator)
    images = strength * across + 0.01 * torch.randn(200, 1, 2, 2, generator=generator)
    convolution = nn.Conv2d(1, 4, 2)
    set_pca_filters(convolution, images)
    found = convolution.weight.detach()[:, 0]
    assert abs((found[0] * across).sum()) > 0.999  # the leading component
    torch.testing.assert_close(found[2], -found[0])
    torch.testing.assert_close(found.flatten(1).norm(dim=1), torch.ones(4))
    assert not convolution.bias.any()


def test_more_filters_than_components_leaves_the_rest_as_it_was() -> None:
    convolution = nn.Conv2d(1, 20, 2)  # a patch of four values has four components
    before = convolution.weight.detach().clone()
    set_pca_filters(convolution, torch.randn(8, 1, 5, 5))
    assert torch.equal(convolution.weight[8:], before[8:]) and not torch.equal(convolution.weight[:8], before[:8])
