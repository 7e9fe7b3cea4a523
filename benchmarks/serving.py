"""Rows 21 and 22: requests to `serve`, beside `mlflow models serve` and LitServe. `uv run python -m benchmarks.serving`

All serve the same ONNX file of the CNN on one image a request, each in processes of its own, in turns; the client is a process
of its own, too, with 32 connections that are kept and never wait (row 21). Row 22 sends ours 70 % of that at an even pace, and
compares p99 with p50; beside it stands what the machine itself does to two processes that pass a byte at that pace, one of
which does a fixed piece of work for each: 70 % of the time between two, as measured back to back. A request that comes alone
costs more time than one in a crowd, so the same is told at the pace that takes 70 % of the processor. LitServe is measured
where it is installed (`uv pip install litserve`).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.report import Row, pairs, row, run

ROOT = Path(__file__).resolve().parents[1]
CONNECTIONS = 32
LITSERVE = """
import sys, litserve, numpy as np, onnxruntime
class Cnn(litserve.LitAPI):
    def setup(self, device): self.session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    def decode_request(self, request): return np.array(request["inputs"]["input"], np.uint8)
    def predict(self, x): return self.session.run(["logits", "probabilities", "features"], {"input": x})
    def encode_response(self, found): return {k: v.tolist() for k, v in zip(("logits", "probabilities", "features"), found)}
if __name__ == "__main__":  # it starts its worker by importing this file again
    litserve.LitServer(Cnn(), accelerator="cpu").run(host="127.0.0.1", port=int(sys.argv[2]), generate_client_file=False)
"""


@contextmanager
def _running(words: list[str], ready: str) -> Iterator[int]:
    """Run a server until it answers at `ready`, yield its process id, and end it and its children afterwards."""
    process = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd=ROOT
    )
    try:
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(ready, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end, f"{words} does not answer"
                time.sleep(0.1)
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=30)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _load(port: int, path: str, body: Path, *, seconds: float, rate: float = 0) -> dict[str, Any]:
    """Return what a client process saw: answers a second, their p50 and p99 in ms, and how many were no 200."""
    words = [str(port), path, str(body), str(CONNECTIONS), str(seconds), str(rate)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.http_load", *words], capture_output=True, text=True, cwd=ROOT, check=True,
        timeout=seconds + 60,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert isinstance(found, dict) and not found["failed"], found
    return found


_LOAD = 0.7
_ECHO = """
import socket, sys, time
def work(steps):
    found = {}
    for number in range(steps):
        found[number % 256] = [number, str(number)]
def timed(steps):
    start = time.perf_counter()
    work(steps)
    return time.perf_counter() - start
steps = int(10_000 * float(sys.argv[2]) / min(timed(10_000) for _ in range(20)))
with socket.socket(fileno=int(sys.argv[1])) as other:
    while byte := other.recv(1):
        work(steps)
        other.send(byte)
