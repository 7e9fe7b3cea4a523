"""A run that is gone on with does what it has not done yet, and no more."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline import commands, files, manifest
from pipeline.cli import main
from pipeline.run import Run
from pipeline.tracking import runs
from tests.conftest import read_rows
from tests.trainings import CLOCKS

FLAGS = ["--model", "polynomial", "--epochs", "3", "--output_dir", "run"]


def _state(folder: Path) -> Any:
    """Return all that must not change: every file with its time, and what MLflow has of the run."""
    found = MlflowClient().get_run(Run.open(folder, check=False).mlflow_run_id)
    points = {name: len(MlflowClient().get_metric_history(found.info.run_id, name)) for name in found.data.metrics}
    found_files = {path: (path.stat().st_mtime_ns, files.sha256(path)) for path in folder.rglob("*") if path.is_file()}
    return found_files, points, found.info.status, found.info.end_time, found.data.tags


def _points(folder: Path) -> Counter[tuple[int, str]]:
    names = (*CLOCKS, "step", "epoch")
    return Counter((row["step"], k) for row in read_rows(folder) for k in row if k not in names and "latency" not in k)


@pytest.fixture(scope="module")
def finished(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run`, which was exported and verified."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(["run", *FLAGS[:-1], str(folder / "run"), "--cache_dir", str(cache_dir)]) == 0
    return folder / "run"


@pytest.mark.parametrize("command", ["run", "train"])
@pytest.mark.parametrize("resume", ["true", "auto"])
def test_nothing_is_done_again_for_a_run_that_is_finished(
    command: str, resume: str, finished: Path, cache_dir: Path, capsys: Any
) -> None:
    before = _state(finished)
    assert main([command, "--output_dir", str(finished), "--resume", resume, "--cache_dir", str(cache_dir)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"run {finished} is finished (3 epochs): nothing to do"
    assert _state(finished) == before


def test_run_does_what_train_has_left(cache_dir: Path, capsys: Any) -> None:
    cache = ["--cache_dir", str(cache_dir)]
    assert main(["train", *FLAGS, *cache]) == 0
    before = dict(manifest.read(Path("run"))[1])
    capsys.readouterr()
    assert main(["run", "--output_dir", "run", "--resume", "true", *cache]) == 0
    said = capsys.readouterr().out
    assert "exported to" in said and "**PASSED**" in said and "epoch 1/" not in said and "test/rmse" not in said
    sealed = manifest.read(Path("run"))[1]
    assert before.items() < sealed.items() and all(
        manifest.is_whole(Path("run"), stage) for stage in ("export", "verify", "report")
    )
    assert set(_points(Path("run")).values()) == {1}
    shutil.rmtree("run/export")  # what is gone is made again
    assert main(["run", "--output_dir", "run", "--resume", "true", *cache]) == 0
    varying = ("export/parity.json", "export/parity.md", manifest.PAGE)  # they hold times
    now = manifest.read(Path("run"))[1]
    assert now.keys() == sealed.keys()
    assert {n: d for n, d in now.items() if n not in varying} == {n: d for n, d in sealed.items() if n not in varying}
    assert set(_points(Path("run")).values()) == {1}


def test_a_training_whose_evaluation_was_cut_off_is_evaluated_and_not_trained_again(
    cache_dir: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyboardInterrupt

    cache = ["--cache_dir", str(cache_dir)]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(commands, "evaluate_run", broken)
        main(["train", *FLAGS, *cache])
    run = Run.open(Path("run"))
    assert MlflowClient().get_run(run.mlflow_run_id).info.status == "FAILED" and not manifest.is_sealed(run.folder, "evaluate")
    weights = (run.folder / manifest.WEIGHTS).stat().st_mtime_ns
    capsys.readouterr()
    assert main(["train", "--output_dir", "run", "--resume", "true", *cache]) == 0
    said = capsys.readouterr().out
    assert "test/rmse" in said and "epoch " not in said and (run.folder / manifest.WEIGHTS).stat().st_mtime_ns == weights
    assert MlflowClient().get_run(run.mlflow_run_id).info.status == "FINISHED" and set(_points(run.folder).values()) == {1}


def test_a_run_that_did_all_but_say_so_is_closed_by_the_next_start(finished: Path, cache_dir: Path, tmp_path: Path) -> None:
    """Killed behind its last stage: MLflow still says RUNNING, and nothing is left to do but to tell it."""
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    run_id = Run.open(folder).mlflow_run_id
    note = json.loads((folder / manifest.TRACKING).read_text())
    del note["parts"]["status"]
    files.write_json(folder / manifest.TRACKING, note)
    MlflowClient().update_run(run_id, status="RUNNING")
    before = _points(folder), manifest.read(folder)
    assert main(["run", "--output_dir", str(folder), "--resume", "true", "--cache_dir", str(cache_dir)]) == 0
    assert MlflowClient().get_run(run_id).info.status == "FINISHED" and (_points(folder), manifest.read(folder)) == before


def test_what_mlflow_has_not_taken_of_a_finished_run_is_sent(
    finished: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    run_id = Run.open(folder).mlflow_run_id
    note = json.loads((folder / manifest.TRACKING).read_text())
    note["parts"]["status"]["sent"] -= 1
    files.write_json(folder / manifest.TRACKING, note)
    MlflowClient().update_run(run_id, status="RUNNING")
    before = _points(folder), manifest.read(folder)
    resume = ["train", "--output_dir", str(folder), "--resume", "true", "--cache_dir", str(cache_dir)]
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        assert main(resume) == 0
    told = capsys.readouterr()
    assert "does not answer" in told.err and "nothing to do" in told.out
    runs.configure()
    assert main(resume) == 0
    assert MlflowClient().get_run(run_id).info.status == "FINISHED" and (_points(folder), manifest.read(folder)) == before


def test_weights_that_were_damaged_are_made_anew_from_the_checkpoint(finished: Path, cache_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = manifest.read(folder)[1]
    (folder / manifest.WEIGHTS).write_bytes(b"x")
    resume = ["train", "--output_dir", str(folder), "--resume", "true", "--cache_dir", str(cache_dir)]
    assert main(resume) == 0
    sealed = manifest.read(folder)[1]
    assert {name: before[name] for name in sealed} == sealed and sealed.keys() == {
        n for n in before if "export/" not in n and n != manifest.PAGE
    }
    (folder / manifest.WEIGHTS).write_bytes(b"x")
    shutil.rmtree(folder / "checkpoints")
    held = {path: files.sha256(path) for path in folder.rglob("*") if path.is_file()}
    assert main(resume) == 2
    assert {path: files.sha256(path) for path in folder.rglob("*") if path.is_file()} == held


def test_proving_again_adds_no_second_point_of_a_figure_that_did_not_change(
    finished: Path, cache_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = _points(folder)
    for command in ("evaluate", "export"):
        cache = [] if command == "export" else ["--cache_dir", str(cache_dir)]
        assert main([command, "--run", str(folder), *cache]) == 0
    assert _points(folder) == before
