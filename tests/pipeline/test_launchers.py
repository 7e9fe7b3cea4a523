"""Whole commands as users start them: under `mlflow run` from a git URI, under torchrun, with our own launcher."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from pipeline.run import Run
from tests.conftest import ROOT, all_runs

Trained = Callable[[str], Run]
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.slow
def test_evaluating_again_on_two_ranks_gives_the_same_figures(trained: Trained, command: Command, cache_dir: Path) -> None:
    run = trained("cnn")
    before = json.loads((run.folder / "test.json").read_text())
    done = command("evaluate", "--run", run.folder, "--nproc", 2, "--cache_dir", cache_dir)
    assert done.returncode == 0, done.stderr
    after = json.loads((run.folder / "test.json").read_text())
    assert after.pop("loss") == pytest.approx(before.pop("loss"), rel=1e-6) and after == before
    assert done.stdout.count("test/accuracy") == 1


@pytest.mark.timeout(200)
def test_torchrun_runs_the_whole_job_in_one_mlflow_run(tmp_path: Path, cache_dir: Path, session_folder: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    flags = ["run", "--model", "mlp", "--epochs", "3", "--output_dir", str(tmp_path / "run"), "--cache_dir", str(cache_dir)]
    number = len(all_runs())
    done = subprocess.run([*torchrun, "-m", "pipeline", *flags], capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 3/3") == 1 and "**PASSED**" in done.stdout
    run = Run.open(tmp_path / "run")
    found = MlflowClient().get_run(run.mlflow_run_id)
    assert found.info.status == "FINISHED" and found.data.tags["world_size"] == "2" and found.data.tags["parity"] == "passed"
    assert len(all_runs()) == number + 1


@pytest.mark.timeout(200)
def test_a_loss_that_diverges_stops_all_ranks_with_one_message(command: Command, cache_dir: Path, tmp_path: Path) -> None:
    done = command(
        "train", "--model", "polynomial", "--loss", "sse", "--lr", "1", "--nproc", 2, "--output_dir", "run",
        "--cache_dir", cache_dir,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("the training diverged") == 1 and "Traceback" not in done.stderr
    run = Run.open(Path("run"), check=False)
    assert MlflowClient().get_run(run.mlflow_run_id).info.status == "FAILED"


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("kind", "status", "told"), [("TERM", 143, "KILLED"), pytest.param("KILL", 1, "FAILED", marks=pytest.mark.slow)]
)
def test_two_ranks_stop_together_and_the_run_tells_why(cache_dir: Path, kind: str, status: int, told: str) -> None:
    """SIGTERM to the launcher is a stop that can be resumed; a rank that dies by SIGKILL is a failure."""
    flags = ["--model", "two_layer", "--batch_size", "2", "--epochs", "50", "--nproc", "2", "--output_dir", "run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "train", *flags, "--cache_dir", str(cache_dir)],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout
        for line in process.stdout:
            if line.startswith("epoch 1/50"):
                break
        ranks = {rank.environ()["RANK"]: rank for rank in psutil.Process(process.pid).children() if "RANK" in rank.environ()}
        assert sorted(ranks) == ["0", "1"]
        (process if kind == "TERM" else ranks["1"]).send_signal(getattr(signal, f"SIG{kind}"))
        rest, _ = process.communicate(timeout=40)
    finally:
        process.kill()
    assert process.returncode == status
    assert psutil.wait_procs(ranks.values(), timeout=5)[1] == []
    run = Run.open(Path("run"), check=False)
    assert MlflowClient().get_run(run.mlflow_run_id).info.status == told
    if kind == "TERM":
        assert rest.splitlines()[-1] == "python -m pipeline train --output_dir run --resume true"


@pytest.mark.timeout(300)
def test_mlflow_run_does_the_main_job_from_a_git_uri(tmp_path: Path, cache_dir: Path, session_folder: Path) -> None:
    """From another folder, on a clone that MLflow makes itself: the run lands in the caller's store, whole."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: there is nothing to clone")
    bare = tmp_path / "origin"
    subprocess.run(["git", "clone", "--quiet", "--bare", ROOT, bare], check=True, timeout=60)
    for words in (["update-ref", "refs/heads/main", "HEAD"], ["symbolic-ref", "HEAD", "refs/heads/main"]):
        subprocess.run(["git", "-C", bare, *words], check=True, timeout=60)  # what CI checks out may be on no branch
    uri = f"file://{tmp_path}/%6Frigin"  # a folder that MLflow finds by its plain name it would use in place
    words = ["run", uri, "-e", "main", "-P", "model=mlp", "-P", "epochs=3", "-P", f"cache_dir={cache_dir}",
             "--env-manager", "local"]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "PYTHONPATH")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    caller = tmp_path / "caller"
    caller.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", *words], capture_output=True, text=True, timeout=280, cwd=caller, env=environment,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    client = MlflowClient(f"sqlite:///{caller}/mlflow.db")
    (run,) = client.search_runs(["0"])  # in the experiment that `mlflow run` chooses
    assert run.info.status == "FINISHED" and run.data.tags["parity"] == "passed"
    assert run.data.params["model"] == "mlp" and run.data.params["epochs"] == "3" and run.data.params["lr"] == "0.01"
    assert run.data.metrics["verify/onnx/argmax_flips"] == 0
    assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(caller)
    assert {a.path for a in client.list_artifacts(run.info.run_id, "export")} >= {"export/model.onnx", "export/parity.md"}
    assert [a.path for a in client.list_artifacts(run.info.run_id, "plots")]
