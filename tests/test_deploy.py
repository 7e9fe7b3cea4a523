"""The launchers in deploy/: their shell and YAML are sound, their flags are ours, and the batch script does what it says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import RunConfig
from pipeline.flags import read_flags
from pipeline.resolve import resolve
from pipeline.run import Run
from tests.conftest import ROOT

SCRIPT = ROOT / "deploy" / "slurm.sbatch"
MANIFEST = ROOT / "deploy" / "trainjob.yaml"
COMPOSE = ROOT / "deploy" / "compose.yaml"
OWN_STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"  # without it a restart may meet the address of a rank that is gone


def _flags_of_the_script() -> list[str]:
    command = SCRIPT.read_text().replace("\\\n", " ").rpartition("-m pipeline train")[2].partition("&\n")[0]
    return shlex.split(command.replace('"$@"', "").replace("$SLURM_JOB_ID", "17"))


def _flags_of_the_manifest() -> list[str]:
    args = yaml.safe_load(MANIFEST.read_text())["spec"]["trainer"]["args"]
    return list(args[args.index("train") + 1 :])


@pytest.mark.parametrize("flags", [_flags_of_the_script, _flags_of_the_manifest])
def test_the_flags_are_ones_that_the_command_line_takes(flags: Callable[[], list[str]]) -> None:
    texts = read_flags(flags(), RunConfig)
    assert resolve(texts) and texts["resume"] == "auto" and texts["upload_checkpoints"] == "true" and texts["output_dir"]


def test_the_batch_script_is_sound_bash() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True, timeout=20)
    if not shutil.which("shellcheck"):
        pytest.skip("bash -n passed; shellcheck is not installed here")
    done = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_the_manifest_is_a_train_job_of_several_hosts() -> None:
    manifest = yaml.safe_load(MANIFEST.read_text())
    trainer: dict[str, Any] = manifest["spec"]["trainer"]
    assert (manifest["apiVersion"], manifest["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert manifest["spec"]["runtimeRef"]["name"] == "torch-distributed"
    assert trainer["numNodes"] >= 2 and isinstance(trainer["numProcPerNode"], int) and trainer["command"] == ["torchrun"]
    assert any(arg.startswith("--rdzv-id=") for arg in trainer["args"])
    environment = {entry["name"]: entry["value"] for entry in trainer["env"]}
    assert environment.keys() == {"MLFLOW_TRACKING_URI", OWN_STORE} and environment[OWN_STORE] == "1"


def test_the_batch_script_asks_for_a_tracking_server() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(["bash", SCRIPT], capture_output=True, text=True, timeout=20, env=environment, check=False)
    assert done.returncode != 0 and "MLFLOW_TRACKING_URI: is not set. Give the tracking server" in done.stderr


def _compose() -> dict[str, Any]:
    return dict(yaml.safe_load(COMPOSE.read_text())["services"])


def test_compose_asks_for_the_secrets_that_the_page_makes_and_shows_the_port_that_it_names() -> None:
    page, text = (ROOT / "docs" / "team.md").read_text(), COMPOSE.read_text()
    asked = set(re.findall(r"\$\{(\w+)(?::\?[^}]*)?\}", text))
    assert asked == set(re.search(r"for name in ([\w ]+); do", page)[1].split())  # type: ignore[index]
    assert all(f"${{{name}:?is not set. See docs/team.md}}" in text for name in asked), "an empty one would be a password"
    assert set(re.findall(r"\$\{(\w+):-", text)) == {"TEAM_HOSTS", "TEAM_ADDRESS"} <= set(re.findall(r"TEAM_\w+", page))
    mlflow = _compose()["mlflow"]
    (port,) = mlflow["ports"]
    assert port == "${TEAM_ADDRESS:-127.0.0.1}:5000:5000" and mlflow["environment"]["MLFLOW_PORT"] == 5000
    assert "http://127.0.0.1:5000/" in page and "5000/health" in mlflow["healthcheck"]["test"][-1]
    assert "/deploy/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_containers_of_compose_know_each_other_and_keep_what_they_are_given() -> None:
    services = _compose()
    assert services.keys() == {"postgres", "s3", "mlflow"} and services["mlflow"]["depends_on"].keys() == {"postgres", "s3"}
    database, mlflow, s3 = (services[name] for name in ("postgres", "mlflow", "s3"))
    known = database["environment"]
    address = f"postgresql+psycopg2://{known['POSTGRES_USER']}:${{POSTGRES_PASSWORD}}@postgres:5432/{known['POSTGRES_DB']}"
    assert mlflow["environment"]["MLFLOW_BACKEND_STORE_URI"] == address
    assert mlflow["environment"]["MLFLOW_S3_ENDPOINT_URL"] == f"http://s3{s3['command'][1]}"
    assert mlflow["environment"]["AWS_ACCESS_KEY_ID"] == s3["environment"]["ROOT_ACCESS_KEY"]
    volumes = {each.partition(":")[0] for service in services.values() for each in service.get("volumes", ())}
    assert volumes == set(yaml.safe_load(COMPOSE.read_text())["volumes"])
    lock = (ROOT / "requirements.lock").read_text().splitlines()
    image = mlflow["build"]["dockerfile_inline"]
    assert {pin.replace("[auth]", "") for pin in re.findall(r"[\w-]+(?:\[auth\])?==[\d.]+", image)} <= set(lock)
    assert all(each["restart"] == "unless-stopped" for each in services.values())


def test_the_servers_script_is_sound_and_names_what_it_lacks() -> None:
    script = ROOT / "deploy" / "mlflow-server.sh"
    subprocess.run(["sh", "-n", script], check=True, timeout=20)
    bare = {"PATH": os.environ["PATH"]}
    done = subprocess.run(["sh", script], capture_output=True, text=True, timeout=20, env=bare, check=False)
    assert done.returncode != 0 and "MLFLOW_BACKEND_STORE_URI: is not set" in done.stderr


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins for SLURM on this machine: srun starts each of two hosts' tasks, scancel sends its signal to them."""
    tools = tmp_path / "tools"
    tools.mkdir()
    scripts = {
        "srun": 'shift; "$@" & a=$!; "$@" & b=$!; echo "$a $b" > pids; wait $a; s=$?; wait $b || s=$?; exit $s',
        "scancel": 'for pid in $(cat pids); do kill -TERM "$pid"; done',
        "scontrol": 'if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> asked; fi',
        "torchrun": f'[ "${OWN_STORE}" = 1 ] && exec {sys.executable} -m torch.distributed.run "$@"',
    }
    for name, text in scripts.items():
        (tools / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    for name, value in {
        "SLURM_JOB_ID": "17",
        "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "here",
        "WORKERS_PER_NODE": "1",
    }.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_batch_script_saves_on_term_is_queued_again_and_goes_on(cluster: Path, cache_dir: Path) -> None:
    words = ["bash", str(SCRIPT), "--model", "two_layer", "--batch_size", "4", "--epochs", "40", "--device", "cpu",
             "--cache_dir", str(cache_dir), "--checkpoint_every", "100"]  # fmt: skip
    with Path("log").open("w") as log:
        job = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
        try:
            deadline = time.monotonic() + 100
            while "epoch 2/40" not in Path("log").read_text():
                assert time.monotonic() < deadline and job.poll() is None, Path("log").read_text()
                time.sleep(0.2)
            job.send_signal(signal.SIGTERM)
            assert job.wait(timeout=60) != 0
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)
    said = Path("log").read_text()
    assert "the checkpoint is written. Go on with:" in said and Path("asked").read_text() == "requeue 17\n"
    again = subprocess.run(words, capture_output=True, text=True, timeout=150, check=False)
    assert again.returncode == 0, again.stderr
    assert "epoch 40/40" in again.stdout and "epoch 1/40" not in again.stdout
    assert Run.open(Path("runs/slurm-17")).config.epochs == 40
