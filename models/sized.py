"""Networks of torchvision that are built for images of one size: how they are told it, and weights of another size.

These are the transformers that cut an image into patches or windows; Swin's adapt to any size by themselves. timm's networks
need nothing of this: timm does it where it builds them.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from models.plugin import PluginError

if TYPE_CHECKING:
    from torch import Tensor, nn

_SIZED = {"vit_": "image_size", "maxvit_": "input_size"}  # how a name begins, and what its size is called
_WINDOWS = 224  # px: MaxViT's windows fit into multiples of it
_TRANSFORMER, _POSITIONS = "torchvision.models.vision_transformer.VisionTransformer", "encoder.pos_embedding"


def arguments(short: str, height: int, width: int) -> dict[str, Any]:
    """Return what a network of torchvision that is built for one size of image is told of it; nothing for any other.

    Raises PluginError for a size that it cannot be built for, with the nearest ones.
    """
    argument = next((argument for start, argument in _SIZED.items() if short.startswith(start)), "")
    if not argument:
        return {}
    if height != width:
        raise PluginError(
            f"takes square images, and the data has {height} x {width} (height x width). Make them square, or use "
            "torchvision:swin_t."
        )
    is_cut = argument == "image_size"
    unit = int(short.rpartition("_")[2]) if is_cut else _WINDOWS
    if height % unit:
        near = " or ".join(str(side) for side in (height // unit * unit, (height // unit + 1) * unit) if side)
        told = f"cuts images into {unit} x {unit} pixels, and {height} is no multiple of {unit}"
        if not is_cut:
            told = f"takes images of {unit} x {unit} pixels or multiples, and {height} is none"
        raise PluginError(f"{told}. Use --image_size {near}.")
    return {argument: height if is_cut else (height, width)}


def fit_positions(network: nn.Module, state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], list[str]]:
    """Return a vision transformer's state dict with its positions interpolated to the size of its images, and that told.

    For any other network, and where nothing has to be done or nothing can be, it is `state` itself, and no sentence.
    """
    is_theirs = any(f"{cls.__module__}.{cls.__name__}" == _TRANSFORMER for cls in type(network).__mro__)
    if not is_theirs or _POSITIONS not in state:
        return state, []
    transformer: Any = network
    side, patch = transformer.image_size, transformer.patch_size
    there, here = state[_POSITIONS].shape, network.get_parameter(_POSITIONS).shape  # (1, 1 + patches, width)
    across = math.isqrt(there[1] - 1) if len(there) == 3 and there[1] > 1 else 0
    if there == here or not across or across**2 != there[1] - 1 or (there[0], there[2]) != (here[0], here[2]):
        return state, []
    theirs = importlib.import_module("torchvision.models.vision_transformer")
    fitted = theirs.interpolate_embeddings(image_size=side, patch_size=patch, model_state=dict(state))
    return fitted, [
        f"The positions in the file are those of {across} x {across} patches, images of {across * patch} x {across * patch} "
        f"pixels; interpolated to the {side // patch} x {side // patch} patches of {side} x {side} pixels (bicubic, as "
        "torchvision does it)."
    ]
