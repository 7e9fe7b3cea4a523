"""Workers that die or hang, and a launcher that is killed: real processes, real signals."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from mlflow import MlflowClient

from pipeline import store
from tests.conftest import read_rows

pytestmark = pytest.mark.timeout(240)


@contextmanager
def _job(cache_dir: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, psutil.Process]]]:
    """Start a training on two ranks and yield it, and its ranks by number, after the first epoch."""
    words = ["--model", "moons", "--batch_size", "4", "--epochs", "8", "--nproc", "2", "--output_dir", "run", *flags]
    with Path("stderr").open("w") as error:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "train", *words, "--cache_dir", str(cache_dir)],
            stdout=subprocess.PIPE, stderr=error, text=True,
        )  # fmt: skip
    children: list[psutil.Process] = []
    try:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("epoch 1/8"):
                break
        children = [c for c in psutil.Process(process.pid).children() if "RANK" in c.environ()]
        yield process, {c.environ()["RANK"]: c for c in children}
    finally:
        process.kill()
        for child in children:
            if child.is_running():
                child.kill()


def _status() -> str:
    return str(MlflowClient().get_run(store.open_run(Path("run"), check=False).mlflow_run_id).info.status)


def test_a_killed_worker_leads_to_a_restart_from_the_last_checkpoint_into_the_same_run(cache_dir: Path) -> None:
    number = len(MlflowClient().search_runs(["0"]))
    with _job(cache_dir, "--max_restarts", "1", "--checkpoint_every", "50") as (process, ranks):
        ranks["1"].send_signal(signal.SIGKILL)
        out, _ = process.communicate(timeout=150)
    assert process.returncode == 0, Path("stderr").read_text()
    assert "epoch 8/8" in out and _status() == "FINISHED" and len(MlflowClient().search_runs(["0"])) == number + 1
    losses = [(row["step"], row["train/loss"]) for row in read_rows(Path("run")) if "train/loss" in row]
    assert [step for step, _ in losses] == sorted({step for step, _ in losses}) and losses[-1][0] == 8 * 160
    assert np.isfinite([loss for _, loss in losses]).all()
    run = MlflowClient().get_run(store.open_run(Path("run")).mlflow_run_id)
    assert run.data.tags["restarts"] == "1"


def test_killing_the_launcher_leaves_no_orphan_and_a_run_that_can_be_resumed(cache_dir: Path) -> None:
    with _job(cache_dir) as (process, ranks):
        process.kill()
        assert psutil.wait_procs(ranks.values(), timeout=5)[1] == []
    assert _status() == "KILLED"


@pytest.mark.slow
def test_a_hung_rank_is_found_named_and_restarted(cache_dir: Path) -> None:
    with _job(cache_dir, "--max_restarts", "1", "--timeout", "5") as (process, ranks):
        ranks["1"].send_signal(signal.SIGSTOP)
        out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, Path("stderr").read_text()
    assert "epoch 8/8" in out and _status() == "FINISHED"
    assert "rank 0: no answer from rank 1, which hangs or is dead" in Path("stderr").read_text()
