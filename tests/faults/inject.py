"""Faults on purpose, at a call of a function or at an optimizer step. Only tests import this; nothing in the pipeline knows it.

arm("fsync", 3, after=False, kind="SIGKILL")    # this process is killed as it is about to call os.fsync for the third time
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline import checkpoint
from pipeline.train import Training

HOOKS: dict[str, tuple[Any, str]] = {
    "torch.save": (torch, "save"), "fsync": (os, "fsync"), "replace": (Path, "replace"), "hash": (checkpoint, "sha256"),
    "write_json": (checkpoint, "write_json"), "unlink": (Path, "unlink"), "save_weights": (checkpoint, "save_weights"),
}  # fmt: skip
STEP = "step"
_PLACES = HOOKS | {STEP: (Training, "_step")}
KINDS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGTERM twice", "ENOSPC", "EROFS", "hang")


def _do(kind: str) -> None:
    if kind == "hang":
        time.sleep(3600)
    elif kind.startswith("E"):
        number = getattr(errno, kind)
        raise OSError(number, os.strerror(number))
    else:
        for _ in range(2 if kind.endswith("twice") else 1):
            os.kill(os.getpid(), getattr(signal, kind.split()[0]))


def arm(hook: str, call: int, *, after: bool, kind: str) -> None:
    """Have the `call`-th call of a hook fail, before it is done or after it."""
    assert kind in KINDS
    owner, name = _PLACES[hook]
    inner: Callable[..., Any] = getattr(owner, name)
    left = [call]

    def hooked(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        due = left[0] == 0
        if due and not after:
            _do(kind)
        result = inner(*args, **kwargs)
        if due and after:
            _do(kind)
        return result

    setattr(owner, name, hooked)


def forked(action: Callable[[], object], *, errors: Path | None = None, seconds: float = 60) -> int:
    """Run `action` in a forked child and return its wait status. What it says on stderr goes to `errors`.

    A child that hangs is killed after so many seconds.
    """
    child = os.fork()
    if child == 0:
        if errors:
            os.dup2(os.open(errors, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
        try:
            action()
            os._exit(0)
        except SystemExit as end:
            os._exit(int(end.code or 0))
        except BaseException as error:
            print(f"child failed: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
    deadline = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            raise TimeoutError("a child hung")
        time.sleep(0.005)
