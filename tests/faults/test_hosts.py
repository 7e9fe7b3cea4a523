"""Several hosts with a network and a disk each: one run, one of them cut off, rank 0 moved. Needs root for the networks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from pipeline.run import Run
from tests.conftest import all_runs, read_rows
from tests.hosts import GATEWAY, Host, two_hosts
from tests.servers import free_port, mlflow_server
from tests.team import Service

pytestmark = [pytest.mark.slow, pytest.mark.timeout(420)]

EPOCHS = 60
STEPS = EPOCHS * 160
TRAIN = ["train", "--model", "two_layer", "--batch_size", "4", "--epochs", str(EPOCHS), "--output_dir", "run",
         "--cache_dir", "cache", "--checkpoint_every", "40", "--collective_timeout", "20", "--device", "cpu"]  # fmt: skip


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[tuple[Host, Host]]:
    try:
        with two_hosts(tmp_path) as both:
            yield both
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {error}")


@pytest.fixture
def server(hosts: tuple[Host, Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "server").mkdir()
    with mlflow_server(tmp_path / "server", address=GATEWAY) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")
        yield uri


def _wait_for(condition: Callable[[], bool], host: Host, log: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, host.said(log)
        time.sleep(0.2)


def _c10d(first: Host, nodes: str) -> tuple[str, ...]:
    return ("--nnodes", nodes, "--rdzv-backend", "c10d", "--rdzv-endpoint", f"{first.address}:29400", "--rdzv-id", "job",
            "--max-restarts", "3")  # fmt: skip


def _assert_one_whole_run(server: str, folder: Path) -> str:
    (found,) = all_runs(server)
    run = Run.open(folder)
    assert run.mlflow_run_id == found.info.run_id and found.info.status == "FINISHED"
    for name in ("train/loss", "val/loss", "test/accuracy"):
        rows = [(row["step"], row[name]) for row in read_rows(folder) if name in row]
        assert [step for step, _ in rows] == sorted({step for step, _ in rows})
        assert rows[-1][0] == (0 if name == "test/accuracy" else STEPS)  # metrics of the finished model have no step
        assert [(m.step, m.value) for m in MlflowClient(server).get_metric_history(found.info.run_id, name)] == rows
    return str(found.info.run_id)


def test_two_hosts_train_one_run_and_only_rank_0_needs_a_folder(hosts: tuple[Host, Host], server: str) -> None:
    jobs = [host.torchrun(*TRAIN, torchrun=_c10d(hosts[0], "2"), log="log") for host in hosts]
    assert [job.wait(timeout=200) for job in jobs] == [0, 0], [host.said("log") for host in hosts]
    holders = [host for host in hosts if (host.folder / "run").exists()]
    assert len(holders) == 1 and all((host.folder / "cache").is_dir() for host in hosts)
    run_id = _assert_one_whole_run(server, holders[0].folder / "run")
    found = MlflowClient(server).get_run(run_id)
    assert found.data.tags["world_size"] == "2" and found.data.tags["host"] == holders[0].name
    assert {f"system/node_{k}/cpu_utilization_percentage" for k in range(2)} <= set(found.data.metrics)
    assert [holders[0].said("log").count(f"epoch {EPOCHS}/{EPOCHS}")] == [1]


def test_a_host_cut_off_in_mid_run_is_gone_on_without_and_joins_again(hosts: tuple[Host, Host], server: str) -> None:
    """`--nnodes 1:2`: the link goes down, the other host goes on alone from the last checkpoint, then both go on."""
    flags = [*TRAIN, "--resume", "auto"]
    flags[flags.index("--epochs") + 1], flags[flags.index("--batch_size") + 1] = "900", "2"
    jobs = [host.torchrun(*flags, torchrun=_c10d(hosts[0], "1:2"), log="log") for host in hosts]
    first, second = hosts
    _wait_for(lambda: "2 x cpu" in first.said("log") and "epoch 1/" in first.said("log"), first, "log")
    second.link("down")
    _wait_for(lambda: "1 x cpu" in first.said("log"), first, "log", 200)
    assert "no answer from rank 1" in first.said("log")
    second.link("up")
    _wait_for(lambda: jobs[1].poll() is not None or first.said("log").count("2 x cpu") == 2, first, "log", 150)
    if jobs[1].poll() is not None:  # cut off for longer than torchrun waits, so it has given up: whoever started it does again
        jobs[1] = second.torchrun(*flags, torchrun=_c10d(first, "1:2"), log="log2")
        _wait_for(lambda: first.said("log").count("2 x cpu") == 2, first, "log", 150)
    jobs[0].terminate()
    assert jobs[0].wait(timeout=60) != 0
    (found,) = all_runs(server)
    steps = [row["step"] for row in read_rows(first.folder / "run") if "train/loss" in row]
    assert steps == sorted(set(steps)) and steps == list(range(10, steps[-1] + 1, 10))
    assert found.info.status in ("KILLED", "FAILED")


def test_rank_0_moves_to_the_other_host_and_goes_on_from_mlflow(hosts: tuple[Host, Host], server: str) -> None:
    """The host of rank 0 is lost with its disk; the same job on the other one finds the checkpoints that were uploaded."""

    def static(rank: int, first: Host, nodes: int) -> tuple[str, ...]:
        return ("--nnodes", str(nodes), "--node-rank", str(rank), "--master-addr", first.address, "--master-port", "29500",
                "--rdzv-id", "job")  # fmt: skip

    flags = [*TRAIN, "--resume", "auto", "--upload_checkpoints", "true"]
    first, second = hosts
    for rank, host in enumerate(hosts):
        host.torchrun(*flags, torchrun=static(rank, first, 2), log="log")

    def uploaded() -> int:
        found = all_runs(server)
        return int(found[0].data.tags.get("checkpoint_step", 0)) if found else 0

    _wait_for(lambda: uploaded() >= 200, first, "log")
    first.kill()
    second.kill()
    assert not (second.folder / "run").exists()
    again = second.torchrun(*flags, torchrun=static(0, second, 1), log="log2")
    assert again.wait(timeout=150) == 0, second.said("log2")
    assert "was taken over from MLflow into run, at step " in second.said("log2")
    _assert_one_whole_run(server, second.folder / "run")
    tags = all_runs(server)[0].data.tags
    assert tags["host"] == second.name and json.loads((second.folder / "run" / "test.json").read_text())


@pytest.fixture
def bucket(hosts: tuple[Host, Host], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A bucket called bucket, which both hosts reach."""
    import boto3

    (tmp_path / "s3").mkdir()
    port = free_port()
    words = [sys.executable, "-m", "moto.server", "-H", GATEWAY, "-p", str(port)]
    service = Service(words, tmp_path / "s3", dict(os.environ), port=port, address=GATEWAY)
    service.start()
    try:
        for name, value in {"AWS_ENDPOINT_URL": f"http://{GATEWAY}:{port}", "AWS_ACCESS_KEY_ID": "key",
                            "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="bucket")
        yield
    finally:
        service.end()


def test_two_hosts_write_shards_into_a_bucket_and_train_on_them(
    hosts: tuple[Host, Host], server: str, bucket: None, tmp_path: Path
) -> None:
    """The shards are those that one process writes; the losses those of one process, and each host has a cache of its own."""
    import boto3

    x = np.random.default_rng(0).integers(0, 256, (300, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(300) % 3)

    def together(*words: str, log: str) -> None:
        jobs = [host.torchrun(*words, torchrun=_c10d(hosts[0], "2"), log=log) for host in hosts]
        assert [job.wait(timeout=150) for job in jobs] == [0, 0], [host.said(log) for host in hosts]

    def alone(*words: str) -> None:
        job = hosts[0].start(sys.executable, "-m", "pipeline", *words, log="alone")
        assert job.wait(timeout=150) == 0, hosts[0].said("alone")

    write = ["prepare", "--dataset", str(tmp_path / "data.npz"), "--model", "cnn", "--shards", "13KB", "--output_dir"]
    together(*write, "s3://bucket/images", log="prepare")
    assert all("shards of up to 16 samples to s3://" in host.said("prepare") for host in hosts)
    alone(*write, "shards")
    client = boto3.client("s3", region_name="us-east-1")
    names = [each["Key"].removeprefix("images/") for each in client.list_objects_v2(Bucket="bucket")["Contents"]]
    here = {path.name: path.read_bytes() for path in (hosts[0].folder / "shards").iterdir()}
    assert here == {n: client.get_object(Bucket="bucket", Key=f"images/{n}")["Body"].read() for n in names}

    train = ["train", "--model", "cnn", "--epochs", "3", "--batch_size", "16", "--precision", "fp32", "--shuffle_window", "40",
             "--device", "cpu", "--cache_dir", "cache"]  # fmt: skip
    room = ["--local_cache_gb", "0.00011"]
    together(*train, "--dataset", "s3://bucket/images", *room, "--output_dir", "run", log="train")
    alone(*train, "--dataset", "shards", "--output_dir", "alone-run")
    (holder,) = [host for host in hosts if (host.folder / "run").exists()]
    both, one = (
        [row["train/loss"] for row in read_rows(folder) if "train/loss" in row]
        for folder in (holder.folder / "run", hosts[0].folder / "alone-run")
    )
    np.testing.assert_allclose(both, one, rtol=1e-4)
    kept = {host.name: [*(host.folder / "cache").glob("*/shards/train-*.arrow")] for host in hosts}
    assert all(0 < sum(path.stat().st_size for path in found) <= 110_000 for found in kept.values()), kept
