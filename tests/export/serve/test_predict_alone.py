"""`predict` needs few packages, and no more memory for more images."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from tests.conftest import ROOT
from tests.export.serve.conftest import MakeOnnx
from tests.export.serve.test_predict import EXPECTED, _rows, _save, _table

NEEDED = ("numpy", "PIL", "pyarrow", "onnxruntime")
BLOCKER = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        ours = ("pipeline", "models", "export", *NEEDED)
        if top in sys.stdlib_module_names or top.startswith("_sysconfigdata") or top in ours:
            return None
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from pipeline.cli import main
status = main(sys.argv[1:])
loaded = {m.partition(".")[0] for m in sys.modules} - sys.stdlib_module_names
print(sorted(loaded & {"torch", "pandas", "onnx", "mlflow", "sklearn", "rich"}))
sys.exit(status)
""".replace("NEEDED", repr(NEEDED))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_it_needs_numpy_pillow_pyarrow_and_onnxruntime_alone(
    table_onnx: Path, make_onnx: MakeOnnx, tmp_path: Path, ending: str
) -> None:
    content = _save(tmp_path / "x.png", 9, 12).read_bytes()
    parquet.write_table(pa.table({"image": [{"bytes": content, "path": "x.png"}]}), tmp_path / "x.parquet")
    arrow_csv.write_csv(_table(), tmp_path / "people.csv")
    for onnx, given in ((make_onnx(side=8), "x.png"), (make_onnx(side=8), "x.parquet"), (table_onnx, "people.csv")):
        words = ["predict", "--onnx", str(onnx), "--input", given, "--output", f"{given}.{ending}"]
        done = subprocess.run([sys.executable, "-c", BLOCKER, *words], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "[]"
    if ending == "csv":
        assert [row["prediction"] for row in _rows(tmp_path / "people.csv.csv")] == EXPECTED
    done = subprocess.run([sys.executable, "-c", BLOCKER, "predict", "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "--input PATH..." in done.stdout


def test_it_imports_of_ours_only_what_needs_no_torch() -> None:
    allowed = {
        "config",
        "release",
        "values",
        "files",
        "output",
        "errors",
        "data.images",
        "data.columns",
        "data.image_table",
        "data",
    }
    for path in (ROOT / "export" / "serve").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) and node.module else ""
            if module.startswith(("pipeline", "models", "export")):
                assert module.startswith("export.serve") or module.removeprefix("pipeline.") in allowed, (
                    f"{path.name}: {module}"
                )


def peak_of(onnx: Path, given: Path) -> int:
    """Return the most memory (kB) that a process of its own held while it answered. ru_maxrss has its parent's in it."""
    code = (
        "import re, sys; from pathlib import Path; from pipeline.cli import main; assert main(sys.argv[1:]) == 0;"
        r"print(re.search(r'VmHWM:\s+(\d+) kB', Path('/proc/self/status').read_text())[1])"
    )
    words = ["predict", "--onnx", str(onnx), "--input", str(given), "--output", f"{given.stem}.csv"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=110, check=True)
    return int(done.stdout.splitlines()[-1])


def test_the_memory_does_not_grow_with_the_number_of_images(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    onnx = make_onnx(side=8)
    for k in range(20):
        _save(tmp_path / f"{k:02}.bmp", 600, 800, seed=k % 3)
    peaks = []
    for count in (100, 500):
        folder = tmp_path / str(count)
        folder.mkdir()
        for k in range(count):
            os.link(tmp_path / f"{k % 20:02}.bmp", folder / f"{k:04}.bmp")
        peaks.append(peak_of(onnx, folder))
    assert peaks[1] < peaks[0] * 1.2, peaks  # 0.7 GB of pixels
