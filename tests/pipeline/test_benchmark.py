"""`benchmark` from flags to the run folder: proven files only, each in a fresh process, and no figure of a busy machine."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from export.benchmark import figures, rounds
from export.proven import proven_files
from pipeline import manifest
from pipeline.cli import main
from pipeline.run import Run

Trained = Callable[[str], Run]
SHORT = ["--formats", "onnx", "--batch_sizes", "1,4", "--threads", "1", "--rounds", "2", "--seconds", "0.01"]


@pytest.fixture(scope="module")
def proven(trained: Trained, session_folder: Path, cache_dir: Path) -> Path:
    """A proven run with an ONNX file. Not to be changed."""
    folder = session_folder / "measured" / "run"
    shutil.copytree(trained("mlp").folder, folder)
    assert main(["export", "--run", str(folder), "--formats", "onnx"]) == 0
    assert main(["verify", "--run", str(folder), "--cache_dir", str(cache_dir)]) == 0
    return folder


@pytest.fixture
def run(proven: Path, tmp_path: Path) -> Path:
    return shutil.copytree(proven, tmp_path / "run")


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the machine be a quiet one, whatever else the tests do on it."""
    monkeypatch.setattr(figures, "_trouble", lambda slices, threads: "")
    monkeypatch.setattr(figures, "MAX_LOAD_SPREAD", 1e9)


def _report(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / manifest.BENCHMARK).read_text())
    return found


