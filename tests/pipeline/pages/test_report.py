"""report.html: complete in itself, whatever its texts are; its code runs; a stage done again takes it away."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from pipeline import manifest
from pipeline.cli import main
from pipeline.data.prepare import prepared_folder
from pipeline.pages import charts, loading, report
from pipeline.run import Run

HOSTILE = '"><script>alert(1)</script><img src=//x.y/z onerror=alert(2)>{{ 7*7 }}\u2028&lt;'
ADDRESSES = ("src", "href", "action", "data", "poster", "srcset", "background", "formaction", "xlink:href")


class _Reader(HTMLParser):
    """Counts the tags of a page, and what each is closed by."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            assert not name.startswith("on") and "url(" not in (value or "" if name == "style" else ""), attrs
            assert name not in ADDRESSES or (value or "").startswith(("data:image/png;base64,", "#")), attrs
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)


def complete(text: str) -> None:
    """Assert that a page is well-formed, loads nothing and has nothing that runs."""
    tags = _Reader(text).tags
    assert not {"script", "iframe", "object", "embed", "link", "form", "base"} & {*tags}
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.S)
    assert "url(" not in style and "@import" not in style
    assert "default-src 'none'" in text and 'name="viewport"' in text


@pytest.fixture(scope="module")
def proven(trained: Callable[[str], Run], session_folder: Path, cache_dir: Path) -> Path:
    """A small run of images with its exports, their proof and its report."""
    folder = session_folder / "reported" / "run"
    shutil.copytree(trained("cnn").folder, folder)
    assert main(["export", "--run", str(folder), "--formats", "onnx,torchscript,pt2"]) == 0
    for command in ("verify", "report"):
        assert main([command, "--run", str(folder), "--cache_dir", str(cache_dir)]) == 0
    return folder


def test_the_page_is_complete_in_itself_sealed_and_in_mlflow(proven: Path) -> None:
    text, run = (proven / manifest.PAGE).read_text(), Run.open(proven)
    complete(text)
    assert manifest.is_whole(proven, "report")
    assert manifest.PAGE in {item.path for item in MlflowClient().list_artifacts(run.mlflow_run_id)}
    sections = re.findall(r'<h2 id="(\w+)"', text)
    assert sections == [
        "task",
        "data",
        "recipe",
        "curves",
        "test",
        "calibration",
        "worst",
        "parity",
        "formats",
        "lineage",
        "load",
    ]
    assert re.findall(r'<a href="#(\w+)"', text) == sections


def test_its_numbers_are_those_of_the_run(proven: Path) -> None:
    text, run = html.unescape((proven / manifest.PAGE).read_text()), Run.open(proven)
    test, sealed = json.loads((proven / "test.json").read_text()), manifest.read(proven)[1]
    for name in ("accuracy", "balanced_accuracy", "top5_accuracy"):
        assert re.search(rf"<td>{name.replace('_', ' ')}</td><td class=\"n\">{test[name]:.4g}</td>", text), name
    matrix = re.search(r'<table class="matrix">.*?</table>', text, re.S)
    cells = re.findall(r"<td [^>]*>(\d+)</td>", matrix[0] if matrix else "")
    assert [int(cell) for cell in cells] == np.array(test["confusion_matrix"]).ravel().tolist()
    for digest in (run.data.sha256, *(sealed[n] for n in sealed if n.startswith("export/model."))):
        assert digest in text
    assert run.mlflow_run_id in text and run.git_commit in text and '<b class="good">PASSED</b>' in text
    for name, count in run.data.counts.items():
        assert f"{count:,} {name}".replace(",", " ") in text


def test_made_again_it_has_the_same_bytes(proven: Path, cache_dir: Path) -> None:
    before = (proven / manifest.PAGE).read_bytes()
    assert main(["report", "--run", str(proven), "--cache_dir", str(cache_dir)]) == 0
    assert (proven / manifest.PAGE).read_bytes() == before


