from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.config import RunConfig
from pipeline.data import spill
from pipeline.data.loader import Batches, Split, open_split, shard_slice
from pipeline.data.prepare import prepare

CPU = torch.device("cpu")


def _split(length: int) -> Split:
    return Split(torch.arange(length, dtype=torch.float32)[:, None], torch.arange(length))


def _batches(length: int, batch_size: int, *, rank: int = 0, world: int = 1, parts: int = 1, num_workers: int = 0) -> Batches:
    return Batches(
        _split(length), batch_size=batch_size, grad_accum_steps=parts, seed=5, rank=rank, world_size=world, device=CPU,
        num_workers=num_workers,
    )  # fmt: skip


@pytest.mark.parametrize("length", [0, 1, 5, 64, 101])
@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_shares_cover_each_item_once_and_differ_by_one_at_most(length: int, world: int) -> None:
    parts = [list(range(length))[shard_slice(length, r, world)] for r in range(world)]
    assert [i for part in parts for i in part] == list(range(length))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("parts", [1, 4])
def test_any_number_of_ranks_and_parts_walks_through_the_same_global_batches(world: int, parts: int) -> None:
    reference = [set(y.tolist()) for ((_, y),) in _batches(53, 8).epoch(3)]
    ranks = [_batches(53, 8, rank=r, world=world, parts=parts) for r in range(world)]
    for expected, *steps in zip(reference, *(r.epoch(3) for r in ranks), strict=True):
        seen = [i for step in steps for _, y in step for i in y.tolist()]
        assert len(seen) == len(expected) and set(seen) == expected
        assert all(len(step) == parts for step in steps)


def test_an_epoch_uses_each_sample_once_and_the_next_one_in_another_order() -> None:
    batches = _batches(100, 7)
    first, second = (torch.cat([y for ((_, y),) in batches.epoch(e)]).tolist() for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(100)) and first != second
    assert len(batches) == 15 and [batches.num_in_step(s) for s in (0, 13, 14)] == [7, 7, 2]


def test_an_epoch_can_be_taken_up_in_the_middle() -> None:
    batches = _batches(40, 6)
    whole = [y.tolist() for ((_, y),) in batches.epoch(2)]
    assert [y.tolist() for ((_, y),) in batches.epoch(2, first_step=3)] == whole[3:]


def test_loader_processes_give_the_same_batches() -> None:
    plain = [[y.tolist() for _, y in step] for step in _batches(50, 8, parts=2).epoch(1)]
    assert [[y.tolist() for _, y in step] for step in _batches(50, 8, parts=2, num_workers=2).epoch(1)] == plain


def test_inputs_and_targets_stay_together() -> None:
    for ((x, y),) in _batches(30, 4).epoch(0):
        assert torch.equal(x[:, 0].long(), y)


def test_a_full_batch_is_the_split_itself() -> None:
    batches = _batches(30, 64)
    (((x, y),),) = batches.epoch(0)
    assert x is batches.split.x and y is batches.split.y
    assert list(batches.epoch(0, first_step=1)) == []


def test_splits_are_memory_mapped(make_config: Callable[..., RunConfig]) -> None:
    split = open_split(prepare(make_config(model="cnn")), "train")
    assert split.x.dtype == torch.uint8
    maps = Path("/proc/self/maps").read_text()
    assert "train_x.npy" in maps


def test_the_order_of_many_samples_lies_in_a_file_and_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A private 4 bytes for each sample, on each rank, would be memory that grows with the data."""
    images = Split(torch.arange(300 * 4, dtype=torch.int32).to(torch.uint8).view(300, 1, 2, 2), torch.arange(300))

    def drawn() -> list[torch.Tensor]:
        batches = Batches(images, batch_size=64, grad_accum_steps=1, seed=5, rank=0, world_size=1, device=CPU, shift=1)
        return [tensor for parts in batches.epoch(2) for part in parts for tensor in part]

    small = drawn()
    monkeypatch.setattr(spill, "_LARGE", 0)
    room = spill.scratch((7, 2), torch.int8)
    assert room.shape == (7, 2) and room.dtype == torch.int8
    address = room.data_ptr()
    mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "(deleted)" in line]
    assert any(int(line.split("-")[0], 16) <= address < int(line.split("-")[1].split()[0], 16) for line in mapped)
    assert all(torch.equal(a, b) for a, b in zip(small, drawn(), strict=True))
