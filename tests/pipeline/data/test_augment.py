from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import affine_transform

from pipeline.data.augment import apply_affine, changes, cut, look_up, maps, recolor, translate
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


CHANGES: list[dict[str, float]] = [
    {"shift": 2}, {"affine": 0.2}, {"shift": 1, "affine": 0.1}, {"crop": 0.3}, {"flip": True}, {"color": 0.4},
    {"shift": 1, "affine": 0.1, "crop": 0.5, "flip": True, "color": 0.2},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=str)
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
    assert sum(torch.equal(image, whole[i]) for i, image in seen(2).items()) < (20 if change == {"flip": True} else 10)


def test_shift_and_affine_alone_draw_and_compute_what_they_always_did() -> None:
    """The two are drawn first of all, from the same generator, whatever else is asked for."""
    images, samples = torch.randint(0, 256, (6, 3, 9, 9), dtype=torch.uint8), torch.arange(6)
    generator = torch.Generator().manual_seed(3)
    moves = torch.randint(-2, 3, (6, 2), generator=generator, dtype=torch.int8)
    warps = torch.randint(-127, 128, (6, 4), generator=generator, dtype=torch.int8)
    change = changes(6, torch.Generator().manual_seed(3), shift=2, affine=0.2, device=CPU)
    assert change
    assert torch.equal(change(images, samples), apply_affine(translate(images, moves), warps * (0.2 / 127)))


def test_whole_pixels_stay_whole() -> None:
    """Without a crop or a warp, mirroring and moving give the very bytes."""
    images, samples = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8), torch.arange(40)
    change = changes(40, torch.Generator().manual_seed(3), shift=0, affine=0, flip=True, device=CPU)
    assert change
    changed = change(images, samples)
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(changed, images, strict=True)]
    assert changed.dtype == torch.uint8 and 10 < sum(mirrored) < 30
    assert all(same or torch.equal(a, b) for same, a, b in zip(mirrored, changed, images, strict=True))
    both = changes(40, torch.Generator().manual_seed(3), shift=2, affine=0, flip=True, device=CPU)
    assert both and both(images, samples).dtype == torch.uint8


def test_one_look_up_is_the_changes_one_after_the_other() -> None:
    """A window scaled up, mirrored, moved by whole pixels, then warped: as each does in turn, away from the edges."""
    angles = torch.arange(33) * (2 * torch.pi / 33) + torch.rand(2, 2, 1) * 6  # smooth, as pixels are read between twice
    images = 0.5 + 0.3 * angles[:, 0, None, :, None].sin() * angles[:, 1, None, None].cos()  # (2, 1, 33, 33)
    window = torch.tensor([[0.8, 0.7, 0.1, -0.2], [1, 1, 0, 0]])
    move, warp = torch.tensor([[2, -3], [0, 0]]), torch.tensor([[0.1, -0.05, 0.05, 0.1], [0, 0, 0, 0]])
    mirrored = torch.tensor([[1], [1]])
    at_once = look_up(images, maps(images, move=move, warp=warp, window=window, mirrored=mirrored))
    cropped = look_up(images, maps(images, move=None, warp=None, window=window, mirrored=None))
    (half_width, half_height, x, y) = window[0].tolist()
    theirs = affine_transform(
        images[0, 0].numpy(), [half_height, half_width],
        [16 + 16.5 * (y - half_height * 32 / 33), 16 + 16.5 * (x - half_width * 32 / 33)], order=1, mode="nearest",
    )  # fmt: skip
    np.testing.assert_allclose(cropped[0, 0].numpy(), theirs, atol=1e-5)
    in_turn = apply_affine(translate(cropped.flip(3), move), warp)
    middle = (slice(None), slice(None), slice(9, 24), slice(9, 24))
    np.testing.assert_allclose(at_once[middle].numpy(), in_turn[middle].numpy(), atol=1e-2)
    assert (at_once - apply_affine(translate(cropped, move), warp).flip(3))[middle].abs().max() > 0.05  # in another order
    torch.testing.assert_close(at_once[1], images[1].flip(2), rtol=0, atol=1e-5)


def test_a_window_keeps_at_least_the_smallest_share_and_lies_within_the_image() -> None:
    drawn = torch.cat([torch.rand(4000, 4), torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 0], [1, 0, 0, 1]])])
    windows = cut(drawn, smallest=0.3)
    half, middle = windows[:, :2], windows[:, 2:]
    area, aspect = half.prod(1), half[:, 0] / half[:, 1]
    assert area.min() >= 0.3 - 1e-6 and area.max() <= 1 + 1e-6 and 0.6 < area.mean() < 0.7
    assert aspect.min() >= 3 / 4 - 1e-5 and aspect.max() <= 4 / 3 + 1e-5 and aspect.std() > 0.1
    assert (half + middle.abs()).max() <= 1 + 1e-6


def test_what_comes_in_from_beyond_the_edge_is_0_and_a_crop_brings_nothing_in() -> None:
    images = torch.full((50, 3, 12, 12), 200, dtype=torch.uint8)
    cropped = changes(50, torch.Generator().manual_seed(0), shift=0, affine=0, crop=0.2, flip=True, device=CPU)
    moved = changes(50, torch.Generator().manual_seed(0), shift=4, affine=0, crop=0.9, device=CPU)
    assert cropped and moved
    torch.testing.assert_close(cropped(images, torch.arange(50)), images.float())
    values = moved(images, torch.arange(50))
    assert ((values == 0) | ((values - 200).abs() < 1e-3)).all() and (values == 0).any()
    assert cropped(images[:0], torch.arange(0)).shape == (0, 3, 12, 12)


def test_colours_are_changed_as_torchvision_does_in_turn() -> None:
    from torchvision.transforms.v2 import functional

    images = torch.rand(5, 3, 8, 8)  # torchvision computes without rounding in 0 to 1; ours runs to 255
    factors = torch.tensor([[1, 1, 1], [0.8, 1, 1], [1, 0.7, 1], [1, 1, 0.6], [0.9, 0.8, 0.7]])
    ours = recolor(images * 255, factors) / 255
    for image, our, (brightness, contrast, saturation) in zip(images, ours, factors.tolist(), strict=True):
        theirs = functional.adjust_brightness(image, brightness)
        theirs = functional.adjust_saturation(functional.adjust_contrast(theirs, contrast), saturation)
        torch.testing.assert_close(our, theirs, rtol=0, atol=2e-3)  # its grey weights are rounded to four digits
    bright = recolor(torch.full((1, 1, 2, 2), 250, dtype=torch.uint8), torch.tensor([[1.5, 1, 1]]))
    assert bright.unique().tolist() == [255]
    assert recolor(images[:0], factors[:0]).shape == (0, 3, 8, 8)
