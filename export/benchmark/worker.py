"""Run in a fresh process by `rounds.py`: one contender on one number of threads, alone on the machine.

    python -P -m export.benchmark.worker FOLDER

Reads `request.json` and the samples in FOLDER. Writes a line to `answer.jsonl` as soon as something is known, so that what was
measured before a crash is kept: what it took to load, then for each batch size how often it was called, with the times in
`times-<batch>.npy`, and the most memory that the process had. A failure is the last line.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.benchmark.machine import Watch

Array = NDArray[Any]
Samples = Any  # (B, *input_shape), or {name: (B, 1)} for a file that takes the columns of a table
Call = Callable[[Samples], Any]

MIN_CALLS, WARM_UP_CALLS = 3, 20
WARM_UP_SHARE = 0.5  # of the measuring time


def _torch(request: dict[str, Any]) -> tuple[Call, dict[str, Any]]:
    """Return a call of a run's model as torch runs it, eager or compiled: arrays to arrays, as the files have it."""
    import torch

    from export.module import export_module
    from pipeline.run import Run

    torch.set_num_threads(request["threads"])
    module = export_module(Run.open(Path(request["run"]), check=False))
    network = torch.compile(module) if request["kind"] == "torch-compile" else module

    def call(x: Array) -> Any:
        with torch.inference_mode():
            return [output.numpy() for output in network(torch.from_numpy(x))]

    return call, {"runtime": "torch", "version": torch.__version__, "provider": "cpu"}


def _onnxruntime(request: dict[str, Any]) -> tuple[Call, dict[str, Any]]:
    """Return a call of an ONNX file by one execution provider. Raises ValueError where another one would answer instead."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request["threads"]
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(request["path"], options, providers=[request["provider"]])
    answering = session.get_providers()[0]
    if answering != request["provider"]:
        raise ValueError(f"{request['provider']} cannot be loaded here, and {answering} would answer instead")
    name = session.get_inputs()[0].name

    def call(x: Samples) -> Any:
        return session.run(None, x if isinstance(x, dict) else {name: x})

    return call, {"runtime": "onnxruntime", "version": onnxruntime.__version__, "provider": answering}


def _file(request: dict[str, Any]) -> tuple[Call, dict[str, Any]]:
    """Return a call of a TorchScript or .pt2 file, by the loader of its format."""
    call, facts, _ = import_module(f"export.formats.{request['kind']}").load(
        Path(request["path"]), num_threads=request["threads"]
    )
    return call, {"runtime": facts["runtime"], "version": facts["version"], "provider": "cpu"}


KINDS: dict[str, tuple[str, Callable[[dict[str, Any]], tuple[Call, dict[str, Any]]]]] = {
    "torch": ("torch", _torch), "torch-compile": ("torch", _torch), "torchscript": ("torch", _file), "pt2": ("torch", _file),
    "onnx": ("onnxruntime", _onnxruntime),
}  # fmt: skip
"""For each kind of contender, the library that is imported before it is loaded, and how it is."""


def read_samples(folder: Path, columns: list[str]) -> Samples:
    """Return the samples that lie in a folder: a matrix, or the columns of a table by their names."""
    if not columns:
        return np.load(folder / "samples.npy", mmap_mode="r", allow_pickle=False)
    with np.load(folder / "columns.npz", allow_pickle=False) as stored:
        arrays = [stored[str(k)][:, None] for k in range(len(columns))]
    return {n: a.astype(object) if a.dtype.kind == "U" else a for n, a in zip(columns, arrays, strict=True)}


def batch_of(samples: Samples, size: int) -> Samples:
    """Return a batch of the first samples, from the beginning again where there are fewer."""
    if isinstance(samples, dict):
        return {name: np.ascontiguousarray(values[np.arange(size) % len(values)]) for name, values in samples.items()}
    return np.ascontiguousarray(samples[np.arange(size) % len(samples)])


def measure(call: Call, batch: Samples, *, seconds: float) -> tuple[Array, dict[str, float]]:
    """Return the time of each call in s, and how long all took and how many cores others had meanwhile."""
    begin = time.perf_counter()
    for number in range(WARM_UP_CALLS):
        call(batch)
        if number and time.perf_counter() - begin > WARM_UP_SHARE * seconds:
            break
    times: list[float] = []
    watch, begin = Watch(), time.perf_counter()
    end = begin
    while len(times) < MIN_CALLS or end - begin < seconds:
        start = time.perf_counter()
        call(batch)
        end = time.perf_counter()
        times.append(end - start)
    return np.array(times), {"elapsed": end - begin, "others": watch.others()}


def peak_mb() -> float | None:
    """Return the most memory that this process has had, in MB. Not by `getrusage`, which counts the parent's before `exec`."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM:")), None)


def _line(error: BaseException) -> str:
    """Return the first line of an error, which is where runtimes say what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


def main(folder: Path) -> int:
    request = json.loads((folder / "request.json").read_text())
    signal.alarm(int(request["limit"]) + 60)  # should nobody be left who ends this process
    library, loader = KINDS[request["kind"]]
    with (folder / "answer.jsonl").open("w") as answer:

        def tell(**values: object) -> None:
            answer.write(json.dumps(values) + "\n")
            answer.flush()

        try:
            import_module(library)
            samples = read_samples(folder, request["columns"])
            sizes = request["batch_sizes"]
            first = batch_of(samples, 1)
            begin = time.perf_counter()
            call, facts = loader(request)
            call(first)  # what a library puts off until then belongs to it
            tell(loaded=facts | {"load_ms": (time.perf_counter() - begin) * 1000})
            for size in sizes:
                times, found = measure(call, batch_of(samples, size), seconds=request["seconds"])
                np.save(folder / f"times-{size}.npy", times)
                tell(batch=size, peak_mb=peak_mb(), **found)
        except Exception as error:  # each runtime has its own types
            tell(failure=_line(error))
            return 1
    return 0


if __name__ == "__main__":
    gc.disable()  # a process of seconds
    status = main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(status)  # without Python's tear-down, which the next process would wait for
