"""A tracking server that fails while a model trains: the training ends as ever, and MLflow has every figure once in the end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline import run as run_folder
from pipeline import signals
from pipeline.cli import main
from pipeline.run import Run
from pipeline.tracking import runs, sender
from pipeline.tracking.sender import NOT_METRICS
from tests.conftest import read_rows
from tests.servers import FAULTS, Proxy, mlflow_server

pytestmark = pytest.mark.timeout(300)

EPOCHS = 6
FLAGS = ["--model", "two_layer", "--batch_size", "4", "--epochs", str(EPOCHS), "--output_dir", "run"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, session_folder: Path) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as uri:
        yield uri


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    proxy = Proxy(server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    monkeypatch.setattr(sender, "_PAUSE", 0.1)
    monkeypatch.setattr(sender, "_LONGEST_PAUSE", 0.2)
    yield proxy
    proxy.fail("")
    proxy.close()
    monkeypatch.undo()
    runs.configure()


class _When:
    """Calls actions when metrics.jsonl has reached a number of epochs, while the training goes on."""

    def __init__(self, actions: dict[int, Callable[[], None]]) -> None:
        self._actions = dict(actions)
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        deadline = time.monotonic() + 100
        while self._actions and time.monotonic() < deadline:
            epochs = 0
            if Path("run/metrics.jsonl").exists():
                epochs = Path("run/metrics.jsonl").read_text().count("val/loss")
            for due in [epoch for epoch in self._actions if epoch <= epochs]:
                self._actions.pop(due)()
            time.sleep(0.005)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join(timeout=5)
        assert not self._actions, "the training ended before all was done"


def _train(cache_dir: Path, *flags: str) -> int:
    return main(["train", *FLAGS, "--cache_dir", str(cache_dir), *flags])


def _assert_everything_is_there_once(server: str) -> None:
    run = Run.open(Path("run"), check=False)
    client = MlflowClient(server)
    found = client.get_run(run.mlflow_run_id)
    assert found.info.status == "FINISHED" and found.data.params["model"] == "two_layer"
    assert found.data.tags["world_size"] == "1" and len(found.inputs.dataset_inputs) == 1
    rows = read_rows(run.folder)
    steps = [row["step"] for row in rows if "train/loss" in row]
    assert steps == list(range(10, EPOCHS * 160 + 1, 10))
    for name in {name for row in rows for name in row} - set(NOT_METRICS):
        sent = client.get_metric_history(run.mlflow_run_id, name)
        assert [(m.step, m.value) for m in sent] == [(r["step"], r[name]) for r in rows if name in r], name
    assert {a.path for a in client.list_artifacts(run.mlflow_run_id)} >= {"weights.safetensors", "manifest.json", "plots"}


@pytest.mark.parametrize("fault", [f if f == "refuse" else pytest.param(f, marks=pytest.mark.slow) for f in FAULTS])
def test_a_server_that_fails_in_mid_run_loses_no_figure(
    fault: str, proxy: Proxy, server: str, cache_dir: Path, capfd: Any
) -> None:
    """From the first epoch on to the end; what it did not take is sent afterwards, once."""
    with _When({1: lambda: proxy.fail(fault)}):
        assert _train(cache_dir) == 0
    told = capfd.readouterr().err
    assert f"MLflow at {proxy.uri} does not take the metrics" in told and "Traceback" not in told
    assert "Send it later: python -m pipeline sync --run run" in told
    assert proxy.failed or fault == "refuse"
    proxy.fail("")
    assert main(["sync", "--run", "run"]) == 0
    assert "metrics sent" in capfd.readouterr().out
    _assert_everything_is_there_once(server)
    assert main(["sync", "--run", "run"]) == 0
    assert "run: 0 metrics sent" in capfd.readouterr().out


@pytest.mark.parametrize("fault", [pytest.param("refuse", marks=pytest.mark.slow), "lost answers"])
def test_a_server_that_comes_back_gets_what_it_missed(
    fault: str, proxy: Proxy, server: str, cache_dir: Path, capfd: Any
) -> None:
    with _When({1: lambda: proxy.fail(fault), EPOCHS - 2: lambda: proxy.fail("")}):
        assert _train(cache_dir) == 0
    assert "sync" not in capfd.readouterr().err
    _assert_everything_is_there_once(server)


def test_strict_tracking_ends_the_training_with_a_checkpoint(proxy: Proxy, cache_dir: Path, capfd: Any) -> None:
    with _When({1: lambda: proxy.fail("500")}):
        assert _train(cache_dir, "--epochs", "400", "--strict_tracking", "true") == 1
    told = capfd.readouterr().err
    assert "strict_tracking=true, and MLflow does not take the metrics" in told
    assert "goes on" not in told, told
    assert list(Path("run/checkpoints").glob("*.pt"))


def test_a_stopped_run_goes_on_without_a_server_and_is_sent_whole_later(
    proxy: Proxy, server: str, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _When({1: lambda: monkeypatch.setattr(signals, "_pending", 15)}):
        assert _train(cache_dir) == 143
    run_id = Run.open(Path("run"), check=False).mlflow_run_id
    assert MlflowClient(server).get_run(run_id).info.status == "KILLED"
    proxy.fail("refuse")
    assert main(["train", "--output_dir", "run", "--resume", "true", "--cache_dir", str(cache_dir)]) == 0
    proxy.fail("")
    assert main(["sync", "--run", "run"]) == 0
    _assert_everything_is_there_once(server)


def test_a_server_that_hangs_does_not_hold_up_a_stop(
    proxy: Proxy, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    stopped = []

    def stop() -> None:
        stopped.append(time.monotonic())
        monkeypatch.setattr(signals, "_pending", 15)

    with _When({1: lambda: proxy.fail("hang"), 3: stop}):
        assert _train(cache_dir) == 143
    assert time.monotonic() - stopped[0] < 15
    told = capfd.readouterr()
    assert "Send it later: python -m pipeline sync --run run" in told.err
    assert told.out.splitlines()[-1] == "python -m pipeline train --output_dir run --resume true"


def test_a_folder_in_use_is_refused(proxy: Proxy, cache_dir: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _train(cache_dir) == 0
    monkeypatch.setattr(run_folder, "_LOCK_WAIT", 0.2)
    ready, hold = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with run_folder.locked(Path("run")):
            os.write(ready[1], b"x")
            os.read(hold[0], 1)
        os._exit(0)
    try:
        os.read(ready[0], 1)
        assert run_folder.in_use(Path("run"))
        assert main(["sync", "--run", "run"]) == 2
        assert "output_dir=run is in use by another process. Wait" in capfd.readouterr().err
    finally:
        os.write(hold[1], b"x")
        os.waitpid(child, 0)
    assert not run_folder.in_use(Path("run")) and main(["sync", "--run", "run"]) == 0
