from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform

from pipeline.data.augment import apply_affine, translate
from pipeline.data.loader import Batches, Split

CPU = torch.device("cpu")


def test_an_image_is_moved_as_numpy_would_and_nothing_comes_round_the_edge() -> None:
    images = torch.arange(1, 2 * 3 * 5 * 4 + 1).view(2, 3, 5, 4)
    for dy, dx in ((0, 0), (2, -1), (-3, 3), (1, 1)):
        expected = torch.zeros_like(images[0])
        rows, columns = slice(max(dy, 0), 5 + min(dy, 0)), slice(max(dx, 0), 4 + min(dx, 0))
        theirs = slice(max(-dy, 0), 5 + min(-dy, 0)), slice(max(-dx, 0), 4 + min(-dx, 0))
        expected[:, rows, columns] = images[0][:, theirs[0], theirs[1]]
        ours = translate(images, torch.tensor([[dy, dx], [0, 0]]))
        assert torch.equal(ours[0], expected) and torch.equal(ours[1], images[1])


def test_an_image_is_warped_as_scipy_would() -> None:
    """About its middle, with rows that run along y and columns along x, and nothing beyond the edge."""
    images = torch.rand(3, 2, 11, 11)
    entries = torch.tensor([[0.2, -0.3, 0.25, -0.1], [0, 0, 0, 0], [-0.5, 0, 0, 0.5]])
    ours = apply_affine(images, entries)
    assert ours.dtype == torch.float32
    for image, our, (a, b, c, d) in zip(images, ours, entries.double().numpy(), strict=True):
        matrix = np.array([[1 + d, c], [b, 1 + a]])  # scipy counts rows first
        middle = np.array([5.0, 5.0])
        for channel in range(2):
            theirs = affine_transform(
                image[channel].numpy(), matrix, middle - matrix @ middle, order=1, mode="grid-constant", cval=0.0
            )
            np.testing.assert_allclose(our[channel].numpy(), theirs, atol=2e-6)
    assert apply_affine(images[:0].byte(), entries[:0]).dtype == torch.float32


@pytest.mark.parametrize("change", [{"shift": 2}, {"affine": 0.2}, {"shift": 1, "affine": 0.1}], ids=str)
def test_how_an_image_is_changed_depends_on_the_sample_and_the_epoch_alone(change: dict[str, float]) -> None:
    images = torch.randint(1, 256, (30, 1, 9, 9), dtype=torch.uint8)

    def seen(epoch: int, *, world: int = 1, parts: int = 1, num_workers: int = 0, first: int = 0) -> dict[int, torch.Tensor]:
        options = {
            "batch_size": 7,
            "seed": 5,
            "world_size": world,
            "grad_accum_steps": parts,
            "num_workers": num_workers,
        } | change
        ranks = [Batches(Split(images, torch.arange(30)), rank=r, device=CPU, **options) for r in range(world)]  # type: ignore[arg-type]
        steps = [part for rank in ranks for step in rank.epoch(epoch, first_step=first) for part in step]
        return {int(i): image for x, y in steps for i, image in zip(y, x, strict=True)}

    whole = seen(1)
    assert len(whole) == 30
    for other in (seen(1, world=3), seen(1, parts=2), seen(1, num_workers=2), seen(1, first=2)):
        assert all(torch.equal(image, whole[i]) for i, image in other.items()) and other
    assert sum(torch.equal(image, whole[i]) for i, image in seen(2).items()) < 10
