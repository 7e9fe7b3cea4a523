"""What `inspect` prints and draws."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from pipeline.cli import main
from pipeline.inspection import costs
from pipeline.inspection.report import Part, number, render
from pipeline.plots import data as pictures
from tests.conftest import ROOT
from tests.pipeline.data.image_folders import put


def test_a_dataset_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect"]) == 2
    assert "dataset: nothing was given. Add --dataset" in capsys.readouterr().err


def test_a_thousand_files_take_seconds_and_no_torch(tmp_path: Path) -> None:
    for k, name in enumerate(("cat", "dog")):
        for i in range(500):
            put(tmp_path / "photos" / name / f"{i}.png", 1000 * k + i, size=(64, 48))
    code = (
        "import sys, time; from pipeline.cli import main; start = time.process_time();"
        "status = main(['inspect', '--dataset', 'photos']); used = time.process_time() - start;"
        "heavy = [m for m in ('torch', 'mlflow', 'onnx', 'onnxruntime') if m in sys.modules];"
        "print(status, heavy, round(used, 2)); sys.exit(bool(status or heavy or used > 12))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout[-200:] + done.stderr


PART = Part(
    title="things", header=("name", "count", "what"), rows=[("a", "1", "x"), ("bb\n", "1,000", "y " * 100)], numbers=(1,)
)


def test_a_terminal_gets_the_same_words_in_tables() -> None:
    plain, drawn = render([PART]), render([PART], width=80)
    bare = re.sub(r"\x1b\[[\d;]*m", "", drawn)
    assert "\x1b[" in drawn and "\u2500" in drawn and "\x1b" not in plain
    assert re.findall(r"[\w,\\]+", plain) == re.findall(r"[\w,\\]+", bare)


def test_plain_text_is_aligned_and_wrapped() -> None:
    lines = render([PART]).splitlines()
    assert lines[1:3] == ["  name  count  what", "  a         1  x"] and lines[3].startswith("  bb\\n  1,000  y y")
    assert max(map(len, lines)) <= 118 and lines[4].startswith(" " * 15 + "y")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1912364.0, "1912364"),
        (0.5, "0.5"),
        (-3.14159265, "-3.14159"),
        (1e-7, "1e-07"),
        (3e15, "3e+15"),
        (1e9, "1000000000"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


def test_a_picture_of_a_table_has_twelve_columns_and_correlations() -> None:
    rng = np.random.default_rng(0)
    values = {f"x{k}": rng.normal(size=100) for k in range(14)} | {"text": np.array(["a", ""] * 50, object)}
    figure = pictures.columns(values, labels=np.arange(100) % 2, classes=("no", "yes"), first=("text",))
    assert len([t for t in titles(figure) if t and "correlations" not in t]) == 12
    assert titles(figure)[-1] == "correlations (Pearson)" or "correlations (Pearson)" in titles(figure)
    assert "text (target, 50.0% missing)" in titles(figure)
    few = pictures.columns({"a": values["x0"], "b": values["x1"]})
    assert titles(few) == ["a", "b"]


@pytest.mark.parametrize("column", [
    np.full(9, np.nan), np.zeros(9), np.array([1e308, -1e308, *range(7)]), np.array([np.nan, 5, *[np.nan] * 7]),
    np.array([2.0**60, 2.0**60 + 4096, *[2.0**60] * 7]), np.array(["$x$"] * 9, object), np.array([""] * 9, object),
    np.array([f"{i}" * 50 for i in range(9)], object),
])  # fmt: skip
def test_a_picture_of_any_column_can_be_drawn(column: np.ndarray, tmp_path: Path) -> None:
    others = {"b": np.arange(9.0), "c": np.arange(9.0) ** 2, "d": -np.arange(9.0)}
    figure = pictures.columns({"$a_{": column, **others}, labels=np.arange(9) % 2, classes=("$", "b"), kinds={"$a_{": "date"})
    figure.savefig(tmp_path / "x.png")


def test_a_picture_of_images_has_five_of_each_of_ten_classes(tmp_path: Path) -> None:
    labels = np.repeat(np.arange(12), [3, *[7] * 11])

    def tile(row: int) -> tuple[str, np.ndarray]:
        return f"{row}", np.zeros((3, 8, 8), np.uint8)

    figure = pictures.image_rows(labels, tile, classes=[f"class {k}" for k in range(12)], side=8)
    assert len([t for t in titles(figure) if t]) == 50 and "10 of 12 classes" in figure.get_suptitle()
    few = pictures.image_rows(labels[:3], tile, classes=["a", "b"], side=8)
    assert [t for t in titles(few) if t] == ["0", "1", "2"]


def test_sizes_are_told_in_units() -> None:
    assert [costs.size(n) for n in (12, 1500, 2_500_000, 3_000_000_000_000)] == ["12 bytes", "1.5 kB", "2.5 MB", "3,000.0 GB"]


def test_no_module_of_it_imports_torch() -> None:
    for path in (ROOT / "pipeline" / "inspection").glob("*.py"):
        assert not re.search(r"^\s*(import|from) torch", path.read_text(), flags=re.MULTILINE)
    assert os.path.exists(ROOT / "pipeline" / "inspection")
