"""The update rules and the course of the learning rate, as parameters of a run."""

from __future__ import annotations

import math
from typing import Any

import torch

from models.wrapper import Model
from pipeline.checks import layer_of, layer_values
from pipeline.config import RunConfig
from pipeline.layers import rates
from pipeline.muon import Muon

_MUON_BETAS = (0.9, 0.99)
_ONE_CYCLE_START = 1 / 25  # of the peak, as in torch's OneCycleLR


def build_optimizer(model: Model, config: RunConfig) -> torch.optim.Optimizer:
    """Return the optimizer of `config` over the parameters of `model`, layers with values of their own in their own groups.

    What `rates` gives 0 is frozen.
    """
    decays = layer_values(config.layer_weight_decay)
    named = list(model.named_parameters())
    peaks = rates(named, config)
    groups: dict[tuple[str, str, bool], dict[str, Any]] = {}
    for name, parameter in named:
        peak, layer = peaks[name], layer_of(name)
        if peak.lr == 0:
            parameter.requires_grad_(False)  # so that no gradient is computed for it, nor for what comes before it
            continue
        hidden = config.optimizer == "muon" and name in model.hidden_matrices
        key = peak.layer, layer if layer in decays else "", hidden
        group = groups.setdefault(key, {"params": [], "lr": peak.lr, "weight_decay": decays.get(layer, config.weight_decay)})
        group["initial_lr"] = peak.lr  # as torch's schedulers call it
        group["metric"] = f"train/lr/{peak.layer}" if peak.layer else "train/lr"
        group["params"].append(parameter)
        if hidden:
            group["orthogonal"] = True
    parameters = list(groups.values())
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=config.lr, momentum=config.momentum)
    if config.optimizer == "muon":
        return Muon(parameters, lr=config.lr, betas=_MUON_BETAS, fused=True)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer](parameters, lr=config.lr, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Set every group's learning rate to its own peak times `factor`; return them as `train/lr` and `train/lr/<layer>`."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return {group["metric"]: group["lr"] for group in optimizer.param_groups}


def warmup_steps(config: RunConfig, total_steps: int) -> int:
    """Return the number of optimizer steps in which the learning rate rises."""
    return round(config.warmup_ratio * total_steps)


def lr_factor(step: int, config: RunConfig, *, total_steps: int, steps_per_epoch: int) -> float:
    """Return the learning rate in optimizer step `step` (from 0) as a share of `lr`: a function of the step alone."""
    warm = warmup_steps(config, total_steps)
    if step < warm:
        risen = (step + 1) / (warm + 1)
        if config.scheduler == "one_cycle":
            return _ONE_CYCLE_START + (1 - _ONE_CYCLE_START) * (1 - math.cos(math.pi * risen)) / 2
        return risen
    if config.scheduler == "step":
        return config.gamma ** (step // (config.step_size * steps_per_epoch))
    if config.scheduler in ("cosine", "one_cycle"):
        return (1 + math.cos(math.pi * (step - warm) / max(1, total_steps - warm))) / 2
    return 1.0
