"""Real MLflow stores: sqlite for most, and a real server on loopback."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline import store
from pipeline.cli import main
from pipeline.config import UserError, to_json
from pipeline.store import Run
from pipeline.tracking import runs
from tests.conftest import all_runs, read_rows
from tests.servers import mlflow_server

Trained = Callable[[str], Run]


def test_one_training_is_one_finished_run(trained: Trained) -> None:
    run = trained("mlp")
    found = [each for each in all_runs() if each.data.tags.get("output_dir") == str(run.folder)]
    assert [r.info.run_id for r in found] == [run.mlflow_run_id]
    assert found[0].info.status == "FINISHED"


def test_parameters_are_all_fields_resolved(trained: Trained) -> None:
    run = trained("mlp")
    params = MlflowClient().get_run(run.mlflow_run_id).data.params
    assert params == {k: str(v) for k, v in to_json(run.config).items()}
    assert params["lr"] == str(run.config.lr)


def test_the_curves_in_mlflow_are_those_of_the_run_folder(trained: Trained) -> None:
    run = trained("mlp")
    rows = read_rows(run.folder)
    assert {k for row in rows for k in row} >= {"train/loss", "train/accuracy", "val/loss", "val/accuracy", "train/lr"}
    for name in ("train/loss", "train/epoch_loss", "val/accuracy", "train/lr"):
        sent = MlflowClient().get_metric_history(run.mlflow_run_id, name)
        assert [(m.step, m.value) for m in sent] == [(r["step"], r[name]) for r in rows if name in r]


def test_test_figures_and_where_it_came_from_are_on_the_run(trained: Trained) -> None:
    run = trained("mlp")
    found = MlflowClient().get_run(run.mlflow_run_id)
    assert {"test/accuracy", "test/loss", "test/roc_auc", "test/f1_macro"} <= set(found.data.metrics)
    tags = found.data.tags
    assert tags["data_sha256"] == run.data["data_sha256"] and tags["world_size"] == "1" and tags["device"] == "cpu"
    assert tags["host"] == socket.gethostname() and tags["git_dirty"] in ("true", "false") and tags["git_commit"]
    (dataset,) = found.inputs.dataset_inputs
    assert dataset.dataset.name == "breast_cancer" and run.data["data_sha256"].startswith(dataset.dataset.digest)


def test_the_run_folder_is_mirrored_without_checkpoints(trained: Trained) -> None:
    run = trained("mlp")
    client = MlflowClient()
    names = {a.path for a in client.list_artifacts(run.mlflow_run_id)}
    assert names >= {"config.json", "metrics.jsonl", "weights.safetensors", "test.json", "manifest.json", "plots"}
    assert "checkpoints" not in names


def test_a_server_that_does_not_answer_is_a_sentence_before_anything_exists(
    working_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, cache_dir: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    assert main(["train", "--model", "mlp", "--cache_dir", str(cache_dir)]) == 2
    assert "MLFLOW_TRACKING_URI=http://127.0.0.1:9 does not answer" in capsys.readouterr().err
    assert list(working_folder.iterdir()) == []


def test_a_relative_store_under_mlflow_run_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///elsewhere.db")
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(UserError, match=r"is relative.*absolute"):
        runs.configure()


def test_an_unknown_run_is_a_sentence(capsys: Any) -> None:
    assert main(["evaluate", "--run", "f" * 32]) == 2
    assert "is neither a folder nor a run at sqlite:///" in capsys.readouterr().err


def test_a_later_stage_nests_the_run_that_mlflow_run_opened(
    trained: Trained, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained("mlp")
    client = MlflowClient()
    wrapper = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", wrapper)
    assert main(["evaluate", "--run", str(run.folder), "--cache_dir", str(cache_dir)]) == 0
    assert client.get_run(wrapper).data.tags["mlflow.parentRunId"] == run.mlflow_run_id
    assert client.get_run(wrapper).data.metrics == {}


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("server")) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri
    monkeypatch.undo()
    runs.configure()


@pytest.mark.timeout(300)
def test_later_stages_work_from_another_folder_with_only_the_server_to_reach(
    server: str, cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ["--cache_dir", str(cache_dir)]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["train", "--model", "moons", "--epochs", "5", *cache]) == 0
    (folder,) = (tmp_path / "here" / "runs").iterdir()
    run_id = store.open_run(folder).mlflow_run_id
    folder.rename(tmp_path / "out-of-reach")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    client = MlflowClient(server)
    before = client.get_run(run_id).data.metrics
    for command in ("evaluate", "export", "verify"):
        assert main([command, "--run", run_id, *(cache if command != "export" else [])]) == 0
    found = client.get_run(run_id)
    assert {k: v for k, v in found.data.metrics.items() if k in before} == before
    assert found.data.metrics["export/onnx/argmax_flips"] == 0 and found.data.tags["parity"] == "passed"
    assert found.info.status == "FINISHED" and len(all_runs(server)) == 1
    assert {a.path for a in client.list_artifacts(run_id, "export")} >= {"export/model.onnx", "export/parity.md"}
    (model,) = client.search_logged_models([found.info.experiment_id])
    assert model.source_run_id == run_id
