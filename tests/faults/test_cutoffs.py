"""Any stage, cut off at any file that it writes, leaves a run that opens; done again, it ends as if it had not been cut off."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline import manifest
from pipeline.cli import main
from pipeline.run import Run
from tests.faults.cutter import STAGES, Hook, differences

Trained = Callable[[str], Run]


ENDED = {"SIGKILL": -signal.SIGKILL, "SIGTERM": 143, "SIGINT": 130}  # the exit status that each signal leads to


class Cut(BaseException):
    """What nobody catches."""


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    ("stage", "kinds"), [(stage, kind) for stage in STAGES for kind in (ENDED if stage != "run" else [" ".join(ENDED)])]
)
def test_a_stage_cut_off_by_a_signal_at_any_file_write_ends_as_if_it_had_not_been(
    stage: str, kinds: str, tmp_path: Path, cache_dir: Path, capsys: Any
) -> None:
    """Each of the stages by each signal at every write; `run`, which is all of them, at every write by one of them in turn."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.cutter", str(tmp_path / "runs"), str(cache_dir), stage, *kinds.split()],
        capture_output=True, text=True, timeout=7000, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    ends = Counter((row["signal"], row["status"]) for row in rows)
    with capsys.disabled():
        print(f"\n{stage}: {len(rows)} signals at a file write: {dict(ends)}")
    assert [row for row in rows if row["otherwise"]] == []
    assert {kind for kind, _ in ends} == {*kinds.split()}
    assert all(status in (ENDED[kind], 0) for kind, status in ends), (
        "0 where the last of a command only closes what ends anyway"
    )
    errors = tmp_path / "runs" / "errors"
    assert "Traceback" not in errors.read_text() and "child failed" not in errors.read_text()


@pytest.fixture(scope="module")
def proven(trained: Trained, session_folder: Path, cache_dir: Path) -> Path:
    """A small run with its exports and their proof, which nothing has cut off."""
    folder = session_folder / "proven" / "run"  # the pictures tell the name of the folder
    shutil.copytree(trained("polynomial").folder, folder)
    for command in ("evaluate", "export", "verify", "report"):
        assert _again(command, folder, cache_dir) == 0
    return folder


def _again(command: str, folder: Path, cache_dir: Path) -> int:
    return main([command, "--run", str(folder), *([] if command == "export" else ["--cache_dir", str(cache_dir)])])


@pytest.mark.parametrize("command", ["evaluate", pytest.param("export", marks=pytest.mark.slow), "report"])
def test_a_stage_that_ends_behind_any_file_write_can_be_done_again(
    command: str, proven: Path, cache_dir: Path, tmp_path: Path
) -> None:
    """Cut off in this process; the slow test does it with real processes and signals, before each write too."""
    whole = tmp_path / "whole"
    shutil.copytree(proven, whole)

    def never(name: str, number: int, after: bool) -> None: ...

    whole = whole.rename(tmp_path / "run")
    with Hook(never) as hook:
        assert _again(command, whole, cache_dir) == 0
    assert hook.wrong == [], "a sealed file was written over"
    whole = whole.rename(tmp_path / "whole")
    places = [(n, k + 1) for n, count in Counter(hook.names).items() if n != manifest.TRACKING for k in range(count)]
    assert len(places) >= (3 if command == "report" else 6)
    for place in places:
        folder = tmp_path / "run"
        shutil.copytree(proven, folder)

        def strike(name: str, number: int, after: bool) -> None:
            if after and (name, number) == place:  # noqa: B023
                raise Cut

        with pytest.raises(Cut), Hook(strike):
            _again(command, folder, cache_dir)
        Run.open(folder)
        assert _again(command, folder, cache_dir) == 0
        assert differences(folder, whole) == [], place
        shutil.rmtree(folder)


def test_a_proof_that_is_cut_off_bricks_nothing(proven: Path, cache_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(proven, folder)

    def strike(name: str, number: int, after: bool) -> None:
        if after and name == "export/parity.json":
            raise Cut

    with pytest.raises(Cut), Hook(strike):
        _again("verify", folder, cache_dir)
    assert not manifest.is_sealed(folder, "verify") and manifest.is_sealed(folder, "export")
    for command in ("evaluate", "verify", "report"):
        assert _again(command, folder, cache_dir) == 0
    assert differences(folder, proven) == []


@pytest.mark.slow
def test_an_mlflow_that_takes_no_model_bricks_nothing(
    proven: Path, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(proven, folder)
    experiment = MlflowClient().get_run(Run.open(folder).mlflow_run_id).info.experiment_id
    models = Path(MlflowClient().get_experiment(experiment).artifact_location.removeprefix("file://")) / "models"
    models.rename(models.with_name("kept"))
    models.write_text("a file where MLflow's folder of models should be")
    try:
        assert _again("verify", folder, cache_dir) == 1
    finally:
        models.unlink()
        models.with_name("kept").rename(models)
    assert "Traceback" not in capsys.readouterr().err
    assert not manifest.is_sealed(folder, "verify")
    for command in ("evaluate", "verify", "report"):
        assert _again(command, folder, cache_dir) == 0
    assert differences(folder, proven) == []


def test_an_export_takes_the_older_proof_away_as_it_speaks_of_files_that_are_replaced(
    proven: Path, cache_dir: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(proven, folder)
    (folder / "export" / "parity-other.json").write_text("{}")
    assert _again("export", folder, cache_dir) == 0
    assert sorted(p.name for p in (folder / "export").iterdir() if "parity" in p.name) == ["parity-other.json"]
    assert not [name for name in manifest.read(folder)[1] if "parity" in name]


@pytest.mark.parametrize("name", ["export/model.onnx", "export/parity.md", "plots/curves.png", "test.json"])
@pytest.mark.parametrize("kind", ["gone", "changed"])
def test_a_file_that_a_stage_makes_anew_is_no_obstacle_to_that_stage_and_one_to_the_others(
    name: str, kind: str, proven: Path, cache_dir: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(proven, folder)
    (folder / name).unlink()
    if kind == "changed":
        (folder / name).write_text("other")
    stage = {"model.onnx": "export", "parity.md": "verify"}.get(Path(name).name, "evaluate")
    other = "evaluate" if stage != "evaluate" else "export"
    assert _again(other, folder, cache_dir) == (0 if (other, stage) == ("export", "verify") else 2)
    assert f"make it anew: python -m pipeline {stage} --run {folder}" in capsys.readouterr().err
    if stage != "verify":
        assert _again(stage, folder, cache_dir) == 0
        assert stage == "export" or _again("report", folder, cache_dir) == 0  # which the stage has taken away
        assert differences(folder, proven) == ([] if stage == "evaluate" else differences(folder, proven))
        Run.open(folder)


def test_a_proof_without_an_export_that_came_to_its_end_says_what_to_do(
    proven: Path, cache_dir: Path, tmp_path: Path, capsys: Any
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(proven, folder)

    def strike(name: str, number: int, after: bool) -> None:
        if name == "export/model.pt2":
            raise Cut

    with pytest.raises(Cut), Hook(strike):
        _again("export", folder, cache_dir)
    assert _again("verify", folder, cache_dir) == 2
    told = capsys.readouterr().err
    assert "its export was never done, or was cut off. Do it first: python -m pipeline export --run" in told