def run_snippets(folder: Path) -> dict[str, str]:
    """Run the code of a run's page as it stands there, where our packages cannot be imported; return what each says."""
    text = (folder / manifest.PAGE).read_text()
    found = re.findall(r"<h3>(export/[\w.]+)</h3>\s*<pre><code>(.*?)</code></pre>", text, re.S)
    said = {}
    for name, code in found:
        done = subprocess.run(
            [sys.executable, "-I", "-c", html.unescape(code)],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, f"{name}: {done.stderr}"
        said[name] = done.stdout
    return said


def test_the_code_that_loads_each_file_runs_as_it_stands(proven: Path) -> None:
    said = run_snippets(proven)
    assert {*said} == {f"export/model.{end}" for end in ("onnx", "pt2", "safetensors", "torchscript.pt")}
    answer = eval(said["export/model.onnx"])
    assert {*answer} == {*Run.open(proven).data.classes} and sum(answer.values()) == pytest.approx(1)
    for name in ("export/model.pt2", "export/model.torchscript.pt"):
        assert eval(said[name]) == pytest.approx([*answer.values()], abs=1e-5)


@pytest.mark.parametrize("model", ["cnn", "mlp", "polynomial"])
def test_no_text_of_a_run_becomes_html(model: str, trained: Callable[[str], Run], tmp_path: Path) -> None:
    """Names of classes, data, files and columns, whatever they hold; of a run that was only trained, too."""
    run = trained(model)
    folder = tmp_path / 'x"><script>y<'
    shutil.copytree(run.folder, folder)
    data = prepared_folder(run.config)
    names = tuple(f"{k}{HOSTILE}" for k in range(len(run.data.classes)))
    spec = dataclasses.replace(run.data, name=HOSTILE, classes=names, targets=() if names else (HOSTILE,))
    run = dataclasses.replace(run, folder=folder, data=spec, git_commit=HOSTILE)
    for name in manifest.FILES["export"] + manifest.FILES["verify"]:
        for path in folder.glob(name):
            path.unlink()
    manifest.unseal(folder, run.mlflow_run_id, *manifest.REPLACES["export"])
    text = report.write(run, data).read_text()
    complete(text)
    assert "alert(1)&lt;/script&gt;" in text and "{{ 7*7 }}" in text
    assert "Nothing was exported yet" in text


@pytest.mark.parametrize(
    "command", ["evaluate", *(pytest.param(name, marks=pytest.mark.slow) for name in ("export", "verify"))]
)
def test_a_stage_that_is_done_again_takes_the_page_away(command: str, proven: Path, cache_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(proven, folder)
    assert main([command, "--run", str(folder), *([] if command == "export" else ["--cache_dir", str(cache_dir)])]) == 0
    assert not (folder / manifest.PAGE).exists() and manifest.PAGE not in manifest.read(folder)[1]

    def sent() -> set[str]:
        return {item.path for item in MlflowClient().list_artifacts(Run.open(folder).mlflow_run_id)}

    assert manifest.PAGE not in sent(), "nor is it shown in MLflow"
    assert main(["report", "--run", str(folder), "--cache_dir", str(cache_dir)]) == 0
    assert manifest.PAGE in sent()
    text = (folder / manifest.PAGE).read_text()
    assert ("The exported files were not proven yet" in text) == (command == "export")


def test_a_run_without_answers_says_what_to_do(
    trained: Callable[[str], Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained("mlp").folder, folder)
    manifest.unseal(folder, Run.open(folder).mlflow_run_id, manifest.ANSWERS)  # as an older version left it
    for words in (["report", "--run", str(folder)], ["compare", "--runs", str(folder), str(trained("cnn").folder)]):
        assert main(words) == 2
        assert f"Do it first: python -m pipeline evaluate --run {folder}" in capsys.readouterr().err


def test_a_benchmark_that_is_sealed_is_shown(proven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    shutil.copytree(proven, folder)
    row = {"format": "onnx", "batch": 32, "threads": 1, "p50_ms": 1.25, "p95_ms": 2.0, "p99_ms": None, "samples_per_s": 25600.0}
    values = {"rows": [row], "files": {"onnx": {"size_bytes": 869_000, "load_ms": 12.5, "peak_mb": 101.0}}}
    (folder / "benchmark").mkdir(exist_ok=True)
    (folder / "benchmark" / "benchmark.json").write_text(json.dumps(values))
    run, data = Run.open(folder), prepared_folder(Run.open(folder).config)
    assert "No benchmark was made" in report.write(run, data).read_text()
    sealed = manifest.read(folder)
    monkeypatch.setattr(manifest, "read", lambda _: (sealed[0], sealed[1] | {"benchmark/benchmark.json": "0" * 64}))
    text = report.write(run, data).read_text()
    complete(text)
    assert '<td class="n">1.25</td><td class="n">2</td><td class="n">-</td><td class="n">25 600</td>' in text


def test_snippets_of_missing_values_and_odd_names_are_code() -> None:
    values = [loading._value(v, True) for v in (None, float("nan"), "it's \\ \"")] + [loading._value(np.nan, False)]
    assert [eval(v) for v in values[:3]] == ["", "", "it's \\ \""] and values[3] == 'float("nan")'


def test_ticks_are_round_and_a_chart_takes_odd_values() -> None:
    assert charts.ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0] and charts.ticks(3, 3) == [3]
    steps = np.arange(5000.0)
    for values in (np.full(5000, np.nan), np.zeros(5000), np.geomspace(1e-8, 1e8, 5000), np.r_[np.nan, steps[1:]]):
        svg = charts.lines({"<b>": (steps, values)}, x="<x>", y='"y"')
        _Reader(svg)
        assert "nan" not in svg and "inf" not in svg and svg.count(",") < 700
