"""Have many commands ready, each in a process of its own, and print how each ended, as JSON; again for each line.

    python -m tests.faults.fleet CACHE_DIR < LINES

A line is JSON: a list of {"folder": where it works, "words": the command's, "variables": of the environment}. The processes are
forked after one training here, which imports everything, or they would be spread over the minutes that their imports take. Each
begins when it is sent SIGUSR1. What it says goes to `said` in its folder, beside its `pid`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from pipeline import files


def _child(job: dict[str, Any]) -> None:
    """Wait for the signal, do the work, and end with its status."""
    os.chdir(job["folder"])
    os.environ.update(job["variables"])
    with files.atomic(Path("pid")) as temporary:
        temporary.write_text(str(os.getpid()))
    with Path("said").open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    status = 70
    try:
        from pipeline.cli import main

        signal.sigwait({signal.SIGUSR1})
        status = main(job["words"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def launch(jobs: list[dict[str, Any]]) -> list[int]:
    """Return the exit status of each, in order."""
    pids = []
    for job in jobs:
        if not (pid := os.fork()):
            _child(job)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def warm_up(cache_dir: str) -> None:
    """Import all that a training does. No thread may be left, as a fork would not have it, but what it holds."""
    from pipeline.cli import main

    with tempfile.TemporaryDirectory() as folder:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        words = ["train", "--model", "two_layer", "--epochs", "1", "--precision", "fp32", "--output_dir", f"{folder}/run"]
        with contextlib.redirect_stdout(sys.stderr):
            assert main([*words, "--cache_dir", cache_dir]) == 0
    assert threading.enumerate() == [threading.main_thread()], threading.enumerate()


if __name__ == "__main__":
    warm_up(sys.argv[1])
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})  # one that comes before it is waited for is kept
    for line in sys.stdin:
        print(json.dumps(launch(json.loads(line))), flush=True)
