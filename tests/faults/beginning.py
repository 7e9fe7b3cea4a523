"""Begins a training again and again, and kills it at another place each time: from the creation of its MLflow run on.

    python -m tests.faults.beginning CACHE_DIR WRAPPER

WRAPPER is a run as `mlflow run` opens one. Prints {place: MLflow run id} as one JSON line. Imports once and forks for each.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from pipeline.cli import main
from pipeline.run import Run
from pipeline.tracking import sender
from pipeline.tracking.tracker import Tracker
from tests.faults.inject import forked

PLACES: dict[str, tuple[Any, str]] = {  # what is called, in this order
    "create_run": (MlflowClient, "create_run"), "Run.create": (Run, "create"), "begin": (Tracker, "begin"),
    "send": (sender, "_send_part"),
}  # fmt: skip


def _kill_in(owner: Any, name: str, *, before: bool) -> None:
    inner = getattr(owner, name)

    def struck(*args: Any, **kwargs: Any) -> Any:
        if not before:
            _note(inner(*args, **kwargs))
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, struck)


def _note(run: Any) -> Any:
    if hasattr(run, "info"):
        Path("newest").write_text(run.info.run_id)
    return run


def _begin(folder: str, cache_dir: str, place: str, wrapper: str) -> None:
    if wrapper:
        os.environ["MLFLOW_RUN_ID"] = wrapper
        _kill_in(MlflowClient, "log_batch", before=False)
    else:
        create = MlflowClient.create_run
        MlflowClient.create_run = lambda *a, **k: _note(create(*a, **k))  # type: ignore[method-assign]
        _kill_in(*PLACES[place], before=place not in ("create_run", "Run.create"))
    output = ["--output_dir", folder] if place in ("create_run", "send") else []  # a folder that is known, or not yet
    main(["train", "--model", "polynomial", "--epochs", "1", "--cache_dir", cache_dir, *output])


if __name__ == "__main__":
    for module in ("pipeline.train", "pipeline.evaluate"):
        importlib.import_module(module)
    cache_dir, wrapper = sys.argv[1:]
    ids = {}
    for number, place in enumerate(PLACES):
        status = forked(lambda: _begin(f"run{number}", cache_dir, place, ""))  # noqa: B023
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (place, status)
        ids[place] = Path("newest").read_text()
    status = forked(lambda: _begin("wrapped", cache_dir, "wrapper", wrapper))
    assert os.WIFSIGNALED(status), status
    print(json.dumps(ids | {"mlflow run": wrapper}))
