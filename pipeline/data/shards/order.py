"""The order of samples that lie in shards: drawn within windows, so that few shards are needed at a time.

It hangs on the generator and the shards' sizes alone, and not on ranks, hosts or workers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def within_windows(sizes: Sequence[int], window: int, generator: torch.Generator) -> Tensor:
    """Return a permutation (N,) int32 of the rows of shards of these sizes.

    The shards are permuted as wholes, then the rows within each `window` of what follows from it. The first window is cut
    short by chance, so that other neighbors meet in each epoch.
    """
    firsts = torch.tensor([0, *sizes]).cumsum(0)
    shuffled = torch.randperm(len(sizes), generator=generator).tolist()
    order = torch.cat([torch.arange(int(firsts[k]), int(firsts[k]) + sizes[k], dtype=torch.int32) for k in shuffled])
    begin = int(torch.randint(window, (1,), generator=generator))
    for start in range(begin - window if begin else 0, len(order), window):
        part = order[max(0, start) : start + window]
        part.copy_(part[torch.randperm(len(part), generator=generator)])
    return order
