"""The training samples of shards, as far as a tensor's ways of asking are needed: rows are gathered from those they lie in."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.data.shards.store import Store

_FEW = 4096  # rows that are gathered at once where a part is asked for


class ShardRows:
    """Rows `start` to `stop` of the shards of a store, (N, *shape) uint8 or float32, on the CPU."""

    device = torch.device("cpu")

    def __init__(self, store: Store, dtype: str, start: int = 0, stop: int | None = None) -> None:
        self.store, self._dtype = store, dtype
        self.ends = torch.tensor([int(entry["num_samples"]) for entry in store.entries], dtype=torch.int32).cumsum(0)
        self._firsts = [0, *self.ends.tolist()]
        self.start, self.stop = start, int(self.ends[-1]) if stop is None else stop
        self.dtype = getattr(torch, dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.stop - self.start, *self.store.shape)

    @property
    def sizes(self) -> list[int]:
        """The number of samples in each shard."""
        return [int(entry["num_samples"]) for entry in self.store.entries]

    @property
    def nbytes(self) -> int:
        return self.numel() * np.dtype(self._dtype).itemsize

    def numel(self) -> int:
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.stop - self.start

    def index_select(self, dim: int, indices: Tensor) -> Tensor:
        """Return rows (n, *shape), as a tensor's own `index_select` does."""
        assert dim == 0
        rows = indices + self.start if self.start else indices
        if len(self.ends) == 1:
            return self._view(0).index_select(0, rows)
        places = torch.bucketize(rows, self.ends, right=True)
        used = [*dict.fromkeys(places.tolist())]  # in the order in which they are needed: what lies behind may go
        if len(used) == 1:
            return self._view(used[0]).index_select(0, rows - self._firsts[used[0]])
        by_shard = torch.empty((len(rows), *self.store.shape), dtype=self.dtype)
        where = [(places == k).nonzero().view(-1) for k in used]
        start = 0
        for k, of_shard in zip(used, where, strict=True):
            stop = start + len(of_shard)
            torch.index_select(self._view(k), 0, rows[of_shard] - self._firsts[k], out=by_shard[start:stop])
            start = stop
        return by_shard.index_select(0, torch.cat(where).argsort())  # which is faster than writing rows where they belong

    def needs(self, order: Tensor) -> None:
        """Take notice of the rows that are needed from now on, in their order, so that their shards can be fetched ahead."""
        if self.store.place.local:
            return
        places, at = torch.bucketize(order.long(), self.ends, right=True), torch.arange(len(order))
        first, last = (
            torch.zeros(len(self.ends), dtype=torch.int64).scatter_reduce_(0, places, at, how, include_self=False).tolist()
            for how in ("amin", "amax")
        )
        used = places.unique().tolist()
        self.store.plan({k: first[k] for k in used}, {k: last[k] for k in used})

    def _view(self, k: int) -> Tensor:
        return torch.from_numpy(self.store.open(k))

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            assert step == 1
            if stop - start > _FEW:
                return ShardRows(self.store, self._dtype, self.start + start, self.start + max(start, stop))
            return self.index_select(0, torch.arange(start, max(start, stop)))
        indices = torch.as_tensor(key)
        return self.index_select(0, indices.view(-1)).view(*indices.shape, *self.store.shape)

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield the rows in parts of `size`."""
        for start in range(0, len(self), size):
            yield self.index_select(0, torch.arange(start, min(start + size, len(self))))

    def numpy(self) -> np.ndarray[Any, Any]:
        """Return all rows, in memory."""
        return torch.cat([*self.split(_FEW)]).numpy()

    def to(self, device: torch.device) -> Any:
        """Return all rows on a device; on the CPU they stay where they are."""
        if torch.device(device).type == "cpu":
            return self
        return torch.cat([part.to(device) for part in self.split(_FEW)])
