"""A first convolution that sees what the images are made of: its filters are the principal components of their patches.

Random filters need a few hundred steps to become as good; a short training has no more than that.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MOST_VALUES = 100_000_000  # of all patches together, 400 MB: more than enough of large images
_CONTRAST = 0.1  # patches that vary less show background


@torch.no_grad()
def set_pca_filters(convolution: nn.Conv2d, images: Tensor) -> None:
    """Set the filters of `convolution` to the leading components of patches of `images` (B, C, H, W), each with both signs.

    ReLU keeps one sign only, hence both. Filters have norm 1, biases are 0. Where there are fewer components than pairs of
    filters, the last filters stay as they are.
    """
    height, width = convolution.kernel_size
    values = images.shape[1] * height * width * images.shape[2] * images.shape[3]  # of one image's patches, at most
    images = images[: max(1, _MOST_VALUES // values)]
    patches = F.unfold(images, (height, width)).transpose(1, 2).flatten(0, 1)  # (B * positions, C * height * width)
    patches = patches[patches.std(1) > _CONTRAST]
    patches = patches - patches.mean(1, keepdim=True)
    _, components = torch.linalg.eigh(patches.T @ patches / max(1, len(patches)))  # columns, the leading ones last
    leading = components.T.flip(0)[: convolution.out_channels // 2]
    filters = torch.cat([leading, -leading]).view(-1, *convolution.weight.shape[1:])
    convolution.weight[: len(filters)] = filters
    if convolution.bias is not None:
        convolution.bias.zero_()
