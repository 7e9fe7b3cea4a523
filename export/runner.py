"""Starts one isolated process for each format, all at once, gives each its artifact, and brings back the results.

A process that crashes or hangs is a result like any other: it says that the artifact does not work.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export import isolated
from export.formats import FORMATS

Array = NDArray[Any]

BATCH_SIZES = (1, 2, 7, 64)
CHUNK = 512  # samples at once, when it goes through all samples
CASES = (*map(str, BATCH_SIZES), "all")
TIMEOUT = 600.0  # seconds for all processes together
ROUNDS = 3  # times that files whose speed is compared are measured, in turns
_POLL = 0.02


@dataclass
class RunResult:
    """What came of one artifact. `outputs` has the outputs of each case by position; `failure` is why there are none.

    `latency_ms` is the least of the medians, where the time of a call was measured several times.
    """

    failure: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, list[Array]] = field(default_factory=dict)
    weights: dict[str, Array] = field(default_factory=dict)
    latency_ms: float | None = None


class Runner:
    """Isolated processes that import what a format needs and then wait for a file of it: they can start before there is one.

    As a context manager it leaves no process and no file behind.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="trainyard-verify-")
        self._folder = Path(self._temporary.name)
        self._deadline = 0.0
        self._processes: dict[str, subprocess.Popen[str]] = {}
        for name in names:
            with self._file(name, "stderr.txt").open("w") as stderr:
                self._processes[name] = subprocess.Popen(
                    [sys.executable, "-I", isolated.__file__, FORMATS[name].source, self._artifact(name), self._folder],
                    cwd=self._folder, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr, text=True,
                )  # fmt: skip

    def load(self, artifacts: Mapping[str, bytes], x: Array, *, columns: Mapping[str, Array] | None = None) -> None:
        """Give each process its artifact, to be loaded and run on samples `x` (N, *input_shape).

        `columns` are the same samples as the columns (N,) of a table: a file that takes them by name gets them.
        """
        self._deadline = time.monotonic() + TIMEOUT
        np.save(self._folder / "samples.npy", x)
        if columns:
            plain: dict[str, Any] = {str(k): a.astype(str) if a.dtype == object else a for k, a in enumerate(columns.values())}
            np.savez(self._folder / "columns.npz", **plain)
        request = {"batch_sizes": BATCH_SIZES, "chunk": CHUNK, "columns": list(columns or ())}
        (self._folder / "request.json").write_text(json.dumps(request))
        for name, content in artifacts.items():  # a copy: what was hashed is what is run, and nothing lies beside it
            self._artifact(name).write_bytes(content)
            self._tell(name, "load\n")

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.kill()
            process.communicate()
        self._temporary.cleanup()

    def results(self) -> dict[str, RunResult]:
        """Wait for all processes and return the result of each; their times are taken one after the other.

        A file that is derived from another one and that one are measured in turns, so that both meet the same machine.
        """
        for name in self._processes:
            self._wait_for(name, "facts.json")
        compared = {each for name in self._processes if (base := FORMATS[name].base) for each in (name, base)}
        for count in range(1, ROUNDS if compared else 1):
            for name in self._processes:
                if name in compared:
                    self._tell(name, "again\n")
                    self._wait_for(name, f"latency-{count}.json")
        return {name: self._finish(name, process) for name, process in self._processes.items()}

    def _wait_for(self, name: str, end: str) -> None:
        """Wait until a process has written a file, has ended, or has no time left."""
        while not self._file(name, end).exists() and self._processes[name].poll() is None and self._left() > 0:
            time.sleep(_POLL)

    def _tell(self, name: str, line: str) -> None:
        stdin = self._processes[name].stdin
        assert stdin
        with suppress(BrokenPipeError):  # it is dead, as its exit status will tell
            stdin.write(line)
            stdin.flush()

    def _finish(self, name: str, process: subprocess.Popen[str]) -> RunResult:
        self._tell(name, "measure\n")
        try:
            process.wait(timeout=max(self._left(), 0.0))
        except subprocess.TimeoutExpired:
            return RunResult(failure=f"it did not finish within {TIMEOUT:.0f} s")
        if process.returncode:
            return RunResult(failure=f"it cannot be loaded and run: {self._last_words(name, process.returncode)}")
        result = RunResult(facts=json.loads(self._file(name, "facts.json").read_text()))
        with np.load(self._file(name, "values.npz"), allow_pickle=False) as values:
            for case in CASES:
                keys = [key for key in values.files if key.startswith(f"{case}/")]  # in the order of the outputs
                if keys:
                    result.outputs[case] = [values[key] for key in keys]
            result.weights = {k.removeprefix("weights/"): values[k] for k in values.files if k.startswith("weights/")}
        times = [json.loads(path.read_text()) for path in self._folder.glob(f"{name}-latency-*.json")]
        result.latency_ms = min((value for value in times if value is not None), default=None)
        return result

    def _last_words(self, name: str, status: int) -> str:
        if status < 0:
            return f"its process was ended by {signal.Signals(-status).name}"
        lines = [line for line in self._file(name, "stderr.txt").read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"its process ended with status {status}"

    def _artifact(self, name: str) -> Path:
        return self._folder / f"{name}.artifact"

    def _file(self, name: str, end: str) -> Path:
        return self._folder / f"{name}-{end}"

    def _left(self) -> float:
        return self._deadline - time.monotonic()


_warm: list[tuple[frozenset[str], Runner]] = []


@contextmanager
def warm(names: Collection[str]) -> Iterator[None]:
    """Start the processes of these formats, which import their runtimes while there is other work; `ready` gives them."""
    with Runner(names) as runner:
        _warm.append((frozenset(names), runner))
        try:
            yield
        finally:
            _warm.clear()


def ready(names: Collection[str]) -> Runner:
    """Return a runner for these formats: the warm one, if it is there and for the same."""
    return _warm.pop()[1] if _warm and _warm[0][0] == set(names) else Runner(names)
