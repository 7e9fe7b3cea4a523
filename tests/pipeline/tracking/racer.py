"""Start many `promote` at one moment, each in a process of its own, and print how each ended, as JSON.

    python -m tests.pipeline.tracking.racer NAME FOLDER...

The processes are forked after MLflow is imported, or they would be spread over the minutes that their imports take.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path


def _child(name: str, folder: str, go: int, words: Path) -> None:
    """Wait until the others are there, promote, and end with the status."""
    from pipeline.cli import main

    with words.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    status = 70
    try:
        os.read(go, 1)  # returns when the parent closes its end
        status = main(["promote", "--run", folder, "--name", name])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def race(name: str, folders: list[str]) -> list[dict[str, object]]:
    import mlflow.artifacts  # noqa: F401
    import onnx  # noqa: F401

    from pipeline.tracking import fetch, promotion  # noqa: F401

    go, start = os.pipe()
    children = {}
    with tempfile.TemporaryDirectory() as temporary:
        for number, folder in enumerate(folders):
            pid = os.fork()
            if not pid:
                os.close(start)
                _child(name, folder, go, Path(temporary) / str(number))
            children[folder] = (pid, Path(temporary) / str(number))
        os.close(start)
        ends = {folder: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for folder, (pid, _) in children.items()}
        return [{"folder": f, "status": ends[f], "said": words.read_text()} for f, (_, words) in children.items()]


if __name__ == "__main__":
    print(json.dumps(race(sys.argv[1], sys.argv[2:])))
