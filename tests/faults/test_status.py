"""The status in MLflow is true, whatever ended a run, and a killed run's curve has each point once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from pipeline.cli import main
from pipeline.run import Run
from pipeline.tracking import runs
from pipeline.tracking.sender import NOT_METRICS
from tests.conftest import read_rows
from tests.faults.beginning import PLACES

pytestmark = pytest.mark.timeout(200)


FLAGS = ["--model", "two_layer", "--batch_size", "4", "--output_dir", "run", "--checkpoint_every", "100"]

_STRUCK = """
from pipeline.cli import main
from tests.faults.inject import arm
arm("step", 700, after=False, kind="SIGKILL")  # in the fifth epoch
main({words})
"""


@pytest.fixture
def killed(cache_dir: Path) -> str:
    """Train in a process that SIGKILL ends in mid-epoch; return the MLflow run's id."""
    words = ["train", *FLAGS, "--epochs", "30", "--cache_dir", str(cache_dir)]
    done = subprocess.run([sys.executable, "-c", _STRUCK.format(words=words)], capture_output=True, timeout=180, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return Run.open(Path("run"), check=False).mlflow_run_id


@pytest.fixture
def killed_rank(cache_dir: Path) -> Iterator[tuple[int, str]]:
    """Train with two ranks, far longer than this takes, and kill rank 0; yield the exit status and the MLflow run's id."""
    words = [*FLAGS, "--epochs", "100000", "--nproc", "2", "--cache_dir", str(cache_dir)]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "train", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("epoch"):  # the first that is told; not each of so many is
                break
        ranks = {c.environ().get("RANK"): c for c in psutil.Process(process.pid).children()}
        ranks["0"].send_signal(signal.SIGKILL)
        process.communicate(timeout=120)
    finally:
        process.kill()
    yield process.returncode, Run.open(Path("run"), check=False).mlflow_run_id


def _status(run_id: str) -> str:
    return str(MlflowClient().get_run(run_id).info.status)


def test_a_later_start_closes_a_run_that_sigkill_left_running_and_it_resumes_without_doubles(
    killed: str, cache_dir: Path, capfd: Any
) -> None:
    run_id = killed
    assert _status(run_id) == "RUNNING"
    kept = len(read_rows(Path("run")))
    assert main(["train", "--model", "polynomial", "--epochs", "1", "--cache_dir", str(cache_dir)]) == 0
    assert _status(run_id) == "KILLED"
    assert f"MLflow run {run_id} ({Path('run').resolve()}) was left RUNNING" in capfd.readouterr().err
    assert main(["train", "--output_dir", "run", "--resume", "true", "--cache_dir", str(cache_dir)]) == 0
    assert _status(run_id) == "FINISHED"
    rows = read_rows(Path("run"))
    assert kept > 4 * 16
    for name in {name for row in rows for name in row} - set(NOT_METRICS):
        steps = [row["step"] for row in rows if name in row]
        assert steps == sorted(set(steps)), f"{name} has a step twice, or out of order"
        sent = MlflowClient().get_metric_history(run_id, name)
        assert [(m.step, m.value) for m in sent] == [(r["step"], r[name]) for r in rows if name in r], name


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_the_launcher_closes_the_run_of_a_rank_0_that_was_killed(killed_rank: tuple[int, str]) -> None:
    status, run_id = killed_rank
    assert status == 1 and _status(run_id) == "FAILED"


_HOLDER = (
    "import sys, pathlib, pipeline.run as s\nwith s.locked(pathlib.Path('run')): print('held', flush=True); sys.stdin.read()"
)


def test_only_a_run_whose_folder_nobody_holds_is_closed() -> None:
    runs.configure()
    run_id = runs.create_run()
    Path("run").mkdir()
    Path("run/config.json").write_text(json.dumps({"mlflow_run_id": run_id}))
    for name, value in (("host", socket.gethostname()), ("output_dir", str(Path("run").resolve()))):
        MlflowClient().set_tag(run_id, name, value)
    pipe = subprocess.PIPE
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER], stdin=pipe, stdout=pipe, text=True)
    try:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        runs.close_abandoned()
        assert _status(run_id) == "RUNNING"
    finally:
        holder.kill()
        holder.communicate(timeout=20)
    runs.close_abandoned(but=run_id)
    assert _status(run_id) == "RUNNING"
    runs.close_abandoned()
    assert _status(run_id) == "KILLED"


@pytest.mark.slow
def test_a_run_that_another_process_still_works_on_is_left_alone(cache_dir: Path) -> None:
    words = [
        "--model",
        "two_layer",
        "--batch_size",
        "2",
        "--epochs",
        "100000",
        "--output_dir",
        "run",
        "--cache_dir",
        str(cache_dir),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "train", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("epoch"):
                break
        run_id = Run.open(Path("run"), check=False).mlflow_run_id
        assert main(["train", "--model", "polynomial", "--epochs", "1", "--cache_dir", str(cache_dir)]) == 0
        assert _status(run_id) == "RUNNING"
    finally:
        process.kill()
        process.communicate(timeout=20)


@pytest.fixture(scope="module")
def struck_while_beginning(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> dict[str, str]:
    """Kill a training at each place of its beginning; return {place: its MLflow run's id}."""
    folder = tmp_path_factory.mktemp("beginning")
    wrapper = MlflowClient().create_run("0").info.run_id
    words = ["-m", "tests.faults.beginning", str(cache_dir), wrapper]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_a_run_that_was_killed_anywhere_in_its_beginning_is_closed_by_the_next_start(
    struck_while_beginning: dict[str, str], capfd: Any
) -> None:
    assert len(set(struck_while_beginning.values())) == len(PLACES) + 1
    assert {place: _status(run_id) for place, run_id in struck_while_beginning.items()} == dict.fromkeys(
        struck_while_beginning, "RUNNING"
    )
    runs.close_abandoned()
    assert {place: _status(run_id) for place, run_id in struck_while_beginning.items()} == dict.fromkeys(
        struck_while_beginning, "KILLED"
    )
    assert "(which had not begun) was left RUNNING" in capfd.readouterr().err


def test_a_process_is_known_by_its_time_of_birth_too() -> None:
    me = runs.owner()
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    zombie = me | {"pid": str(child.pid), "process_started": str(psutil.Process(child.pid).create_time())}
    assert runs.is_gone(zombie)
    child.wait(timeout=20)
    assert runs.is_gone(zombie)
    assert not runs.is_gone(me)
    assert runs.is_gone(me | {"process_started": str(float(me["process_started"]) - 60)}), "the id was given again"
    for unknown in ({}, {"pid": "1"}, me | {"pid": "x"}, me | {"process_started": "long ago"}):
        assert not runs.is_gone(unknown)


def test_a_run_of_another_process_that_lives_and_has_not_begun_is_left_alone() -> None:
    run_id = runs.create_run()
    runs.close_abandoned()
    assert _status(run_id) == "RUNNING"
    runs.abort_run(run_id)
    assert _status(run_id) == "FAILED"
