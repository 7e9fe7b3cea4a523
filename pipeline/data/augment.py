"""Training images changed at random, on the batch and its device.

How a sample is changed is drawn ahead for all samples of an epoch, so that it is the same on any number of ranks. Colours come
first, then everything that moves pixels: whole pixels where it can be, and else all of it in one bilinear look-up. What comes
in from beyond the edge of an image is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.spill import scratch

Change = Callable[[Tensor, Tensor], Tensor]
_STEPS = 127  # an int8 has as many on either side of 0
_LEVELS = 255  # of a uint8
_ASPECT = math.log(4 / 3)  # of a crop, at most, either way
_GREY = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
_BRIGHTEST = 255.0


def changes(
    count: int,
    generator: torch.Generator,
    *,
    shift: int,
    affine: float,
    crop: float = 0.0,
    flip: bool = False,
    color: float = 0.0,
    device: torch.device,
) -> Change | None:
    """Draw how each of `count` samples is changed; return the change of (images (B, C, H, W), their samples' numbers (B,)).

    `shift` is the farthest move in pixels, `affine` the largest change of an entry of the matrix, `crop` the smallest share of
    the area that is kept (0: all of it), `flip` says that half of the images are mirrored left to right, and `color` is the
    largest change of brightness, contrast and saturation; `device` is that of the samples' numbers. None if nothing changes.
    """

    def drawn(low: int, high: int, width: int, kind: torch.dtype, *, when: bool) -> Tensor | None:
        """Return random whole numbers from `low` to `high`, (count, width), a byte each."""
        if not when:
            return None
        room = scratch((count, width), kind)
        return torch.randint(low, high + 1, (count, width), generator=generator, dtype=kind, out=room).to(device)

    moves = drawn(-shift, shift, 2, torch.int8, when=shift > 0)
    warps = drawn(-_STEPS, _STEPS, 4, torch.int8, when=affine > 0)
    crops = drawn(0, _LEVELS, 4, torch.uint8, when=crop > 0)
    flips = drawn(0, 1, 1, torch.uint8, when=flip)
    colors = drawn(-_STEPS, _STEPS, 3, torch.int8, when=color > 0)

    def change(images: Tensor, samples: Tensor) -> Tensor:
        def of(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[samples].to(images.device)

        move, warp, part, mirrored = of(moves), of(warps), of(crops), of(flips)
        if colors is not None:
            images = recolor(images, 1 + colors[samples].to(images.device) * (color / _STEPS))
        if warp is not None:
            warp = warp * (affine / _STEPS)
        if part is not None or (mirrored is not None and warp is not None):
            windows = None if part is None else cut(part / _LEVELS, smallest=crop)
            return look_up(images, maps(images, move=move, warp=warp, window=windows, mirrored=mirrored))
        if mirrored is not None:
            images = torch.where(mirrored[:, :, None, None] > 0, images.flip(3), images)
        if move is not None:
            images = translate(images, move)
        if warp is not None:
            images = apply_affine(images, warp)
        return images

    return change if any(each is not None for each in (moves, warps, crops, flips, colors)) else None


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


def cut(drawn: Tensor, *, smallest: float) -> Tensor:
    """Return windows (B, 4) as half width, half height and middle (x, y), for four numbers of 0 to 1 each, `drawn` (B, 4).

    Both axes run from -1 to 1. A window has from `smallest` to all of the area, evenly, and lies evenly within the image; its
    sides differ by at most 4 to 3, as far as they fit.
    """
    area = smallest + (1 - smallest) * drawn[:, 0]
    lean = (2 * drawn[:, 1] - 1) * area.log().neg().clamp(max=_ASPECT)  # wider than high by e^lean
    half = torch.stack([(area * lean.exp()).sqrt(), (area * (-lean).exp()).sqrt()], 1).clamp(max=1)
    return torch.cat([half, (2 * drawn[:, 2:] - 1) * (1 - half)], 1)


def maps(images: Tensor, *, move: Tensor | None, warp: Tensor | None, window: Tensor | None, mirrored: Tensor | None) -> Tensor:
    """Return where each pixel is read, as matrices (B, 2, 3) for `affine_grid`: a window, mirrored, moved, then warped."""
    count, (height, width) = len(images), images.shape[2:]
    theta = torch.eye(2, 3, device=images.device).repeat(count, 1, 1)
    if warp is not None:
        theta[:, :, :2] += warp.view(-1, 2, 2)
    if move is not None:
        theta[:, :, 2] = -move.flip(1) * torch.tensor([2 / width, 2 / height], device=images.device)
    if mirrored is not None:
        theta[:, 0] *= 1 - 2 * mirrored.float()
    if window is not None:
        theta *= window[:, :2, None]
        theta[:, :, 2] += window[:, 2:]
    return theta


def look_up(images: Tensor, theta: Tensor) -> Tensor:
    """Return images (B, C, H, W) as float32, each read at the places that its matrix in `theta` (B, 2, 3) gives.

    Between pixels by linear interpolation; a place within the outermost half pixel has that pixel's value, one beyond it 0.
    """
    images = images.float()
    if not len(images):
        return images
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)  # (B, H, W, 2)
    inside = (grid.abs() <= 1).all(3)
    read = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return read.mul_(inside[:, None])


def recolor(images: Tensor, factors: Tensor) -> Tensor:
    """Return images (B, C, H, W) of 0 to 255 as float32 with other brightness, contrast and saturation: `factors` (B, 3).

    Brightness is a factor of all values, contrast one of the distance to the image's mean grey, saturation one of the distance
    to each pixel's grey. Values beyond the range are cut off.
    """
    images = images.float()
    brightness, contrast, saturation = (factor[:, None, None, None] for factor in factors.T)
    weights = _GREY if images.shape[1] == len(_GREY) else (1 / images.shape[1],) * images.shape[1]
    grey = (images * images.new_tensor(weights)[:, None, None]).sum(1, keepdim=True)  # (B, 1, H, W)
    steady = grey.mean((2, 3), keepdim=True) * (1 - contrast)
    toward = (grey * (1 - saturation) * contrast).add_(steady).mul_(brightness)
    return (images * (saturation * contrast * brightness)).add_(toward).clamp_(0, _BRIGHTEST)
