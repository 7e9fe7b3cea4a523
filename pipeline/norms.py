"""Batch normalization: frozen where its parameters are."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def set_training(module: nn.Module) -> None:
    """Put a model into training mode, but for each batch normalization whose parameters are all frozen.

    Such a one keeps the running statistics that it was given, and normalizes by them.
    """
    module.train()
    for each in module.modules():
        own = list(each.parameters(recurse=False))
        if isinstance(each, _BatchNorm) and own and not any(parameter.requires_grad for parameter in own):
            each.eval()
