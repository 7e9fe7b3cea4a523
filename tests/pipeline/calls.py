"""Counts the functions that a training calls, in a process in which nothing else has run; prints JSON.

    python -m tests.pipeline.calls CACHE FOLDER

torch calls eight more in a step once its compiler is imported, which some other tests do.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

from pipeline.progress import Progress
from pipeline.resolve import resolve
from tests.trainings import begin

MODELS = ("cnn", "mlp")


def calls(cache: Path, folder: Path, **flags: object) -> int:
    """Return the number of Python and built-in functions that `fit` calls in this thread.

    Those of the module threading do not count: to wait for a thread that has begun already takes eleven fewer.
    """
    count = 0

    def seen(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call") and frame.f_code.co_filename != threading.__file__

    training = begin(resolve({k: str(v) for k, v in flags.items()} | {"cache_dir": str(cache)}), folder)
    sys.setprofile(seen)
    try:
        training.fit(Progress())
    finally:
        sys.setprofile(None)
    return count


def main(cache: Path, folder: Path) -> dict[str, float]:
    """Return the calls of a step by model, and of whole trainings with batches of 20 and of 160 samples."""
    flags = {"log_every": 1000, "epochs": 1, "precision": "fp32"}
    found: dict[str, float] = {}
    for model in MODELS:
        steps = {"model": model, "batch_size": 10, "checkpoint_every": "1000"} | flags
        _, few, many = (calls(cache, folder / f"{model}{n}", max_steps=n, **steps) for n in (5, 10, 30))  # 5: called once
        found[model] = (many - few) / 20
    samples = {"model": "cnn", "max_steps": 8, "val_split": 0} | flags
    _, found["20"], found["160"] = (
        calls(cache, folder / f"samples{k}", batch_size=n, **samples) for k, n in enumerate((20, 20, 160))
    )
    return found


if __name__ == "__main__":
    counted = main(Path(sys.argv[1]), Path(sys.argv[2]))
    print(json.dumps(counted))
