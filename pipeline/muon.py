"""Muon: momentum whose matrix is made orthogonal before each step, for the hidden layers; AdamW for all other parameters.

torch's own Muon takes matrices only, and computes in bfloat16 however slow the processor is at it; this one takes convolutions
as well, stays in float32, and does its iterations on the small side of each matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan's quintic: quick at small singular values, close enough to 1 at all
_ITERATIONS = 4


class Muon(torch.optim.AdamW):
    """AdamW, but groups with `orthogonal=True` take steps by K. Jordan, "Muon: an optimizer for hidden layers", 2024.

    Their steps are scaled to the size of AdamW's (Liu et al., "Muon is scalable for LLM training", 2025), so that one learning
    rate and one weight decay serve both. Momentum is the group's first beta.
    """

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        self._step_supports_amp_scaling = False  # a scaler is to divide the gradients, and look for overflow, before a step

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what `load_state_dict` read. Adam's own looks for a count of steps in each state, and momentum has none."""
        torch.optim.Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        held: list[tuple[Tensor, Tensor]] = []
        for group in self.param_groups:
            for parameter in group["params"] if group.get("orthogonal") else ():
                if parameter.grad is None:
                    continue
                self._move(parameter, group)
                held.append((parameter, parameter.grad))
                parameter.grad = None  # AdamW passes over what has no gradient
        result = super().step(closure)
        for parameter, gradient in held:
            parameter.grad = gradient
        return result

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        state, beta = self.state[parameter], group["betas"][0]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(parameter.grad, 1 - beta)
        matrix, ahead = (_as_matrix(x, like=parameter) for x in (parameter, parameter.grad.lerp(momentum, beta)))  # Nesterov's
        size = 0.2 * max(ahead.shape) ** 0.5 * group["lr"]
        matrix.addmm_(*orthogonal_product(ahead), beta=1 - group["lr"] * group["weight_decay"], alpha=-size)


def _as_matrix(x: Tensor, *, like: Tensor) -> Tensor:
    """Return x, shaped (out, ...), as (out, in), with columns in the order in which `like` lies in memory: of it, a view."""
    channels_last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last)
    return (x.movedim(1, -1) if channels_last else x).flatten(1)


def orthogonal_product(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return two matrices whose product has the singular vectors of `matrix` (m, n), and singular values from about 0.7 to 1.2.

    Newton and Schulz's iteration X <- (a + b XX' + c (XX')^2) X, carried out on XX' (the smaller side), which commutes with all
    its factors: only the first and the last product are as large as the matrix.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    gram = matrix @ matrix.T if wide else matrix.T @ matrix  # of the smaller side
    shrink = 1 / (gram.trace().sqrt() + 1e-7)  # one over the matrix's norm
    gram *= shrink**2
    factor = polynomial = _polynomial(gram)
    for _ in range(_ITERATIONS - 1):
        gram = polynomial @ gram @ polynomial
        polynomial = _polynomial(gram)
        factor = polynomial @ factor
    factor *= shrink
    return (factor, matrix) if wide else (matrix, factor)


def _polynomial(gram: Tensor) -> Tensor:
    a, b, c = _COEFFICIENTS
    result = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    result.diagonal().add_(a)
    return result
