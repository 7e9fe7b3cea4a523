"""Computations recorded once and run again without Python: for models so small that Python is most of what a step costs.

The recorded operators and their order are those of the function, backward passes included, so the numbers are the same bit
for bit. The samples are part of a recording, and what depends on them alone is computed once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pipeline import metrics
from pipeline.losses import LossSum

Recorded = Callable[..., tuple[Tensor, ...]]


def _record(function: Callable[..., tuple[Tensor, ...]], parameters: Sequence[Tensor]) -> Recorded:
    """Return `function` of tensors as a program of aten operators, without Python: TorchScript's.

    On a CPU torch's static runtime runs it, which keeps the memory of its tensors from call to call.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    recorded = make_fx(function)(*parameters)
    for node in recorded.graph.nodes:
        if node.target in (torch.ops.aten.alias.default, torch.ops.aten.detach.default):
            node.replace_all_uses_with(node.args[0])
    recorded.graph.eliminate_dead_code()
    recorded.recompile()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".torch\.jit\.\w+. is deprecated", category=FutureWarning)
        traced = torch.jit.trace(recorded, tuple(p.detach() for p in parameters), check_trace=False)
        program: Any = torch.jit.freeze(traced.eval(), optimize_numerics=False)
    static = getattr(torch._C, "_jit_to_static_module", None)  # has no public name; without it a call takes half as long again
    if static and all(parameter.device.type == "cpu" for parameter in parameters):
        program = static(program._c)
    found: Recorded = program
    return found


def _scores(model: nn.Module, names: Sequence[str], parameters: Sequence[Tensor], x: Tensor) -> Tensor:
    scores: Tensor = torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (x,))[0]
    return scores


def record_step(model: nn.Module, loss_sum: LossSum, x: Tensor, y: Tensor, *, scale: float) -> Recorded:
    """Return a function of the trainable parameters for what a step computes before it changes anything.

    It gives the loss, the scores and the gradients; loss and gradients are those of the summed loss times `scale`.
    """
    seed = torch.full((), scale, device=x.device)
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    def step(*parameters: Tensor) -> tuple[Tensor, ...]:
        scores = _scores(model, list(named), parameters, x)
        loss = loss_sum(scores, y)
        gradients = torch.autograd.grad(loss, parameters, seed)
        return loss.detach() * scale, scores.detach(), *gradients

    return _record(step, list(named.values()))


def record_sums(model: nn.Module, loss_sum: LossSum, x: Tensor, y: Tensor, *, task: str) -> Recorded:
    """Return a function of all parameters that gives the sums of loss and merit over the samples."""
    named = dict(model.named_parameters())

    def sums(*parameters: Tensor) -> tuple[Tensor, Tensor]:
        scores = _scores(model, list(named), parameters, x)
        return loss_sum(scores, y), metrics.merit_sum(task, scores, y)

    return _record(sums, [parameter.detach() for parameter in named.values()])