@pytest.mark.usefixtures("quiet")
def test_the_figures_of_a_run_are_sealed_sent_and_gone_with_the_next_export(
    run: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", "--run", str(run), "--cache_dir", str(cache_dir), *SHORT]) == 0
    report, said = _report(run), capsys.readouterr().out
    assert [(row["format"], row["batch"], row["threads"]) for row in report["rows"]] == [("onnx", 1, 1), ("onnx", 4, 1)]
    assert all(row["p50_ms"] > 0 < row["samples_per_s"] and row["reason"] is None for row in report["rows"])
    part = report["files"]["onnx"]
    assert part["sha256"] == manifest.read(run)[1]["export/model.onnx"] and part["provider"] == "CPUExecutionProvider"
    assert part["load_ms"] > 0 and 20 < part["peak_mb"] < 500
    assert part["size_bytes"] == (run / "export" / "model.onnx").stat().st_size
    assert report["samples"] == "4 test samples" and "| onnx | 1 | 4 | " in said
    assert manifest.is_whole(run, "benchmark") and (run / "benchmark" / "benchmark.png").read_bytes()[1:4] == b"PNG"
    found, client = Run.open(run), MlflowClient()
    metrics = client.get_run(found.mlflow_run_id).data
    assert metrics.metrics["verify/speed/onnx/b4_t1/p50_ms"] == report["rows"][1]["p50_ms"]
    assert metrics.tags["benchmark"] == "complete"
    assert "benchmark/benchmark.json" in {item.path for item in client.list_artifacts(found.mlflow_run_id, "benchmark")}
    assert main(["export", "--run", str(run), "--formats", "onnx"]) == 0
    assert not (run / manifest.BENCHMARK).exists() and not manifest.is_sealed(run, "benchmark")


def test_a_busy_machine_gets_exit_1_null_in_the_json_and_twice_as_many_rounds(
    run: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(figures, "_trouble", lambda slices, threads: "the machine was busy: somebody")
    assert main(["benchmark", "--run", str(run), "--cache_dir", str(cache_dir), *SHORT]) == 1
    told, report = capsys.readouterr(), _report(run)
    assert "not stated:\nonnx, batch 1, 1 thread: the machine was busy: somebody" in told.err
    assert "round 2 of at most 2 more: 1 processes that others have disturbed" in told.out
    assert all(row["p50_ms"] is None and row["samples_per_s"] is None and row["reason"] for row in report["rows"])
    assert manifest.is_whole(run, "benchmark"), "what is known is kept"


@pytest.mark.usefixtures("quiet")
def test_without_the_data_the_samples_are_random_and_that_is_said(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline import benchmark
    from pipeline.errors import UserError

    def gone(*_: object) -> None:
        raise UserError("dataset=houses.csv is gone.")

    monkeypatch.setattr(benchmark, "data_of", gone)
    assert main(["benchmark", "--run", str(run), *SHORT]) == 0
    assert "random samples are asked: dataset=houses.csv is gone." in capsys.readouterr().err
    assert _report(run)["samples"] == "4 random samples"
    assert main(["benchmark", "--run", str(run), "--dataset", "here", *SHORT]) == 2, "who says where it is, wants that"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--formats", "pt2"], "has no proven file of pt2. Measure torch, torch-compile, onnx, or make one: "),
        (["--formats", "onnx,pt3"], "has 'pt3', which is not known."),
        (["--threads", "1024"], "threads=1024: this process may use "),
        (
            ["--batch_sizes", "1,0"],
            "batch_sizes=1,0 is out of range. Give a value at least 1 and at most 65536, as in --batch_sizes",
        ),
        (["--batch_sizes", "8,8"], "batch_sizes=8,8 has 8 twice."),
        (
            ["--batch_sizes", "one"],
            "batch_sizes=one is no list of whole numbers. Give some as a,b, as in --batch_sizes 1,32,256.",
        ),
        (["--rounds", "1"], "rounds=1 is out of range."),
    ],
)
def test_a_mistake_is_told_before_anything_is_measured(
    words: list[str], said: str, proven: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "measure", None)
    assert main(["benchmark", "--run", str(proven), *words]) == 2
    assert said in capsys.readouterr().err and not (proven / "benchmark").exists()


def test_only_the_bytes_that_were_proven_are_measured(run: Path, trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    """One that was changed and sealed again is another file, whoever sealed it."""
    assert list(proven_files(Run.open(run))) == ["onnx"]
    found = Run.open(run)
    path = run / "export" / "model.onnx"
    path.write_bytes(path.read_bytes() + b"\x00")
    assert main(["benchmark", "--run", str(run)]) == 2
    manifest.seal(run, found.mlflow_run_id, "export/model.*", "export/config.json")
    assert main(["benchmark", "--run", str(run)]) == 2
    assert "export/model.onnx is not the file that was proven (its SHA-256 differs)" in capsys.readouterr().err
    report = json.loads((run / manifest.REPORTS[0]).read_text())
    (run / manifest.REPORTS[0]).write_text(json.dumps(report | {"passed": False}))
    manifest.seal(run, found.mlflow_run_id, *manifest.REPORTS)
    assert main(["benchmark", "--run", str(run)]) == 2
    assert "its files disagree with the model" in capsys.readouterr().err
    manifest.unseal(run, found.mlflow_run_id, *manifest.REPORTS)
    assert main(["benchmark", "--run", str(run)]) == 2
    assert "its verify was never done, or was cut off" in capsys.readouterr().err


@pytest.mark.usefixtures("quiet")
def test_a_process_that_dies_or_hangs_is_a_row_with_its_reason(
    run: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A proven file that does not answer ends with 1, and nobody waits for it longer than was said."""
    real = rounds.subprocess.Popen
    started = []

    def sleeping(words: list[str], **more: Any) -> Any:
        started.append(real(["sleep", "600"], **more))
        return started[-1]

    monkeypatch.setattr(rounds.subprocess, "Popen", sleeping)
    monkeypatch.setattr(rounds, "TIMEOUT", 0.01)
    assert main(["benchmark", "--run", str(run), "--cache_dir", str(cache_dir), *SHORT]) == 1
    assert "proven files cannot be measured:\nonnx: it did not finish within 0 s" in capsys.readouterr().err
    assert len(started) == 2 and all(process.returncode == -signal.SIGKILL for process in started)
    assert [row["failed"] for row in _report(run)["rows"]] == [True, True]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("quiet")
def test_every_runtime_is_measured_and_one_without_its_compiler_hinders_none(
    trained: Trained, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(trained("cnn").folder, tmp_path / "run")
    words = ["--run", str(folder), "--cache_dir", str(cache_dir)]
    assert main(["export", *words, "--formats", "onnx,torchscript,pt2,onnx-int8,onnx-fp16"]) == 0
    assert main(["verify", *words]) == 0
    monkeypatch.setenv("CXX", "/nowhere/c++")
    assert main(["benchmark", *words, *SHORT[2:]]) == 0
    report = _report(folder)
    failed = {row["format"] for row in report["rows"] if row["failed"]}
    stated = {row["format"] for row in report["rows"] if row["p50_ms"]}
    assert failed == {"torch-compile"} and stated == {"torch", "torchscript", "pt2", "onnx", "onnx-int8", "onnx-fp16"}
    assert report["broken"] == [] and "torch-compile: " in report["failed"][0]
