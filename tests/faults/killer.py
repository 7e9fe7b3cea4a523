"""Trains a small model again and again and has itself killed in the middle of saving, each time at another moment.

    python -m tests.faults.killer FOLDER CACHE_DIR KILLS SEED

Imports once and forks for each kill, so that a kill costs a fraction of a second. Prints one JSON line for each: where it was
killed, and whether the resumed run ended bit for bit like the one that was never touched.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline import checkpoint, store
from pipeline.config import resolve
from pipeline.data.loader import open_split
from pipeline.data.prepare import prepare, read_manifest
from pipeline.distributed import single_process
from pipeline.progress import Progress
from pipeline.tracking.tracker import NullTracker
from pipeline.train import Training

HOOKS = ("torch.save", "fsync", "replace", "hash", "write_json", "unlink", "save_weights")


def train(folder: Path, cache_dir: str, *, resume: bool) -> str:
    """Train, or go on from the newest checkpoint, and return the hash of the last weights."""
    config = resolve({"model": "mlp", "epochs": "4", "dropout": "0.3", "cache_dir": cache_dir, "checkpoint_every": "3"})
    data = prepare(config)
    if resume and store.holds_run(folder):
        run = store.open_run(folder, check=False)
    else:
        run = store.create(folder, config=config, mlflow_run_id="", git_commit="", data=read_manifest(data))
    training = Training(run, single_process(), NullTracker(), open_split(data, "train"), open_split(data, "val"))
    found = checkpoint.newest_checkpoint(folder)
    if found:
        training.restore(found[1])
    training.fit(Progress())
    return store.sha256(folder / store.LAST_WEIGHTS)


def arm(hook: str, call: int, *, after: bool) -> None:
    """Have this process killed at the `call`-th call of a hook, before it or after it."""
    places: dict[str, tuple[Any, str]] = {
        "torch.save": (torch, "save"), "fsync": (os, "fsync"), "replace": (Path, "replace"), "hash": (checkpoint, "sha256"),
        "write_json": (checkpoint, "write_json"), "unlink": (Path, "unlink"), "save_weights": (checkpoint, "save_weights"),
    }  # fmt: skip
    owner, name = places[hook]
    inner: Callable[..., Any] = getattr(owner, name)
    left = [call]

    def hooked(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = inner(*args, **kwargs)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, hooked)


def forked(action: Callable[[], object]) -> int:
    """Run `action` in a forked child; return its wait status. A child that hangs is killed after a minute."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException as error:
            print(f"child failed: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
    deadline = time.monotonic() + 60
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            raise TimeoutError("a child hung")
        time.sleep(0.005)


def main(base: Path, cache_dir: str, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")  # an optimiser needs it: import it once, not in every child
    source = random.Random(seed)
    whole = base / "whole"
    assert forked(lambda: train(whole, cache_dir, resume=False)) == 0
    expected = store.sha256(whole / store.LAST_WEIGHTS)
    for number in range(kills):
        folder = base / f"run{number}"
        shots = [(HOOKS[number % len(HOOKS)], source.randint(1, 24), source.random() < 0.5)]
        shots += [(source.choice(HOOKS), source.randint(1, 24), source.random() < 0.5) for _ in range(source.randint(0, 1))]
        statuses = []
        for hook, call, after in shots:

            def shot(hook: str = hook, call: int = call, after: bool = after, folder: Path = folder) -> None:
                arm(hook, call, after=after)
                train(folder, cache_dir, resume=True)

            statuses.append(forked(shot))
        ended = forked(lambda folder=folder: train(folder, cache_dir, resume=True))  # type: ignore[misc]
        same = ended == 0 and store.sha256(folder / store.LAST_WEIGHTS) == expected
        print(json.dumps({"kill": number, "shots": shots, "statuses": statuses, "same": same}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
