"""Training images changed at random, on the batch and its device.

How a sample is changed is drawn ahead for all samples of an epoch, so that it is the same on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.spill import scratch

Change = Callable[[Tensor, Tensor], Tensor]
_STEPS = 127  # an int8 has as many on either side of 0


def changes(count: int, generator: torch.Generator, *, shift: int, affine: float, device: torch.device) -> Change | None:
    """Draw how each of `count` samples is changed; return the change of (images (B, C, H, W), their samples' numbers (B,)).

    `shift` is the farthest move in pixels, `affine` the largest change of an entry of the matrix; `device` is that of the
    samples' numbers. None if nothing changes.
    """
    moves = warps = None
    if shift:
        room = scratch((count, 2), torch.int8)
        moves = torch.randint(-shift, shift + 1, (count, 2), generator=generator, dtype=torch.int8, out=room).to(device)
    if affine:
        room = scratch((count, 4), torch.int8)
        warps = torch.randint(-_STEPS, _STEPS + 1, (count, 4), generator=generator, dtype=torch.int8, out=room).to(device)

    def change(images: Tensor, samples: Tensor) -> Tensor:
        if moves is not None:
            images = translate(images, moves[samples].to(images.device))
        if warps is not None:
            images = apply_affine(images, warps[samples].to(images.device) * (affine / _STEPS))
        return images

    return change if shift or affine else None


def translate(images: Tensor, moves: Tensor) -> Tensor:
    """Return images (B, C, H, W), each moved by its own (dy, dx) in `moves` (B, 2) integers; what comes in is 0."""
    if not len(images):
        return images
    height, width = images.shape[2:]
    y, x = (
        torch.arange(n, device=images.device) - moves[:, k : k + 1] for k, n in enumerate((height, width))
    )  # (B, H), (B, W)
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]  # (B, H, W)
    source = y.clamp(0, height - 1)[:, :, None] * width + x.clamp(0, width - 1)[:, None, :]
    flat = source.flatten(1)[:, None].expand(-1, images.shape[1], -1)  # (B, C, H*W)
    return images.flatten(2).gather(2, flat).view(images.shape) * inside[:, None]


def apply_affine(images: Tensor, entries: Tensor) -> Tensor:
    """Return images (B, C, H, W) as float32, each turned, stretched and sheared about its middle; what comes in is 0.

    The pixel at (x, y) is read at A (x, y), between pixels by linear interpolation, where A is the unit matrix plus an image's
    four `entries` (B, 4) float32, row by row, and both axes run from -1 to 1.
    """
    images = images.float()
    if not len(images):
        return images
    matrices = torch.eye(2, device=images.device) + entries.view(-1, 2, 2)
    theta = torch.cat([matrices, matrices.new_zeros(len(images), 2, 1)], 2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
