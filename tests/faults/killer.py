"""Trains a small model again and again, with a fault at another place each time, and lets it go on afterwards.

    python -m tests.faults.killer FOLDER CACHE_DIR MODE COUNT SEED

Imports once and forks for each run, so that a fault costs a fraction of a second. MODE says which faults: `random` kills inside
a save, `every` kind at every hook, before it and after it, or `signals` at random steps. Prints one JSON line for each run: the
faults, how the processes ended, and whether the last of them ended bit for bit like the run that was never touched.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from pipeline import files, manifest
from pipeline.resolve import resolve
from pipeline.signals import install as install_signals
from tests.faults.inject import HOOKS, STEP, arm, forked
from tests.trainings import fit

STEPS = 44  # of the training below
Fault = tuple[str, int, bool, str]  # hook, call, after it, kind


def train(folder: Path, cache_dir: str) -> None:
    """Train, or go on from the newest checkpoint."""
    config = resolve(
        {"model": "mlp", "epochs": "4", "model_args": "dropout=0.3", "cache_dir": cache_dir, "checkpoint_every": "3"}
    )
    fit(config, folder)


def random_kills(count: int, source: random.Random) -> Iterator[list[Fault]]:
    """Yield one or two SIGKILLs for each run, each hook in turn."""
    hooks = list(HOOKS)
    for number in range(count):
        faults: list[Fault] = [(hooks[number % len(hooks)], source.randint(1, 24), source.random() < 0.5, "SIGKILL")]
        yield faults + [(source.choice(hooks), source.randint(1, 24), source.random() < 0.5, "SIGKILL")
                        for _ in range(source.randint(0, 1))]  # fmt: skip


def every_hook(count: int, source: random.Random) -> Iterator[list[Fault]]:
    """Yield each hook with each kind that strikes a save, before it and after it: 1 of `count` of them."""
    every = itertools.product(HOOKS, ("SIGKILL", "ENOSPC", "EROFS"), (False, True))
    for hook, kind, after in itertools.islice(every, 0, None, count):
        yield [(hook, source.randint(4, 8), after, kind)]  # behind the calls that make the run folder


def signals(count: int, source: random.Random) -> Iterator[list[Fault]]:
    """Yield signals at random steps: mostly SIGTERM, and each third run SIGINT or two at once."""
    for number in range(count):
        kind = "SIGTERM" if number % 3 else ("SIGINT", "SIGTERM twice")[number // 3 % 2]
        yield [(STEP, source.randint(1, STEPS - 1), source.random() < 0.5, kind)]


MODES = {"random": random_kills, "every": every_hook, "signals": signals}


def main(base: Path, cache_dir: str, mode: str, count: int, seed: int) -> None:
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")  # an optimizer needs it: import it once, not in every child
    whole = base / "whole"
    assert forked(lambda: train(whole, cache_dir)) == 0
    expected = files.sha256(whole / manifest.LAST_WEIGHTS)
    for number, faults in enumerate(MODES[mode](count, random.Random(seed))):
        folder = base / f"run{number}"
        statuses, steps = [], []
        for hook, call, after, kind in faults:

            def struck(hook: str = hook, call: int = call, after: bool = after, kind: str = kind) -> None:
                install_signals()
                arm(hook, call, after=after, kind=kind)
                train(folder, cache_dir)  # noqa: B023

            statuses.append(os.waitstatus_to_exitcode(forked(struck, errors=base / "errors")))
            steps.append(max([int(p.stem[5:]) for p in (folder / "checkpoints").glob("step-*.json")], default=0))
        ended = forked(lambda: train(folder, cache_dir))  # noqa: B023
        same = ended == 0 and files.sha256(folder / manifest.LAST_WEIGHTS) == expected
        print(json.dumps({"run": number, "faults": faults, "statuses": statuses, "steps": steps, "same": same}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
