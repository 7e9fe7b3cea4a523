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

from pipeline import manifest
from pipeline.run import Run
from tests.conftest import all_runs, read_rows
from tests.trainings import same_weights

pytestmark = pytest.mark.timeout(240)


@contextmanager
def _job(cache_dir: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, psutil.Process]]]:
    """Start a training on two ranks and yield it, and its ranks by number, after the first epoch."""
    words = ["--model", "two_layer", "--batch_size", "4", "--epochs", "8", "--nproc", "2", "--output_dir", "run", *flags]
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
    return str(MlflowClient().get_run(Run.open(Path("run"), check=False).mlflow_run_id).info.status)


@pytest.mark.slow
def test_a_killed_worker_leads_to_a_restart_from_the_last_checkpoint_into_the_same_run(cache_dir: Path) -> None:
    number = len(all_runs())
    with _job(cache_dir, "--max_restarts", "1", "--checkpoint_every", "50") as (process, ranks):
        ranks["1"].send_signal(signal.SIGKILL)
        out, _ = process.communicate(timeout=150)
    assert process.returncode == 0, Path("stderr").read_text()
    assert "epoch 8/8" in out and _status() == "FINISHED" and len(all_runs()) == number + 1
    losses = [(row["step"], row["train/loss"]) for row in read_rows(Path("run")) if "train/loss" in row]
    assert [step for step, _ in losses] == sorted({step for step, _ in losses}) and losses[-1][0] == 8 * 160
    assert np.isfinite([loss for _, loss in losses]).all()
    run = MlflowClient().get_run(Run.open(Path("run")).mlflow_run_id)
    assert run.data.tags["restarts"] == "1"


@pytest.mark.slow
def test_killing_the_launcher_leaves_no_orphan_and_a_run_that_can_be_resumed(cache_dir: Path) -> None:
    with _job(cache_dir) as (process, ranks):
        process.kill()
        assert psutil.wait_procs(ranks.values(), timeout=5)[1] == []
    assert _status() == "KILLED"


@pytest.mark.slow
def test_a_hung_rank_is_found_named_and_restarted(cache_dir: Path) -> None:
    with _job(cache_dir, "--max_restarts", "1", "--collective_timeout", "5") as (process, ranks):
        ranks["1"].send_signal(signal.SIGSTOP)
        out, _ = process.communicate(timeout=200)
    assert process.returncode == 0, Path("stderr").read_text()
    assert "epoch 8/8" in out and _status() == "FINISHED"
    assert "rank 0: no answer from rank 1, which hangs or is dead" in Path("stderr").read_text()


def _train_on_two(cache_dir: Path, folder: str, *fault: str) -> subprocess.CompletedProcess[str]:
    """Train on two ranks under our launcher, with a fault in one of them, and one restart."""
    train = ["train", "--model", "two_layer", "--batch_size", "8", "--epochs", "5", "--output_dir", folder, "--cache_dir",
             str(cache_dir), "--checkpoint_every", "50", "--collective_timeout", "5"]  # fmt: skip
    code = "import sys; from pipeline.distributed import launch; sys.exit(launch(sys.argv[1:], 2, max_restarts=1))"
    return subprocess.run(
        [sys.executable, "-c", code, "tests.faults.worker", *(fault or ("9", "step", "1", "before", "hang")), "--", *train],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last weights of a two-rank run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = _train_on_two(cache_dir, str(folder))
    assert done.returncode == 0, done.stderr
    return folder / manifest.LAST_WEIGHTS


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(("0", "replace", "9", "before", "SIGKILL"), marks=pytest.mark.slow),  # rank 0 inside a save
        pytest.param(("1", "step", "233", "before", "SIGTERM"), marks=pytest.mark.slow),  # all save
        pytest.param(("1", "step", "301", "before", "SIGKILL"), marks=pytest.mark.slow),
        pytest.param(("1", "step", "233", "after", "hang"), marks=pytest.mark.slow),
        pytest.param(("0", "step", "233", "before", "hang"), marks=pytest.mark.slow),
    ],
    ids=" ".join,
)
def test_a_rank_that_dies_or_hangs_at_a_step_or_in_a_save_changes_no_bit_of_the_end(
    cache_dir: Path, whole: Path, fault: tuple[str, ...]
) -> None:
    done = _train_on_two(cache_dir, "run", *fault)
    assert done.returncode == 0, done.stderr
    assert same_weights(Path("run") / manifest.LAST_WEIGHTS, whole) and _status() == "FINISHED"
    assert MlflowClient().get_run(Run.open(Path("run")).mlflow_run_id).data.tags["restarts"] == "1"
    if fault[-1] == "SIGTERM":
        assert "stopped at step 240; the checkpoint is written" in done.stdout
    if fault[-1] == "hang":
        assert f"no answer from rank {fault[0]}, which hangs or is dead" in done.stderr
    losses = [row["step"] for row in read_rows(Path("run")) if "train/loss" in row]
    assert losses == list(range(10, 401, 10))