"""


def _passed(rate: float, *, seconds: float) -> dict[str, float]:
    """Return p50 and p99, in ms, of a byte that is sent to another process at an even pace, worked on there and sent back."""
    here, there = socket.socketpair()
    words = [sys.executable, "-c", _ECHO, str(there.fileno()), str(_LOAD / rate)]
    with here, there, subprocess.Popen(words, pass_fds=[there.fileno()]) as process:
        try:
            times, start = [], time.perf_counter() + 1
            for number in range(int(rate * seconds)):
                due = start + number / rate
                time.sleep(max(0.0, due - time.perf_counter()))
                here.send(b".")
                here.recv(1)
                times.append(1000 * (time.perf_counter() - due))
        finally:
            process.kill()
    times.sort()
    return {"p50": times[len(times) // 2], "p99": times[int(0.99 * len(times))]}


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _exported(folder: Path, cache_dir: str) -> Path:
    """Return the ONNX file of a CNN, and save it for MLflow beside it."""
    import mlflow.onnx
    import numpy as np
    import onnx
    from mlflow.models import infer_signature

    from benchmarks.training import build
    from export.artifacts import export_run
    from pipeline import manifest
    from pipeline import run as run_folder

    training = build({"model": "cnn", "cache_dir": cache_dir}, folder / "run", saves=False)
    run_folder.save_weights(folder / "run" / manifest.WEIGHTS, training.model.state_dict(), run_id="")
    export_run(training.run)
    file = folder / "run" / "export" / "model.onnx"
    signature = infer_signature({"input": np.zeros((2, 1, 28, 28), np.uint8)}, {"logits": np.zeros((2, 10), np.float32)})
    mlflow.onnx.save_model(
        onnx.load(file), folder / "saved", signature=signature, pip_requirements=["onnxruntime"], save_as_external_data=False
    )
    return file


def measure(given: argparse.Namespace) -> list[Row]:
    import numpy as np

    with tempfile.TemporaryDirectory() as base, ExitStack() as stack:
        folder = Path(base)
        file = _exported(folder, given.cache_dir)
        x = np.random.default_rng(0).integers(0, 256, (1, 1, 28, 28), dtype=np.uint8)
        tensor = {"name": "input", "datatype": "UINT8", "shape": list(x.shape), "data": x.ravel().tolist()}
        (folder / "v2.json").write_text(json.dumps({"inputs": [tensor]}))
        (folder / "mlflow.json").write_text(json.dumps({"inputs": {"input": x.tolist()}}))
        ports = {name: _free_port() for name in ("ours", "mlflow", "litserve")}
        at = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}

        def start(name: str, words: list[str], ready: str) -> int:
            return stack.enter_context(_running(words, at[name] + ready))

        def asked(name: str, path: str, body: str, **more: float) -> dict[str, Any]:
            return _load(ports[name], path, folder / body, seconds=given.seconds, **more)

        server = start(
            "ours", ["-m", "pipeline", "serve", "--onnx", str(file), "--port", str(ports["ours"])], "/v2/health/ready"
        )
        words = [
            "-m",
            "mlflow",
            "models",
            "serve",
            "-m",
            str(folder / "saved"),
            "--env-manager",
            "local",
            "-p",
            str(ports["mlflow"]),
        ]
        start("mlflow", words, "/ping")
        others: dict[str, tuple[str, float]] = {"mlflow": ("/invocations", 4.0)}
        if importlib.util.find_spec("litserve"):
            (folder / "lit.py").write_text(LITSERVE)
            start("litserve", [str(folder / "lit.py"), str(file), str(ports["litserve"])], "/health")
            others["litserve"] = ("/predict", 2.0)

        def ours() -> float:
            return float(asked("ours", "/v2/models/cnn/infer", "v2.json")["rate"])

        def theirs(name: str, path: str) -> Callable[[], float]:
            return lambda: float(asked(name, path, "mlflow.json")["rate"])

        rows = []
        for name, (path, target) in others.items():
            seen = pairs(ours, theirs(name, path), given.pairs)
            rows.append(
                row(21, f"one image a request, serve and {name}", "requests/s", seen, lambda a, b: a / b, at_least=target)
            )

        def paced(rate: float) -> dict[str, Any]:
            before = _processor_seconds(server)
            found = asked("ours", "/v2/models/cnn/infer", "v2.json", rate=rate)
            return found | {"busy": (_processor_seconds(server) - before) / given.seconds}

        rate = _LOAD * statistics.median(rows[0].ours)
        slower = rate / 2
        for _ in range(3):
            slower *= _LOAD / paced(slower)["busy"]
        seen_at_peak, passed, seen_at_load = list[dict[str, Any]](), list[dict[str, Any]](), list[dict[str, Any]]()
        for _ in range(given.pairs):
            seen_at_peak.append(paced(rate))
            passed.append(_passed(rate, seconds=given.seconds))
            seen_at_load.append(paced(slower))
        busy = statistics.median(each["busy"] for each in seen_at_load)
        for what, both, goal, note in (
            ("p99 and p50 at 70 % of these requests", seen_at_peak, 2.0, f"at {rate:.0f} a second"),
            ("the same of a byte that is passed", passed, None, f"at {rate:.0f} a second"),
            ("p99 and p50 at 70 % of a processor", seen_at_load, 2.0, f"at {slower:.0f} a second, {100 * busy:.0f} %"),
        ):
            p50, p99 = ([each[name] for each in both] for name in ("p50", "p99"))
            ratios = [a / b for a, b in zip(p99, p50, strict=True)]
            rows.append(Row(22, what, "ms", p99, p50, ratios, at_most=goal, note=note))
    return rows


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")


if __name__ == "__main__":
    run(measure, __doc__, flags=_flags)
