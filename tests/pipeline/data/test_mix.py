"""Mixed samples: with whom, by how much, and what becomes of the loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipeline import manifest
from pipeline.config import RunConfig
from pipeline.data.loader import Batches, Split
from pipeline.data.mix import draw, mixed_loss
from pipeline.errors import UserError
from pipeline.resolve import resolve
from pipeline.signals import Interrupted
from pipeline.task import task
from tests.pipeline.test_checkpoint import _StopAt
from tests.trainings import curve, fit, same_weights

CPU = torch.device("cpu")
IMAGES = torch.randint(0, 256, (30, 2, 9, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
Seen = dict[int, tuple[torch.Tensor, int, float]]


def _seen(epoch: int, *, world: int = 1, parts: int = 1, num_workers: int = 0, first: int = 0, **options: float) -> Seen:
    """Return what each sample became in an epoch: its pixels, with whom it was mixed, and its own share."""
    fixed: dict[str, Any] = {"batch_size": 8, "seed": 5, "world_size": world, "grad_accum_steps": parts, "device": CPU}
    fixed |= {"num_workers": num_workers} | options
    ranks = [Batches(Split(IMAGES, torch.arange(30)), rank=rank, **fixed) for rank in range(world)]
    found: Seen = {}
    for rank in ranks:
        for step in rank.epoch(epoch, first_step=first):
            for x, y, other, share in step:
                assert len(x) == len(y) == len(other) and share.ndim == 0
                found |= {int(a): (image, int(b), float(share)) for image, a, b in zip(x, y, other, strict=True)}
    return found


@pytest.mark.parametrize("options", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0, "shift": 2}], ids=str)
def test_with_whom_a_sample_is_mixed_depends_on_the_epoch_alone(options: dict[str, float]) -> None:
    whole = _seen(1, **options)
    assert len(whole) == 30 and all(share >= 0.5 for _, _, share in whole.values())
    assert sorted(other for _, other, _ in whole.values()) == list(range(30))  # each is another's partner once
    assert sum(own == other for own, (_, other, _) in whole.items()) == 0
    for other in (_seen(1, world=3, **options), _seen(1, parts=3, **options), _seen(1, num_workers=2, **options),
                  _seen(1, first=2, **options), _seen(1, world=2, parts=5, **options)):  # fmt: skip
        assert other
        for own, (image, partner, share) in other.items():
            assert torch.equal(image, whole[own][0]) and (partner, share) == whole[own][1:]
    assert [entry[1] for entry in _seen(2, **options).values()] != [entry[1] for entry in whole.values()]


def test_mixup_is_the_weighted_mean_and_cutmix_a_box_of_its_share() -> None:
    for own, (image, partner, share) in _seen(1, mixup=1.0).items():
        expected = share * IMAGES[own].double() + (1 - share) * IMAGES[partner].double()
        torch.testing.assert_close(image.double(), expected, rtol=1e-5, atol=1e-4)
    shares = set()
    for own, (image, partner, share) in _seen(1, cutmix=1.0).items():
        from_other = (image != IMAGES[own]).any(0)
        rows, columns = (np.flatnonzero(from_other.any(axis)) for axis in (1, 0))
        assert from_other.sum() <= len(rows) * len(columns) == round((1 - share) * 81)
        if len(rows):
            box = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
            assert torch.equal(image[box], IMAGES[partner][box].float())
        shares.add(share)
    assert len(shares) > 1


def test_a_batch_of_one_sample_is_mixed_with_itself() -> None:
    batches = Batches(Split(IMAGES[:5], torch.arange(5)), batch_size=4, grad_accum_steps=1, seed=0, rank=0, world_size=1,
                      device=CPU, mixup=1.0)  # fmt: skip
    *_, (((x, y, other, _)),) = batches.epoch(0)
    assert torch.equal(y, other) and torch.equal(x[0], IMAGES[y[0]].float())


def test_shares_are_those_of_beta_and_of_any_parameter_finite() -> None:
    shape = (3, 32, 32)
    for alpha in (1e-30, 0.2, 1.0, 100.0):
        for kind in ("mixup", "cutmix"):
            options = {"mixup": 0.0, "cutmix": 0.0} | {kind: alpha}
            found = draw(4000, (0, 0), **options, shape=shape, device=CPU)
            assert found and found.shares.isfinite().all() and 0.5 <= found.shares.min() <= found.shares.max() <= 1
            values = np.random.default_rng(1).beta(alpha, alpha, 4000)
            if kind == "mixup":
                assert found.shares.mean().item() == pytest.approx(np.maximum(values, 1 - values).mean(), abs=0.01)
    both = draw(1000, (0, 0), mixup=1.0, cutmix=1.0, shape=shape, device=CPU)
    assert both and 400 < (both.boxes[:, 1] > 0).sum() < 600
    assert draw(3, (0, 0), mixup=0.0, cutmix=0.0, shape=shape, device=CPU) is None


@pytest.mark.parametrize("kind", ["multiclass", "binary", "multilabel"])
def test_the_loss_is_that_of_both_targets_by_their_shares(kind: str) -> None:
    scores = torch.randn(6, {"multiclass": 3, "binary": 1, "multilabel": 2}[kind])
    own, other = torch.randint(0, 2, (2, 6) if kind != "multilabel" else (2, 6, 2))
    if kind == "multilabel":
        own, other = own.float(), other.float()
    loss = task(kind).loss_sum(task(kind).losses[0])
    mixed = mixed_loss(loss, scores, own, other, torch.tensor(0.7))
    if kind == "multiclass":
        soft = 0.7 * F.one_hot(own, 3) + 0.3 * F.one_hot(other, 3)
        torch.testing.assert_close(mixed, F.cross_entropy(scores, soft, reduction="sum"))
    else:
        soft = (0.7 * own + 0.3 * other).view(6, -1)
        expected = F.binary_cross_entropy_with_logits(scores, soft, reduction="none").mean(1).sum()
        torch.testing.assert_close(mixed, expected)


@pytest.mark.parametrize(
    "flags",
    [
        {"model": "cnn", "mixup": 0.2, "cutmix": 1.0, "augment_crop": 0.5, "augment_flip": "true", "augment_color": 0.2,
         "batch_size": 300, "grad_accum_steps": 2},
        {"model": "mlp", "mixup": 0.4, "batch_size": 90},
    ],
    ids=["images", "a table"],
)  # fmt: skip
def test_a_mixed_training_resumes_bit_for_bit(
    make_config: Callable[..., RunConfig], tmp_path: Path, flags: dict[str, Any]
) -> None:
    flags = flags | {"epochs": 2, "log_every": 1}
    whole = fit(make_config(**flags), tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(make_config(**flags), tmp_path / "run", _StopAt(3))
    resumed = fit(make_config(**flags), tmp_path / "run")
    tail = curve(resumed)
    assert tail == curve(whole)[-len(tail) :]
    assert same_weights(*(tmp_path / name / manifest.LAST_WEIGHTS for name in ("whole", "run")))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"model": "polynomial", "mixup": "0.2"}, "mixup=0.2 has no effect on dataset=sine, which has no classes or labels"),
        ({"model": "mlp", "cutmix": "1"}, "cutmix=1.0 has no effect on dataset=breast_cancer, which has no images"),
        ({"model": "mlp", "augment_flip": "true"}, "augment_flip=true has no effect on dataset=breast_cancer"),
        ({"augment_crop": "1"}, "augment_crop=1 is out of range"),
        ({"mixup": "-1"}, "mixup=-1 is out of range"),
    ],
)  # fmt: skip
def test_mixing_where_there_is_nothing_to_mix_is_refused(flags: dict[str, str], said: str) -> None:
    with pytest.raises(UserError) as error:
        resolve(flags)
    assert error.value.messages[0].startswith(said)
