"""Batch normalization: frozen where its parameters are, and the same on all ranks.

On GPUs every rank normalizes by the whole batch (torch's SyncBatchNorm). On CPUs, where torch has no such thing, each rank
normalizes by its own part of the batch; the running statistics, which an evaluation and the exported file use, are the mean
over the ranks, taken at the end of each epoch and for each checkpoint.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline import distributed
from pipeline.distributed import Ranks

_TORCHS_OWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_SMALLEST = 2  # samples that have a deviation


def set_training(module: nn.Module) -> None:
    """Put a model into training mode, but for each batch normalization whose parameters are all frozen.

    Such a one keeps the running statistics that it was given, and normalizes by them.
    """
    module.train()
    for each in module.modules():
        own = list(each.parameters(recurse=False))
        if isinstance(each, _BatchNorm) and own and not any(parameter.requires_grad for parameter in own):
            each.eval()


def synchronized(network: nn.Module, ranks: Ranks) -> nn.Module:
    """Return the network with batch normalization over all ranks, where there are several and each has a GPU.

    The names in its state dict stay. A kind of normalization that is somebody's own is left alone, but for timm's.
    """
    found = {type(module) for module in network.modules() if isinstance(module, _BatchNorm)}
    if not found or ranks.world_size == 1 or ranks.device.type != "cuda":
        return network
    if found <= {*_TORCHS_OWN}:
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    if any(kind.__module__.startswith("timm.") for kind in found):
        layers = importlib.import_module("timm.layers")  # torch's own would lose the activation that timm's has inside
        return layers.convert_sync_batchnorm(network)
    return network


class Norms:
    """The batch normalizations of a model in training, and all buffers of its network that are saved."""

    def __init__(self, model: nn.Module, network: nn.Module) -> None:
        self.training = [each for each in model.modules() if isinstance(each, _BatchNorm) and each.training]
        self.synchronized = any(isinstance(each, nn.SyncBatchNorm) for each in self.training)
        self.num_everywhere = _SMALLEST  # the fewest samples that a part of this step has, over all ranks together
        kept = network.state_dict(keep_vars=True)
        self.buffers = {name: buffer for name, buffer in network.named_buffers() if name in kept}

    def for_part(self, num_samples: int) -> None:
        """Have the next pass normalize by the running statistics where its samples are too few to have statistics.

        `num_samples` are this rank's; where the ranks normalize together they must decide alike, by all of theirs.
        """
        enough = (self.num_everywhere if self.synchronized else num_samples) >= _SMALLEST
        for each in self.training:
            each.train(enough)

    @torch.no_grad()
    def average(self) -> None:
        """Give every rank the mean over the ranks of each buffer; of whole numbers, rank 0's. All ranks must call it."""
        if self.buffers:
            self.restore(mean(distributed.gather(self.own())))

    def own(self) -> dict[str, Tensor]:
        """Return copies of this rank's buffers on the CPU."""
        return {name: buffer.detach().to("cpu", copy=True) for name, buffer in self.buffers.items()}

    @torch.no_grad()
    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Set this rank's buffers to such copies."""
        for name, value in values.items():
            self.buffers[name].copy_(value)


def mean(ranks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of the ranks' buffers, by name, summed in float64; equal ones stay as they are, bit for bit."""
    found = {}
    for name, first in ranks[0].items():
        if first.is_floating_point():
            found[name] = (torch.stack([values[name].double() for values in ranks]).sum(0) / len(ranks)).to(first.dtype)
        else:
            found[name] = first
    return found
