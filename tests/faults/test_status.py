"""The status in MLflow is true, whatever ended a run, and a killed run's curve has each point once."""

from __future__ import annotations

import json
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

from pipeline import store
from pipeline.cli import main
from pipeline.tracking import runs
from tests.conftest import read_rows

pytestmark = pytest.mark.timeout(200)


@pytest.fixture
def killed(cache_dir: Path, request: pytest.FixtureRequest) -> Iterator[tuple[int, str]]:
    """Train with `nproc` ranks and kill rank 0 with SIGKILL in mid-epoch; yield the exit status and the MLflow run's id."""
    nproc = str(request.param)
    words = ["--model", "moons", "--batch_size", "4", "--epochs", "30", "--output_dir", "run", "--checkpoint_every", "100"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "train", *words, "--nproc", nproc, "--cache_dir", str(cache_dir)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("epoch 4/30"):
                break
        ranks = {c.environ().get("RANK"): c for c in psutil.Process(process.pid).children()}
        ranks.get("0", psutil.Process(process.pid)).send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    finally:
        process.kill()
    yield process.returncode, store.open_run(Path("run"), check=False).mlflow_run_id


def _status(run_id: str) -> str:
    return str(MlflowClient().get_run(run_id).info.status)


@pytest.mark.parametrize("killed", [1], indirect=True)
def test_a_later_start_closes_a_run_that_sigkill_left_running_and_it_resumes_without_doubles(
    killed: tuple[int, str], cache_dir: Path, capfd: Any
) -> None:
    _, run_id = killed
    assert _status(run_id) == "RUNNING"
    kept = len(read_rows(Path("run")))
    assert main(["train", "--model", "polynomial", "--epochs", "1", "--cache_dir", str(cache_dir)]) == 0
    assert _status(run_id) == "KILLED"
    assert f"MLflow run {run_id} ({Path('run').resolve()}) was left RUNNING" in capfd.readouterr().err
    assert main(["train", "--output_dir", "run", "--resume", "true", "--cache_dir", str(cache_dir)]) == 0
    assert _status(run_id) == "FINISHED"
    rows = read_rows(Path("run"))
    assert kept > 4 * 16
    for name in {name for row in rows for name in row} - {"step", "epoch", "time"}:
        steps = [row["step"] for row in rows if name in row]
        assert steps == sorted(set(steps)), f"{name} has a step twice, or out of order"
        sent = MlflowClient().get_metric_history(run_id, name)
        assert [(m.step, m.value) for m in sent] == [(r["step"], r[name]) for r in rows if name in r], name


@pytest.mark.slow
@pytest.mark.parametrize("killed", [2], indirect=True)
def test_the_launcher_closes_the_run_of_a_rank_0_that_was_killed(killed: tuple[int, str]) -> None:
    status, run_id = killed
    assert status == 1 and _status(run_id) == "FAILED"


_HOLDER = (
    "import sys, pathlib, pipeline.store as s\nwith s.locked(pathlib.Path('run')): print('held', flush=True); sys.stdin.read()"
)


def test_only_a_run_whose_folder_nobody_holds_is_closed() -> None:
    runs.configure()
    run_id = runs.begin()
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
    words = ["--model", "moons", "--batch_size", "2", "--epochs", "300", "--output_dir", "run", "--cache_dir", str(cache_dir)]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "train", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("epoch"):
                break
        run_id = store.open_run(Path("run"), check=False).mlflow_run_id
        assert main(["train", "--model", "polynomial", "--epochs", "1", "--cache_dir", str(cache_dir)]) == 0
        assert _status(run_id) == "RUNNING"
    finally:
        process.kill()
        process.communicate(timeout=20)
