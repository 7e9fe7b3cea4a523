"""Trains on the one GPU in a process group, which needs no GPU of its own for each rank; started by test_gpu.py.

    torchrun --nproc-per-node N -m tests.gpu_worker BACKEND DEVICE FOLDER CACHE_DIR

Rank 0 writes the losses and figures of each case as JSON into FOLDER.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline import distributed, environment
from pipeline.distributed import Ranks
from tests.pipeline.distributed_worker import run_cases


def main(backend: str, device: str, folder: Path, cache_dir: str) -> None:
    me = environment.worker()
    chosen = torch.device(device, 0) if device == "cuda" else torch.device(device)
    dist.init_process_group(backend, **({"device_id": chosen} if backend == "nccl" else {}))
    distributed.compute_alike()
    ranks = Ranks(me.rank, 0, me.world_size, chosen)
    gathered = distributed.gather(me.rank)
    assert gathered == list(range(me.world_size))
    assert distributed.broadcast({"from": me.rank}) == {"from": 0}
    assert distributed.all_reduce_sum(torch.ones(3, device=chosen)).tolist() == [me.world_size] * 3
    assert distributed.concatenate(torch.full((2, 1), me.rank)).tolist() == [[r] for r in gathered for _ in range(2)]
    wrapped = distributed.data_parallel(torch.nn.Linear(2, 1).to(chosen), chosen)
    wrapped(torch.ones(2, 2, device=chosen)).sum().backward()
    seen = run_cases(folder, cache_dir, ranks)
    if ranks.is_main:
        (folder / "seen.json").write_text(json.dumps(seen))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4])
