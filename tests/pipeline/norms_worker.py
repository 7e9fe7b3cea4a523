"""Started on each rank by test_norms.py: trains a network with batch normalization, and says what every rank ends with.

python -m tests.pipeline.norms_worker FOLDER CACHE_DIR
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline import distributed, signals
from pipeline.distributed import Ranks
from pipeline.progress import Progress
from pipeline.resolve import resolve
from pipeline.signals import Interrupted
from tests.networks import add_normed
from tests.pipeline.test_checkpoint import _StopAt
from tests.trainings import begin, curve, losses

CASES: dict[str, dict[str, str]] = {
    "even parts": {"batch_size": "102", "epochs": "2", "ema_decay": "0.9"},
    "a sample left over": {"batch_size": "77", "epochs": "1", "grad_accum_steps": "2"},  # 1079 samples: 14 x 77 + 1
}  # fmt: skip
FLAGS = {"model": "normed", "dataset": "digits", "optimizer": "sgd", "lr": "0.05", "momentum": "0", "precision": "fp32"}
STOP_AT = 15  # of 11 + 11 steps


def run_cases(folder: Path, cache_dir: str, ranks: Ranks) -> dict[str, Any]:
    add_normed()
    seen: dict[str, Any] = {}
    for name, flags in CASES.items():
        training = begin(resolve(FLAGS | flags | {"cache_dir": cache_dir, "log_every": "1"}), folder / name, ranks=ranks)
        sizes = [training.batches.num_in_step(step) for step in range(len(training.batches))]
        training.fit(Progress())
        state = training.model.state_dict()
        seen[name] = {
            "losses": losses(training), "val": [row["val/loss"] for row in curve(training) if "val/loss" in row],
            "running": distributed.gather({k: v.tolist() for k, v in state.items() if "running" in k}), "last": sizes[-1],
        }  # fmt: skip
    whole = folder / "even parts"
    config = resolve(FLAGS | CASES["even parts"] | {"cache_dir": cache_dir, "log_every": "1"})
    with contextlib.suppress(Interrupted):
        begin(config, folder / "stopped", ranks=ranks).fit(_StopAt(STOP_AT))
    begin(config, folder / "stopped", ranks=ranks).fit(Progress())
    if ranks.is_main:
        pairs = [
            [(each / f"{name}.safetensors").read_bytes() for each in (whole, folder / "stopped")]
            for name in ("weights", "last")
        ]
        seen["resumed is whole"] = [first == second for first, second in pairs]
    return seen


if __name__ == "__main__":
    with distributed.process_group("cpu") as this:
        torch.set_num_threads(1)
        result = run_cases(Path(sys.argv[1]), sys.argv[2], this)
        if this.is_main:
            (Path(sys.argv[1]) / "seen.json").write_text(json.dumps(result))
    signals.exit_now(0)
