"""Run by `verify` as a file, in a fresh and isolated process: one artifact, as somebody else would load it.

    python -I probe.py {onnx,torchscript,pt2} ARTIFACT FOLDER

Imports nothing of ours, and blocks it, since an editable install would be found even by an isolated interpreter.
Imports the runtime, and waits for a line on standard input. Then reads ARTIFACT, and `samples.npy` and `request.json` in
FOLDER; writes the outputs (`values.npz`), then what the file says of itself (`facts.json`), and waits for another line before
it measures the time of a call (`latency.json`), so that no other probe works meanwhile.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Call = Callable[[Array], list[Array]]

BLOCKED = ("models", "pipeline", "export")
NUM_CALLS, NUM_WARM_UP = 200, 20
NUM_THREADS = 1  # where anything else is busy, two wait for each other: a call of 0.3 ms takes 50
LONGEST = 10.0  # seconds spent on measuring
_ONNX_TYPES = {"uint8": "uint8", "float": "float32", "double": "float64", "float16": "float16", "int64": "int64"}


class Blocker:
    """Refuses to import the project's own packages."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked: an exported file must work without it")


def load_onnx(path: Path) -> tuple[Call, dict[str, Any], dict[str, Array]]:
    """Return a call, what the file says of itself, and nothing for its weights, which `verify` reads on its own."""
    import onnx
    import onnxruntime

    checker = ""
    try:
        onnx.checker.check_model(path.read_bytes(), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        checker = _line(error)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = NUM_THREADS
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()
    if not inputs:
        raise ValueError("it has no input")
    name, dtype = inputs[0].name, _ONNX_TYPES.get(inputs[0].type[len("tensor(") : -1], "")
    facts = {
        "runtime": "onnxruntime",
        "version": onnxruntime.__version__,
        "checker": checker,
        "inputs": [{"name": i.name, "dtype": _ONNX_TYPES.get(i.type[7:-1], i.type), "shape": i.shape} for i in inputs],
        "outputs": [{"name": o.name, "shape": o.shape} for o in session.get_outputs()],
        "metadata": {key: _value(text) for key, text in session.get_modelmeta().custom_metadata_map.items()},
    }

    def call(x: Array) -> list[Array]:
        return session.run(None, {name: x.astype(dtype, copy=False) if dtype else x})

    return call, facts, {}


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:  # somebody else's entry
        return text


def _load_torch(path: Path, kind: str) -> tuple[Call, dict[str, Any], dict[str, Array]]:
    import torch

    torch.set_num_threads(NUM_THREADS)
    extra = {"metadata.json": ""}
    if kind == "torchscript":
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`torch.jit.load` is deprecated", category=FutureWarning)
            module = torch.jit.load(path, map_location="cpu", _extra_files=extra)
    else:
        module = torch.export.load(path, extra_files=extra).module()
    facts = {
        "runtime": "torch.jit" if kind == "torchscript" else "torch.export",
        "version": torch.__version__,
        "metadata": json.loads(extra["metadata.json"] or "{}"),
    }

    def call(x: Array) -> list[Array]:
        with torch.inference_mode():
            outputs = module(torch.from_numpy(x))
        return [output.numpy() for output in outputs]

    return call, facts, {name: value.detach().numpy() for name, value in module.state_dict().items()}


def import_runtime(kind: str) -> None:
    """Import what `load` needs, which takes longer than to load a small file."""
    if kind == "onnx":
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    else:
        import torch
    if kind == "pt2":
        with suppress(ImportError):  # where torch 2.15 has all that loading imports, most of it late
            import torch.export.pt2_archive  # noqa: F401


def load(kind: str, path: Path) -> tuple[Call, dict[str, Any], dict[str, Array]]:
    return load_onnx(path) if kind == "onnx" else _load_torch(path, kind)


def run(call: Call, x: Array, *, batch_sizes: list[int], chunk: int) -> tuple[dict[str, list[Array]], dict[str, str]]:
    """Return the outputs for a batch of each size and for all of `x`, and what went wrong where there are none."""
    outputs: dict[str, list[Array]] = {}
    errors: dict[str, str] = {}
    for name in [*map(str, batch_sizes), "all"]:
        try:
            if name == "all":
                parts = [_numbers(call(np.array(x[i : i + chunk]))) for i in range(0, len(x), chunk)]
                outputs[name] = [np.concatenate(column) for column in zip(*parts, strict=True)]
            else:
                outputs[name] = _numbers(call(x[np.arange(int(name)) % len(x)]))
        except Exception as error:  # each runtime has its own types, and one bad batch size must not hide the others
            errors[name] = _line(error)
    return outputs, errors


def _numbers(outputs: list[Array]) -> list[Array]:
    if any(not isinstance(a, np.ndarray) or a.dtype.kind not in "fiub" for a in outputs):
        raise TypeError("its outputs are not all tensors of numbers")
    return outputs


def latency_ms(call: Call, sample: Array) -> float:
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


def _wait_for_line() -> None:
    if not sys.stdin.readline():
        sys.exit("nobody waits for the answer")


def main(kind: str, artifact: str, folder: Path) -> None:
    try:
        import_runtime(kind)
    except Exception as error:
        sys.exit(_line(error))
    _wait_for_line()
    request = json.loads((folder / "request.json").read_text())
    x = np.load(folder / "samples.npy", mmap_mode="r", allow_pickle=False)
    try:
        call, facts, weights = load(kind, Path(artifact))
    except Exception as error:
        sys.exit(_line(error))
    outputs, facts["errors"] = run(call, x, batch_sizes=request["batch_sizes"], chunk=request["chunk"])
    arrays: dict[str, Any] = {f"{case}/{i}": a for case, values in outputs.items() for i, a in enumerate(values)}
    arrays |= {f"weights/{name}": a for name, a in weights.items()}
    np.savez(folder / f"{kind}-values.npz", **arrays)
    (folder / f"{kind}-facts.tmp").write_text(json.dumps(facts))
    (folder / f"{kind}-facts.tmp").rename(folder / f"{kind}-facts.json")
    _wait_for_line()
    if "1" in outputs:
        (folder / f"{kind}-latency.json").write_text(json.dumps(latency_ms(call, np.array(x[:1]))))


if __name__ == "__main__":
    gc.disable()  # a process of seconds
    sys.meta_path.insert(0, Blocker())
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    os._exit(0)  # without Python's tear-down, which the next probe would wait for
