"""Shared by all tests: one prepared cache and one MLflow store for the session, an empty working folder for each test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # read when torch is first imported: two threads on busy cores wait for each other

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"
SHORT = {  # epochs that make each model's default recipe a matter of a second, and still teach it something
    "polynomial": "8",
    "mlp": "4",
    "two_layer": "6",
    "lenet": "2",
    "cnn": "2",
}


@pytest.fixture(scope="session", autouse=True)
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keep every cache, store and thread count of the tests away from the user's own."""
    folder = tmp_path_factory.mktemp("session")
    patch = pytest.MonkeyPatch()
    for name in [n for n in os.environ if n.startswith("MLFLOW_")] + ["RANK", "WORLD_SIZE", "LOCAL_RANK"]:
        patch.delenv(name, raising=False)
    patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    patch.setenv("MLFLOW_DISABLE_AUTO_LOGGING", "1")
    patch.setenv("PYTHONPATH", str(ROOT))
    patch.chdir(folder)  # the store lays its artifacts where it is first opened
    from pipeline.tracking.runs import configure

    configure()
    yield folder
    patch.undo()


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def seed() -> None:
    """Have each test draw the same numbers, whichever tests came before it in its process."""
    import torch

    torch.manual_seed(0)


@pytest.fixture(scope="session")
def cache_dir(session_folder: Path) -> Path:
    return session_folder / "cache"


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    if not (SHARED_DATA / "MNIST" / "raw").is_dir():
        pytest.skip(f"the real MNIST is not in {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def make_config(cache_dir: Path) -> Callable[..., Any]:
    """Return a function from flags to a configuration with the session's cache."""
    from pipeline.resolve import resolve

    def make(**flags: object) -> Any:
        return resolve({"cache_dir": str(cache_dir)} | {k: str(v) for k, v in flags.items()})

    return make


@pytest.fixture(scope="session")
def trained(session_folder: Path, cache_dir: Path) -> Callable[[str], Any]:
    """Return a function that gives a trained run of a model, trained once a session by the real command, in process."""
    from pipeline.cli import main
    from pipeline.run import Run

    folders: dict[str, Path] = {}

    def run_of(model: str) -> Any:
        if model not in folders:
            folder = session_folder / f"trained-{model}"
            flags = ["--model", model, "--epochs", SHORT[model], "--output_dir", str(folder), "--cache_dir", str(cache_dir)]
            assert main(["train", *flags]) == 0
            folders[model] = folder
        return Run.open(folders[model])

    return run_of


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs `python -m pipeline ...` as a user would, in a process of its own."""

    def run(*arguments: object, timeout: float = 100, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipeline", *map(str, arguments)],
            capture_output=True, text=True, timeout=timeout, env=os.environ | environment, check=False,
        )  # fmt: skip

    return run


def read_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def all_runs(address: str | None = None) -> list[Any]:
    """Return the runs of all experiments of an MLflow store, the newest first."""
    from mlflow import MlflowClient

    client = MlflowClient(address)
    return list(client.search_runs([each.experiment_id for each in client.search_experiments()]))
