"""Starts one probe for each format, all at once, gives each its artifact, and brings back what they found.

A probe that crashes or hangs is a result like any other: it says that the artifact does not work.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

BATCH_SIZES = (1, 2, 7, 64)
CHUNK = 512  # samples at once, when it goes through all samples
FORMATS = ("onnx", "torchscript", "pt2")
CASES = (*map(str, BATCH_SIZES), "all")
TIMEOUT = 600.0  # seconds for all probes together
_PROBE = Path(__file__).with_name("probe.py")
_POLL = 0.02


@dataclass
class RunResult:
    """What a probe found. `outputs` has the outputs of each case by position; `failure` is why there are none."""

    failure: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, list[Array]] = field(default_factory=dict)
    weights: dict[str, Array] = field(default_factory=dict)
    latency_ms: float | None = None


class Runner:
    """Processes that import what a format needs and then wait for a file of it: they can be started before there is one.

    As a context manager it leaves no process and no file behind.
    """

    def __init__(self, kinds: Iterable[str]) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="trainyard-verify-")
        self._folder = Path(self._temporary.name)
        self._deadline = 0.0
        self._processes: dict[str, subprocess.Popen[str]] = {}
        for kind in kinds:
            with self._file(kind, "stderr.txt").open("w") as stderr:
                self._processes[kind] = subprocess.Popen(
                    [sys.executable, "-I", _PROBE, kind, self._folder / f"{kind}.artifact", self._folder],
                    cwd=self._folder, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr, text=True,
                )  # fmt: skip

    def load(self, artifacts: Mapping[str, bytes], x: Array) -> None:
        """Give each probe its artifact, to be loaded and run on samples `x` (N, *input_shape)."""
        self._deadline = time.monotonic() + TIMEOUT
        np.save(self._folder / "samples.npy", x)
        (self._folder / "request.json").write_text(json.dumps({"batch_sizes": BATCH_SIZES, "chunk": CHUNK}))
        for kind, content in artifacts.items():  # a copy: what was hashed is what is run, and nothing lies beside it
            (self._folder / f"{kind}.artifact").write_bytes(content)
            self._tell(kind, "load\n")

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.kill()
            process.communicate()
        self._temporary.cleanup()

    def results(self) -> dict[str, RunResult]:
        """Wait for all probes and return what each found; their times are taken one after the other."""
        for kind, process in self._processes.items():
            while not self._file(kind, "facts.json").exists() and process.poll() is None and self._left() > 0:
                time.sleep(_POLL)
        return {kind: self._finish(kind, process) for kind, process in self._processes.items()}

    def _tell(self, kind: str, line: str) -> None:
        stdin = self._processes[kind].stdin
        assert stdin
        with suppress(BrokenPipeError):  # it is dead, as its exit status will tell
            stdin.write(line)
            stdin.flush()

    def _finish(self, kind: str, process: subprocess.Popen[str]) -> RunResult:
        self._tell(kind, "measure\n")
        try:
            process.wait(timeout=max(self._left(), 0.0))
        except subprocess.TimeoutExpired:
            return RunResult(failure=f"it did not finish within {TIMEOUT:.0f} s")
        if process.returncode:
            return RunResult(failure=f"it cannot be loaded and run: {self._last_words(kind, process.returncode)}")
        result = RunResult(facts=json.loads(self._file(kind, "facts.json").read_text()))
        with np.load(self._file(kind, "values.npz"), allow_pickle=False) as values:
            for case in CASES:
                keys = [key for key in values.files if key.startswith(f"{case}/")]  # in the order of the outputs
                if keys:
                    result.outputs[case] = [values[key] for key in keys]
            result.weights = {k.removeprefix("weights/"): values[k] for k in values.files if k.startswith("weights/")}
        if self._file(kind, "latency.json").exists():
            result.latency_ms = json.loads(self._file(kind, "latency.json").read_text())
        return result

    def _last_words(self, kind: str, status: int) -> str:
        if status < 0:
            return f"its process was ended by {signal.Signals(-status).name}"
        lines = [line for line in self._file(kind, "stderr.txt").read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"its process ended with status {status}"

    def _file(self, kind: str, name: str) -> Path:
        return self._folder / f"{kind}-{name}"

    def _left(self) -> float:
        return self._deadline - time.monotonic()
