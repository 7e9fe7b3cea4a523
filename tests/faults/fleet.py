"""Start many commands at one moment, each in a process of its own, and print how each ended, as JSON.

    python -m tests.faults.fleet FILE

FILE holds JSON: a list of {"folder": where it works, "words": the command's, "variables": of the environment}. The processes
are forked after everything is imported, or they would be spread over the minutes that their imports take. What each says goes
to `said` in its folder, beside its `pid`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def _child(job: dict[str, Any], go: int) -> None:
    """Wait until the others are there, do the work, and end with its status."""
    os.chdir(job["folder"])
    os.environ.update(job["variables"])
    Path("pid").write_text(str(os.getpid()))
    with Path("said").open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    status = 70
    try:
        from pipeline.cli import main

        os.read(go, 1)  # returns when the parent closes its end
        status = main(job["words"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def launch(jobs: list[dict[str, Any]]) -> list[int]:
    """Return the exit status of each, in order."""
    import mlflow.artifacts
    import mlflow.data.meta_dataset
    import mlflow.system_metrics  # noqa: F401
    import torch

    from pipeline import commands, evaluate, reporting, train  # noqa: F401
    from pipeline.plots import draw  # noqa: F401
    from pipeline.tracking import fetch, tracker  # noqa: F401

    torch.set_num_threads(1)
    go, start = os.pipe()
    pids = []
    for job in jobs:
        if not (pid := os.fork()):
            os.close(start)
            _child(job, go)
        pids.append(pid)
    os.close(start)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


if __name__ == "__main__":
    print(json.dumps(launch(json.loads(Path(sys.argv[1]).read_text()))))
