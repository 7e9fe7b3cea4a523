"""Rounds over all contenders: in each, one process after the other, and nothing else of ours computes meanwhile.

Every other round goes backwards, so that a machine that gets slower or faster hits all alike. What other processes disturbed is
measured again, until as many rounds in a row as were asked for agree, or as many more have been done.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import export
from export.benchmark import figures
from export.benchmark.figures import Slice
from export.benchmark.samples import Inputs

TIMEOUT = 600.0  # s for one process, beside the time that it is to measure


@dataclass(frozen=True)
class Contender:
    """Something that answers. `request` says to the worker what it is, `file` and `sha256` to the reader; of a model that torch
    runs, those of its weights. `content` are the bytes of an exported file. One that is a `must` was proven to work.
    """

    name: str
    request: Mapping[str, Any]
    file: str
    sha256: str
    size_bytes: int
    content: bytes = b""
    takes_columns: bool = False
    must: bool = True


@dataclass
class Found:
    """What came of one contender on one number of threads, over all its processes."""

    slices: dict[int, list[Slice]] = field(default_factory=dict)  # by batch size, one a round
    failures: dict[int, str] = field(default_factory=dict)  # the last one of each batch size
    loaded: list[dict[str, Any]] = field(default_factory=list)
    peaks_mb: list[float] = field(default_factory=list)


Plan = tuple[str, int]  # the name of a contender, and the threads


def measure(
    contenders: Sequence[Contender], inputs: Inputs, *, threads: Sequence[int], batch_sizes: Sequence[int], rounds: int,
    seconds: float, tell: Callable[[str], None],
) -> dict[Plan, Found]:  # fmt: skip
    """Return what was measured; `tell` is called at the beginning of each round."""
    by_name = {each.name: each for each in contenders}
    plans = [(each.name, number) for each in contenders for number in threads]
    found = {plan: Found() for plan in plans}
    with tempfile.TemporaryDirectory(prefix="trainyard-benchmark-") as temporary:
        folder = Path(temporary)
        inputs.write(folder)
        for each in contenders:
            (folder / f"{each.name}.artifact").write_bytes(each.content)  # what was hashed is what is measured

        def go(names: Sequence[Plan]) -> None:
            for name, number in names:
                contender = by_name[name]
                request = dict(contender.request) | {
                    "path": str(folder / f"{name}.artifact"), "threads": number, "batch_sizes": list(batch_sizes),
                    "seconds": seconds, "columns": list(inputs.columns) if contender.takes_columns else [],
                }  # fmt: skip
                _add(found[name, number], folder, request)

        for count in range(rounds):
            tell(f"round {count + 1} of {rounds}: {len(plans)} processes, one after the other")
            go(plans[:: -1 if count % 2 else 1])
        for count in range(rounds):
            disturbed = [p for p in plans if any(figures.refusal(s, p[1], rounds) for s in found[p].slices.values())]
            if not disturbed:
                break
            tell(f"round {count + 1} of at most {rounds} more: {len(disturbed)} processes that others have disturbed")
            go(disturbed[:: -1 if count % 2 else 1])
    return found


def _add(found: Found, folder: Path, request: dict[str, Any]) -> None:
    """Run one process, and add what came of it."""
    failure = _run(folder, request)
    answer = folder / "answer.jsonl"
    for line in answer.read_text().splitlines() if answer.is_file() else ():
        with suppress(ValueError):  # half a line of a process that was killed
            values = json.loads(line)
            failure = values.get("failure", failure)
            if "loaded" in values:
                found.loaded.append(values["loaded"])
            if size := values.get("batch"):
                times = np.load(folder / f"times-{size}.npy", allow_pickle=False)
                found.slices.setdefault(size, []).append(Slice(times, values["elapsed"], values["others"]))
                found.peaks_mb += [values["peak_mb"]] if values["peak_mb"] else []
                request["batch_sizes"].remove(size)
    for size in request["batch_sizes"]:
        found.failures[size] = failure or "its process ended without an answer"


def _run(folder: Path, request: Mapping[str, Any]) -> str:
    """Run the worker in a process group of its own, and leave none of it; return what went wrong, or nothing."""
    limit = TIMEOUT + 2 * request["seconds"] * len(request["batch_sizes"])
    (folder / "request.json").write_text(json.dumps(dict(request) | {"limit": limit}))
    (folder / "answer.jsonl").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as cache, (folder / "stderr.txt").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "export.benchmark.worker", str(folder)],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True,
            env=_environment(cache, request["threads"]),
        )  # fmt: skip
        try:
            status = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            return f"it did not finish within {limit:.0f} s"
        finally:
            with suppress(ProcessLookupError):  # its children too: torch.compile has a compiler
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if status < 0:
        return f"its process was ended by {signal.Signals(-status).name}"
    return _last_line(folder / "stderr.txt") if status else ""


def _environment(cache: str, threads: int) -> dict[str, str]:
    """Return what a worker's environment is: our code and the user's, its threads, and an empty cache, so that it compiles."""
    root = str(Path(next(iter(export.__path__))).resolve().parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")]), os.getcwd()]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads),
        "TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }  # fmt: skip


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
