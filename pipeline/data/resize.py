"""Images of any size to one size, inside of an exported graph too: Pillow's BILINEAR with antialias, to the bit.

Each pass is one matrix product with triangle weights that the graph makes from the height or width of its input. Pillow holds a
weight as a whole number of 2^-22 and a pixel as a whole grey level after each pass. Such sums do not fit into float32, so a
weight goes through the product in two parts whose sums do: in whatever order they are added up, the result is Pillow's.

Pillow 13 takes the vertical pass first where only the height shrinks; older ones never do. Here, as in `pipeline.data.images`,
the horizontal pass is always first, so that no sample depends on the version of Pillow.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ONE = 2**22  # the whole number that stands for a weight of 1
_LOW = 2**6  # the low part of a weight is below it. Exact where a weight's row has at most 1000 of them: sizes 500 x `side`


def resize(images: Tensor, side: int) -> Tensor:
    """Return images (B, C, H, W) as float32 (B, C, side, side); those of that size already are returned as they are.

    uint8 gives whole grey levels, as Pillow does. Values in floating point are not rounded, which is Pillow's mode F.
    """
    across, down = (_weights(size, side) for size in (images.shape[3], images.shape[2]))  # (side, W), (side, H)
    x = images.float()
    if images.is_floating_point():
        return (down / _ONE).float() @ (x @ (across / _ONE).float().T)
    x = _rounded(x @ _in_two_parts(across).T, dim=3)  # (B, C, H, 2 side) to (B, C, H, side)
    return _rounded(_in_two_parts(down) @ x, dim=2)  # (B, C, 2 side, side) to (B, C, side, side)


def _weights(size: int, side: int) -> Tensor:
    """Return the weight of each of `size` pixels in each of `side`, (side, size) float64, whole numbers of `_ONE`.

    The middle of pixel i lies at (i + 1/2) / size of the whole; in units of 1 / (2 size side) all distances are whole numbers.
    """
    there = (2 * torch.arange(side) + 1) * size
    here = (2 * torch.arange(size) + 1) * side
    reach = 2 * torch.sym_max(size, side)  # where an image grows, that of its own pixels
    triangle = ((here - there[:, None]).abs().neg() + reach).clamp(min=0)
    return (triangle.double() / triangle.sum(1, keepdim=True) * _ONE + 0.5).floor()


def _in_two_parts(weights: Tensor) -> Tensor:
    """Return weights (n, size) as float32 (2 n, size): how many `_LOW` there are in each, then what is left."""
    high = (weights / _LOW).floor()
    return torch.cat([high, weights - high * _LOW]).float()


def _rounded(sums: Tensor, *, dim: int) -> Tensor:
    """Return the grey levels that sums of both parts stand for. No number here is above 2^24, so each is exact."""
    high, low = sums.chunk(2, dim)
    one = _ONE // _LOW
    return ((high + (low / _LOW).floor() + one // 2) / one).floor()
