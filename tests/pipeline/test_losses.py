from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipeline.checks import LOSSES
from pipeline.losses import loss_divisor, loss_sum

N = 12


def _scores_and_target(task: str) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    if task == "multiclass":
        return torch.randn(N, 4), torch.randint(0, 4, (N,))
    if task == "binary":
        return torch.randn(N, 1), torch.randint(0, 2, (N,))
    return torch.randn(N, 1), torch.randn(N, 1)


@pytest.mark.parametrize(("task", "name"), [(t, n) for t, names in LOSSES.items() for n in names])
def test_loss_over_its_normaliser_is_torchs_own(task: str, name: str) -> None:
    scores, y = _scores_and_target(task)
    one_hot = F.one_hot(y, 4).float() if task == "multiclass" else None
    theirs = {
        "cross_entropy": lambda: F.cross_entropy(scores, y),
        "nll": lambda: F.nll_loss(scores.log_softmax(1), y),
        "bce": lambda: F.binary_cross_entropy(torch.sigmoid(scores), y[:, None].float()),
        "mse": lambda: F.mse_loss(
            torch.sigmoid(scores) if task == "binary" else scores,
            one_hot if one_hot is not None else y.reshape(N, 1).float(),
        ),
        "sse": lambda: ((torch.sigmoid(scores) if task == "binary" else scores) - y.reshape(N, 1)).square().sum(),
    }
    ours = loss_sum(name, task=task)(scores, y) / loss_divisor(name, N)
    torch.testing.assert_close(ours, theirs[name](), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("task", "name"), [(t, n) for t, names in LOSSES.items() for n in names])
def test_losses_add_up_over_any_cut_of_the_batch_also_into_nothing(task: str, name: str) -> None:
    scores, y = _scores_and_target(task)
    loss = loss_sum(name, task=task)
    parts = loss(scores[:5], y[:5]) + loss(scores[5:5], y[5:5]) + loss(scores[5:], y[5:])
    torch.testing.assert_close(parts, loss(scores, y))


def test_label_smoothing_is_torchs() -> None:
    scores, y = _scores_and_target("multiclass")
    ours = loss_sum("cross_entropy", task="multiclass", label_smoothing=0.1)(scores, y) / N
    torch.testing.assert_close(ours, F.cross_entropy(scores, y, label_smoothing=0.1))


def test_a_networks_hand_written_loss_is_used_and_agrees_with_torch() -> None:
    from models.two_layer import Moons

    network = Moons(input_shape=(2,), num_outputs=1, hidden=3)
    scores, y = _scores_and_target("binary")
    ours = loss_sum("bce", task="binary", network=network)(scores.requires_grad_(), y)
    torch.testing.assert_close(ours, loss_sum("bce", task="binary")(scores, y))
    assert "BinaryCrossEntropy" in type(ours.grad_fn.next_functions[0][0]).__name__  # type: ignore[union-attr]
