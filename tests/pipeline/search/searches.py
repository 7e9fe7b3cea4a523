"""Small searches for the tests, and what is the same of two of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from pipeline.search import winner
from pipeline.search.plan import Plan

SMALL = [
    "--model", "mlp", "--dataset", "moons", "--epochs", "2", "--formats", "onnx", "--log_every", "1",
    "--space", "lr=1e-3..1e-1:log", "optimizer=adam,sgd",
]  # fmt: skip


def words(folder: Path, cache_dir: object, *more: object, trials: int = 3) -> list[str]:
    """Return the command line of a small search."""
    places = ["--output_dir", folder, "--cache_dir", cache_dir]
    return ["search", *SMALL, "--trials", str(trials), *map(str, places), *map(str, more)]


def without_a_winner(patch: pytest.MonkeyPatch) -> None:
    """Have a search end with its report in this process: winner and pictures take longer than all small trials together."""

    def reported(plan: Plan, queue: Any, *_: object) -> None:
        if queue:
            winner._report(plan, queue)

    patch.setattr(winner, "make", reported)
    patch.setattr(winner, "save", lambda *_, **__: None)


def report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "search.json").read_text())
    return found


def outcome(folder: Path) -> list[Any]:
    """Return what each trial was, with a hash of its last weights: nothing of clocks, ids and folders."""
    names = ("number", "state", "value", "values", "epochs", "problem")
    return [[*(trial[name] for name in names), weights(folder, trial["number"])] for trial in report(folder)["trials"]]


def weights(folder: Path, number: int, name: str = "trial") -> str:
    """Return a hash of the last weights of a trial, whatever run they are of."""
    tensors = sorted(load_file(folder / f"{name}-{number:04d}" / "last.safetensors").items())
    return hashlib.sha256(b"".join(key.encode() + value.numpy().tobytes() for key, value in tensors)).hexdigest()
