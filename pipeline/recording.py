"""Computations recorded once and run again without Python: for models so small that Python is most of what a step costs.

The recorded operators and their order are those of the function, backward passes included, so the numbers are the same bit
for bit. Shapes, constants and the branches taken are those of the recording.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pipeline import metrics
from pipeline.losses import LossSum

Recorded = Callable[..., tuple[Tensor, ...]]


def _record(function: Callable[..., tuple[Tensor, ...]], *example: Tensor) -> Recorded:
    """Return `function` of tensors as a TorchScript program of aten operators."""
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(function)(*example)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".torch\.jit\.\w+. is deprecated", category=FutureWarning)
        program: Recorded = torch.jit.trace(graph, tuple(t.detach() for t in example), check_trace=False)
    return program


def _scores(model: nn.Module, names: Sequence[str], parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    scores: Tensor = torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (x,))[0]
    return scores


def record_step(model: nn.Module, loss_sum: LossSum, x: Tensor, y: Tensor, *, task: str, scale: float) -> Recorded:
    """Return a function of (x, y, *trainable parameters) for what a step computes before it changes anything.

    It gives the loss, the merit's sum and the gradients; loss and gradients are those of the summed loss times `scale`.
    """
    seed = torch.full((), scale, device=x.device)
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    def step(x: Tensor, y: Tensor, *parameters: Tensor) -> tuple[Tensor, ...]:
        scores = _scores(model, list(named), parameters, x)
        loss = loss_sum(scores, y)
        gradients = torch.autograd.grad(loss, parameters, seed)
        return loss.detach() * scale, metrics.merit_sum(task, scores.detach(), y), *gradients

    return _record(step, x, y, *named.values())


def record_sums(model: nn.Module, loss_sum: LossSum, x: Tensor, y: Tensor, *, task: str) -> Recorded:
    """Return a function of (x, y, *parameters) that gives the sums of loss and merit over samples, 0-d."""
    named = dict(model.named_parameters())

    def sums(x: Tensor, y: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        scores = _scores(model, list(named), parameters, x)
        return loss_sum(scores, y), metrics.merit_sum(task, scores, y)

    return _record(sums, x, y, *(parameter.detach() for parameter in named.values()))
