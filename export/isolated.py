"""Run by `verify` as a file, in a fresh and isolated process: one artifact, as somebody else would load it.

    python -I isolated.py formats/FORMAT.py ARTIFACT FOLDER

Imports nothing of ours but the one file that has the format's loader, and blocks our packages, since an editable install would
be found even by an isolated interpreter. Imports the runtime, and waits for a line on standard input. Then reads ARTIFACT, and
in FOLDER `samples.npy`, `request.json` and, of a table, `columns.npz`; writes the outputs (`NAME-values.npz`), then what the
file says of itself (`NAME-facts.json`), and waits for another line before it measures the time of a call
(`NAME-latency-1.json`), so that no other process of ours works meanwhile; after `again` instead of `measure` it waits for one
more. NAME is that of ARTIFACT.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Samples = Any  # (N, *input_shape), or for a file that takes the columns of a table {name: (N, 1)}
Call = Callable[[Samples], list[Array]]

BLOCKED = ("models", "pipeline", "export")
NUM_CALLS, NUM_WARM_UP = 200, 20
NUM_THREADS = 1  # where anything else is busy, two wait for each other: a call of 0.3 ms takes 50
LONGEST = 10.0  # seconds spent on measuring


class Blocker:
    """Refuses to import the project's own packages."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked: an exported file must work without it")


def load_format(source: Path) -> Any:
    """Return the module of a format, which is no part of any package here."""
    spec = importlib.util.spec_from_file_location(f"format_{source.stem}", source)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def take(x: Samples, rows: Any) -> Samples:
    """Return some rows of the samples, as arrays in memory."""
    return {name: np.array(values[rows]) for name, values in x.items()} if isinstance(x, dict) else np.array(x[rows])


def run(call: Call, x: Samples, *, batch_sizes: list[int], chunk: int) -> tuple[dict[str, list[Array]], dict[str, str]]:
    """Return the outputs for a batch of each size and for all of `x`, and what went wrong where there are none."""
    outputs: dict[str, list[Array]] = {}
    errors: dict[str, str] = {}
    count = len(next(iter(x.values())) if isinstance(x, dict) else x)
    for name in [*map(str, batch_sizes), "all"]:
        try:
            if name == "all":
                parts = [_numbers(call(take(x, slice(i, i + chunk)))) for i in range(0, count, chunk)]
                outputs[name] = [np.concatenate(column) for column in zip(*parts, strict=True)]
            else:
                outputs[name] = _numbers(call(take(x, np.arange(int(name)) % count)))
        except Exception as error:  # each runtime has its own types, and one bad batch size must not hide the others
            errors[name] = _line(error)
    return outputs, errors


def _numbers(outputs: list[Array]) -> list[Array]:
    if any(not isinstance(a, np.ndarray) or a.dtype.kind not in "fiub" for a in outputs):
        raise TypeError("its outputs are not all tensors of numbers")
    return outputs


def latency_ms(call: Call, sample: Samples) -> float:
    """Return the median time of one call in ms, after warming up."""
    for _ in range(NUM_WARM_UP):
        call(sample)
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < NUM_CALLS and time.perf_counter() - begin < LONGEST:
        start = time.perf_counter()
        call(sample)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1000


def _line(error: Exception) -> str:
    """Return the first line of an error, which is where runtimes say what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _wait_for_line() -> str:
    line = sys.stdin.readline()
    if not line:
        sys.exit("nobody waits for the answer")
    return line.strip()


def _write(path: Path, value: object) -> None:
    path.with_suffix(".tmp").write_text(json.dumps(value))
    path.with_suffix(".tmp").rename(path)


def main(source: Path, artifact: Path, folder: Path) -> None:
    name = artifact.stem
    try:
        loader = load_format(source)
        loader.import_runtime()
    except Exception as error:
        sys.exit(_line(error))
    _wait_for_line()
    request = json.loads((folder / "request.json").read_text())
    x: Samples = np.load(folder / "samples.npy", mmap_mode="r", allow_pickle=False)
    try:
        call, facts, weights = loader.load(artifact, num_threads=NUM_THREADS)
    except Exception as error:
        sys.exit(_line(error))
    if request["columns"] and [i["name"] for i in facts.get("inputs", ())] == request["columns"]:
        with np.load(folder / "columns.npz", allow_pickle=False) as stored:
            arrays_by_name = {name: stored[str(k)][:, None] for k, name in enumerate(request["columns"])}
        x = {name: a.astype(object) if a.dtype.kind == "U" else a for name, a in arrays_by_name.items()}
    outputs, facts["errors"] = run(call, x, batch_sizes=request["batch_sizes"], chunk=request["chunk"])
    arrays: dict[str, Any] = {f"{case}/{i}": a for case, values in outputs.items() for i, a in enumerate(values)}
    arrays |= {f"weights/{key}": a for key, a in weights.items()}
    np.savez(folder / f"{name}-values.npz", **arrays)
    _write(folder / f"{name}-facts.json", facts)
    word, count = "again", 0
    while word == "again":
        word, count = _wait_for_line(), count + 1
        _write(folder / f"{name}-latency-{count}.json", latency_ms(call, take(x, slice(0, 1))) if "1" in outputs else None)


if __name__ == "__main__":
    gc.disable()  # a process of seconds
    sys.meta_path.insert(0, Blocker())
    main(*map(Path, sys.argv[1:4]))
    os._exit(0)  # without Python's tear-down, which the next process would wait for
