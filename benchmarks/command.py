"""Rows 8 and 9: whole commands, from the start of the process to its end. `uv run python -m benchmarks.command`

Row 8 is `mlflow run . -e main -P model=cnn` on the embedded digits, with prepared data already there, to the moment when the
report that proves the ONNX file is written, against what cannot be left out, one after the other: the start of MLflow's own
command, the imports of the libraries that do the work, in one process, what a fresh process imports to load an exported file,
and the training alone. The time to the end of the command, with the model in MLflow and loaded back, is a note beside it.
Row 9 asks for help and makes a mistake.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import Row, pairs, run

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = (
    "import torch, mlflow, mlflow.tracking, sklearn.datasets, sklearn.metrics, sklearn.manifold, matplotlib.figure, "
    "torch._dynamo, torch.onnx, onnxscript, onnxruntime, mlflow.pyfunc, mlflow.onnx, sqlalchemy, alembic"
)
TRAINING = """
import sys, time
from pathlib import Path
from benchmarks.training import build
from pipeline.progress import Progress
training = build({"model": "cnn", "cache_dir": sys.argv[1]}, Path(sys.argv[2]), saves=False)
start = time.perf_counter()
training.fit(Progress())
print(time.perf_counter() - start)
"""


def _seconds(*words: str, status: int = 0, folder: Path = ROOT, **environment: str) -> float:
    start = time.perf_counter()
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return time.perf_counter() - start


def measure(given: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory() as base:
        number = iter(range(10_000))
        ends: list[float] = []
        store = f"sqlite:///{base}/mlflow.db"
        python = sys.executable
        path = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"

        def whole() -> float:
            words = ["run", str(ROOT), "-e", "main", "-P", "model=cnn", "--env-manager", "local"]
            folder = Path(base) / f"{next(number)}"
            more = ["-P", f"output_dir={folder}", "-P", f"cache_dir={given.cache_dir}"]
            start = time.time()
            ends.append(_seconds(python, "-m", "mlflow", *words, *more, MLFLOW_TRACKING_URI=store, PATH=path))
            return (folder / "export" / "parity.md").stat().st_mtime - start

        def needed() -> float:
            mlflow = _seconds(python, "-m", "mlflow", "--version")
            imports = _seconds(python, "-c", LIBRARIES)
            probe = _seconds(python, "-c", "import torch, onnx, onnxruntime")
            words = [python, "-c", TRAINING, given.cache_dir, f"{base}/{next(number)}"]
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=300, check=True, cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip
            training = float(done.stdout)
            print(f"mlflow {mlflow:.1f} s, imports {imports:.1f} s, probe {probe:.1f} s, training {training:.1f} s", flush=True)
            return mlflow + imports + probe + training

        seen = pairs(whole, needed, given.pairs)
        times = [a for a, _ in seen]
        note = f"{statistics.median(ends[1:]):.1f} s to the end of the command"
        rows = [
            Row(8, "the command main, to the verified ONNX file", "s", times, [], times, at_most=25, note=note),
            Row(8, "the same, and imports and training alone", "s", times, [b for _, b in seen],
                [a / b for a, b in seen], at_most=1.5),
        ]  # fmt: skip
        for what, words, status in (("--help", ["train", "--help"], 0), ("a mistake", ["train", "--epochs", "x"], 2)):
            times = [_seconds(python, "-m", "pipeline", *words, status=status) for _ in range(given.pairs + 1)][1:]
            rows.append(Row(9, what, "s", times, [], times, at_most=0.5))
        return rows


if __name__ == "__main__":
    run(measure, __doc__)
