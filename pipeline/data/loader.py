"""Prepared tensors to batches: which samples a rank works on, and one indexing operation to gather them.

The order of samples is a function of (seed, epoch) and of nothing else: not of the ranks, not of what ran before. A global
batch is cut among the ranks, so that any number of them walks through the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.augment import changes
from pipeline.data.mix import draw
from pipeline.data.prepare import read_manifest
from pipeline.data.shards.order import within_windows
from pipeline.data.shards.places import Place
from pipeline.data.shards.rows import ShardRows
from pipeline.data.shards.store import Store
from pipeline.data.spill import scratch

Batch = tuple[Tensor, ...]  # samples and targets; mixed ones have two targets and the share of the first


@dataclass(frozen=True)
class Split:
    """One split: x (N, *input_shape) uint8 or float32, and y (N,) int64 labels or (N, 1) float32 values.

    Training samples that lie in shards are no tensor, but answer as one where rows are asked for.
    """

    x: Any
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def first(self, count: int) -> Split:
        """Return the first samples, as tensors wherever they lie."""
        if isinstance(self.x, ShardRows):
            return Split(self.x.index_select(0, torch.arange(min(count, len(self)))), self.y[:count])
        return self if count >= len(self) else Split(self.x[:count], self.y[:count])

    def to(self, device: torch.device) -> Split:
        return Split(self.x.to(device), self.y.to(device))


def evaluation_split(folder: Path) -> str:
    """Return the split that a model is evaluated on: `test`, or `train` where a prepared folder has no samples held out."""
    return "test" if "test" in read_manifest(folder)["splits"] else "train"


def open_split(folder: Path, name: str, *, most_gb: float = 0.0) -> Split:
    """Return split `name` of a prepared folder, memory-mapped: pages are read when used and shared by all processes.

    Of shards that are fetched, `most_gb` gigabytes may lie on this host at a time; 0: all.
    """
    parts = read_manifest(folder)["splits"][name]
    y = _map(folder / parts["y"]["file"])
    if "shards" in (of_x := parts["x"]):
        store = Store(Place(of_x["place"]), of_x["shards"], tuple(of_x["shape"][1:]), folder / "shards", round(most_gb * 1e9))
        return Split(ShardRows(store, of_x["dtype"]), y)
    return Split(_map(folder / of_x["file"]), y)


def _map(path: Path) -> Tensor:
    array = np.load(path, mmap_mode="c")  # copy on write: never written, and torch wants a writable array
    return torch.from_numpy(array) if array.size else torch.from_numpy(np.array(array))


def shard_slice(length: int, rank: int, world_size: int) -> slice:
    """Return this rank's part of `length` items: the parts are disjoint, cover all and differ by one at most."""
    return slice(rank * length // world_size, (rank + 1) * length // world_size)


def fits_on(device: torch.device, split: Split) -> bool:
    """Tell whether a split may live on `device`: always on the CPU, up to half of a GPU's free memory."""
    if device.type != "cuda":
        return True
    return split.x.nbytes + split.y.nbytes < torch.cuda.mem_get_info(device)[0] / 2


class _Gather(torch.utils.data.Dataset[list[Batch]]):
    """Turns a list of index tensors, one for each part of a step, into the samples."""

    def __init__(self, split: Split) -> None:
        self.split = split

    def __getitem__(self, indices: list[Tensor]) -> list[Batch]:
        return [(self.split.x.index_select(0, i), self.split.y.index_select(0, i)) for i in indices]


class Batches:
    """The batches of one rank. `batch_size` counts the samples of all ranks; the last batch of an epoch may be smaller."""

    def __init__(
        self,
        split: Split,
        *,
        batch_size: int,
        grad_accum_steps: int,
        seed: int,
        rank: int,
        world_size: int,
        device: torch.device,
        num_workers: int = 0,
        shift: int = 0,
        affine: float = 0.0,
        crop: float = 0.0,
        flip: bool = False,
        color: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        window: int = 0,
    ) -> None:
        self.batch_size, self.grad_accum_steps = batch_size, grad_accum_steps
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.device, self.num_workers = device, num_workers
        self.augment: dict[str, Any] = {"shift": shift, "affine": affine, "crop": crop, "flip": flip, "color": color}
        self.mix = {"mixup": mixup, "cutmix": cutmix}
        self.window = window  # samples among which the order is drawn; 0: all
        self.more = int(mixup + cutmix > 0)  # rows that a part needs beyond its own
        self.num_samples = len(split)
        self.sizes = split.x.sizes if isinstance(split.x, ShardRows) else []
        self.split = split.to(device) if not num_workers and fits_on(device, split) else split

    def __len__(self) -> int:
        """The number of optimizer steps in an epoch."""
        return -(-self.num_samples // self.batch_size)

    def num_in_step(self, step: int) -> int:
        """Return the number of samples in global batch `step` of an epoch."""
        return min(self.batch_size, self.num_samples - step * self.batch_size)

    def epoch(self, epoch: int, *, first_step: int = 0, end: int | None = None) -> Iterator[list[Batch]]:
        """Yield this rank's samples, on its device, for the steps of `epoch` from `first_step` to before `end`.

        A step comes as `grad_accum_steps` parts; a part is empty where a rank has no sample left in a small batch. How an
        image is changed depends on the seed, the epoch and the sample alone, as the order does; with what it is mixed, on the
        order.
        """
        changing = any(self.augment.values()) or self.more
        if len(self) == 1 and self.world_size * self.grad_accum_steps == 1 and not self.num_workers and not changing:
            if not first_step:
                whole = self.split.first(self.num_samples)
                yield [(whole.x, whole.y)]  # a full batch is the split itself: of a tensor, nothing is gathered
            return
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        count = self.num_samples
        order = torch.randperm(count, generator=generator, dtype=torch.int32, out=scratch((count,), torch.int32))
        if self.sizes and 0 < self.window < count:
            order = within_windows(self.sizes, self.window, generator)
        if isinstance(self.split.x, ShardRows) and not self.num_workers:  # these fetch what they need, each by itself
            self.split.x.needs(order[first_step * self.batch_size :])
        steps = range(first_step, len(self) if end is None else end)
        change = changes(count, generator, **self.augment, device=self.split.x.device)
        shape = self.split.x.shape[1:]
        mixing = draw(len(self), (self.seed, epoch), **self.mix, shape=shape, device=self.device)
        gather = _Gather(self.split)
        if self.num_workers:
            options: dict[str, Any] = {"num_workers": self.num_workers, "pin_memory": self.device.type == "cuda"}
            options["generator"] = generator  # or each new iterator would draw from dropout's
            wanted = (self._indices(order, step) for step in steps)
            loader = torch.utils.data.DataLoader(gather, sampler=wanted, batch_size=None, **options)
            parts: Iterator[list[Batch]] = iter(loader)
        else:
            order = order.to(self.split.x.device)  # once, and not a part of it in each step
            parts = (gather[self._indices(order, step)] for step in steps)
        for step, samples in zip(steps, parts, strict=True):
            there: list[Batch]
            there = [(x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)) for x, y in samples]
            if change:
                indices = self._indices(order, step)
                there = [(change(x, i), y) for i, (x, y) in zip(indices, there, strict=True)]
            if mixing:
                there = [mixing.apply(step, x, y) for x, y in there]
            yield there
        if isinstance(self.split.x, ShardRows):
            self.split.x.store.rest()

    def _indices(self, order: Tensor, step: int) -> list[Tensor]:
        """Return the rows of each part of a step; to be mixed, with the one behind its last, behind which comes the first."""
        batch = order[step * self.batch_size : (step + 1) * self.batch_size]
        more = self.more
        of_rank = shard_slice(len(batch), self.rank, self.world_size)
        mine = torch.cat([batch, batch[:more]])[of_rank.start : of_rank.stop + more] if more else batch[of_rank]
        parts = [shard_slice(len(mine) - more, k, self.grad_accum_steps) for k in range(self.grad_accum_steps)]
        return [mine[part.start : part.stop + more] for part in parts]
