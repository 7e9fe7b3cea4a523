"""Runs a small search again and again, with a fault at another place each time, and then lets another process finish it.

    python -m tests.pipeline.search.killer FOLDER CACHE_DIR journal|sqlite COUNT SEED KIND...

Imports once and forks for each start. Prints one JSON line for each search: the fault, how the process ended, and whether in
the end each trial was bit for bit what it is in the search that nobody touched.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import sys
from pathlib import Path

import pytest
import torch

from pipeline.cli import main
from pipeline.signals import install as install_signals
from tests.faults.inject import STEP, arm, forked
from tests.pipeline.search.searches import outcome, without_a_winner, words

TRIALS, STEPS = 4, 100  # of the search, and about as many as it has at least
HOOKS = (STEP, "fsync", "replace", "torch.save", "write_json")


def search(folder: Path, cache_dir: str, kind: str) -> None:
    """Search, or go on with it."""
    storage = f"sqlite:///{folder}.db" if kind == "sqlite" else f"{folder}.journal"
    without_a_winner(pytest.MonkeyPatch())
    status = main(words(folder, cache_dir, "--storage", storage, trials=TRIALS))
    if status:
        raise SystemExit(status)


def run(base: Path, cache_dir: str, storage: str, count: int, seed: int, kinds: list[str]) -> None:
    torch.set_num_threads(1)
    for name in ("torch._dynamo", "mlflow", "optuna", "sqlalchemy", "pipeline.search.study"):
        importlib.import_module(name)
    source = random.Random(seed)
    whole = base / "whole"
    assert forked(lambda: search(whole, cache_dir, storage), errors=base / "errors", seconds=300) == 0
    expected = outcome(whole)
    for number in range(count):
        folder, kind = base / f"search{number}", kinds[number % len(kinds)]
        hook = HOOKS[number % len(HOOKS)] if kind == "SIGKILL" else STEP
        call, after = source.randint(1, STEPS if hook == STEP else 16), source.random() < 0.5

        def struck(folder: Path = folder, hook: str = hook, call: int = call, after: bool = after, kind: str = kind) -> None:
            install_signals()
            arm(hook, call, after=after, kind=kind)
            search(folder, cache_dir, storage)

        status = os.waitstatus_to_exitcode(forked(struck, errors=base / "errors", seconds=300))
        ended = forked(lambda: search(folder, cache_dir, storage), errors=base / "errors", seconds=300)  # noqa: B023
        same = ended == 0 and outcome(folder) == expected
        print(json.dumps({"search": number, "fault": [hook, call, after, kind], "status": status, "same": same}), flush=True)


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6:])
