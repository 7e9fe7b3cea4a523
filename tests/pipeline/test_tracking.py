"""Real MLflow stores: sqlite for most, and a real server on loopback."""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline import manifest
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.resolve import applicable
from pipeline.run import Run
from pipeline.tracking import runs
from tests.conftest import ROOT, all_runs, read_rows
from tests.servers import mlflow_server

Trained = Callable[[str], Run]


def test_one_training_is_one_finished_run(trained: Trained) -> None:
    run = trained("mlp")
    found = [each for each in all_runs() if each.data.tags.get("output_dir") == str(run.folder)]
    assert [r.info.run_id for r in found] == [run.mlflow_run_id]
    assert found[0].info.status == "FINISHED"


def test_parameters_are_those_that_apply_and_say_what_auto_became(trained: Trained) -> None:
    run = trained("mlp")
    params = MlflowClient().get_run(run.mlflow_run_id).data.params
    expected = {k: str(v) for k, v in applicable(run.config).items() if k != "cuda_graph"}  # which is one thing of a GPU
    assert params == expected | {"device": "cpu", "nproc": "1"}
    assert params["lr"] == str(run.config.lr) and params["precision"] in ("fp32", "bf16")


def test_a_run_is_named_like_its_folder_and_lies_in_the_experiment_of_its_data(trained: Trained) -> None:
    run = trained("mlp")
    client = MlflowClient()
    found = client.get_run(run.mlflow_run_id)
    assert found.info.run_name == run.folder.name == "trained-mlp"
    assert client.get_experiment(found.info.experiment_id).name == "breast_cancer"


def test_two_that_begin_an_experiment_at_one_moment_both_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    first = MlflowClient().create_experiment("begun-by-two")
    look, seen = MlflowClient.get_experiment_by_name, []

    def too_early(self: MlflowClient, name: str) -> Any:
        seen.append(name)
        return None if len(seen) == 1 else look(self, name)

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", too_early)
    run_id = runs.create_run(dataset="begun-by-two")
    assert len(seen) == 2 and MlflowClient().get_run(run_id).info.experiment_id == first


def test_the_source_of_a_run_says_what_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's table shows the last part of a file's name: `__main__.py` would be every program's."""
    for started, said in {
        str(ROOT / "pipeline" / "__main__.py"): "trainyard",
        "/usr/bin/trainyard": "/usr/bin/trainyard",
        "/x/other/__main__.py": "/x/other/__main__.py",
    }.items():
        monkeypatch.setattr("sys.argv", [started])
        assert MlflowClient().get_run(runs.create_run()).data.tags["mlflow.source.name"] == said


def test_a_lost_answer_leaves_no_second_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's client asks again where no answer came, and the server begins another run each time."""
    create, made = MlflowClient.create_run, []

    def asked_twice(self: MlflowClient, *given: Any, **words: Any) -> Any:
        made.extend(create(self, *given, **words) for _ in range(2))
        return made[-1]

    monkeypatch.setattr(MlflowClient, "create_run", asked_twice)
    run_id = runs.create_run(dataset="asked-twice")
    client = MlflowClient()
    number = client.get_experiment_by_name("asked-twice").experiment_id
    assert [each.info.run_id for each in client.search_runs([number])] == [run_id] == [made[1].info.run_id]
    assert client.get_run(made[0].info.run_id).info.status == "KILLED"


def test_a_name_or_an_experiment_that_somebody_gave_stays(cache_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = MlflowClient()
    flags = ["train", "--model", "polynomial", "--epochs", "1", "--cache_dir", str(cache_dir)]
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    monkeypatch.setenv("MLFLOW_RUN_NAME", "first-try")
    assert main([*flags, "--output_dir", "a"]) == 0
    monkeypatch.delenv("MLFLOW_RUN_NAME")
    monkeypatch.setenv("MLFLOW_RUN_ID", client.create_run("0", run_name="of-mlflow-run").info.run_id)
    assert main([*flags, "--output_dir", "b"]) == 0
    first, second = (client.get_run(Run.open(Path(folder)).mlflow_run_id).info for folder in "ab")
    assert (first.run_name, second.run_name, second.experiment_id) == ("first-try", "of-mlflow-run", "0")
    assert client.get_experiment(first.experiment_id).name == "mine"


def test_a_name_that_mlflow_makes_up_is_known_as_such() -> None:
    client = MlflowClient()
    number = client.create_experiment("made-up")
    names = [client.create_run(number).info.run_name for _ in range(40)]
    assert all(map(runs.is_made_up, names)), names
    assert not any(map(runs.is_made_up, ["cnn-2a2cd71d", "lr-sweep-3", "fun-hare", "fun-hare-x", "resnet-baseline-7", "", "-"]))


def test_figures_of_the_finished_model_are_of_no_step_and_few_come_before_the_curves(trained: Trained) -> None:
    """MLflow's page draws a dot where a lone figure has a step, and its sections are in the order of the alphabet."""
    metrics = MlflowClient().get_run(trained("mlp").mlflow_run_id).data.metrics
    history = {name: MlflowClient().get_metric_history(trained("mlp").mlflow_run_id, name) for name in metrics}
    sections = sorted({name.rpartition("/")[0] for name in metrics if not name.startswith("system/")} - {""})
    assert sections[:3] == ["test", "train", "val"]  # another test may have proven the same run before
    assert all(section.startswith("verify") for section in sections[3:])
    assert {name for name in metrics if name.startswith("test/")} == {"test/loss", "test/accuracy", "test/roc_auc"}
    assert all(point.step == 0 for name, points in history.items() if name.startswith("test") for point in points)
    assert all(point.step > 0 for name, points in history.items() if name.startswith(("train", "val")) for point in points)


def test_the_mlflow_model_is_named_told_and_tagged_and_another_file_leaves_no_trace(
    trained: Trained, cache_dir: Path, capsys: Any
) -> None:
    run = trained("mlp")
    client, flags = MlflowClient(), ["--run", str(run.folder), "--cache_dir", str(cache_dir)]
    assert main(["export", *flags[:2]]) == 0
    capsys.readouterr()
    assert main(["verify", *flags]) == 0
    found = client.get_run(run.mlflow_run_id)
    address = found.data.tags["model_uri"]
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"MLflow model: {address} (serve it: mlflow models serve -m {address} --env-manager local)",
        f"next: python -m pipeline report --run {run.folder}",
    ]
    model = client.get_logged_model(address.removeprefix("models:/"))
    assert model.name == "mlp-breast_cancer" and model.source_run_id == run.mlflow_run_id
    assert all(name.startswith("verify/") for name in found.data.metrics if "argmax" in name or "size" in name)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    (code,) = [block for block in blocks if "search_runs" in block]
    exec(compile(code, "README.md", "exec"), {})
    assert re.search(r"trained-mlp +mlp +breast_cancer +0\.\d+ +passed", capsys.readouterr().out)
    files = {item.path for item in client.list_artifacts(run.mlflow_run_id, "export")}
    other = shutil.copy(run.folder / "export" / "model.onnx", "other.onnx")
    assert main(["verify", *flags, "--onnx", str(other)]) == 0
    after = client.get_run(run.mlflow_run_id)
    assert (run.folder / "export" / "parity-other.md").is_file()
    assert not [name for name in manifest.read(run.folder)[1] if "other" in name], "it would be sent with the next stage"
    assert after.data.to_dictionary() == found.data.to_dictionary()
    assert {item.path for item in client.list_artifacts(run.mlflow_run_id, "export")} == files


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
    assert {"test/accuracy", "test/loss", "test/roc_auc", "test_f1_macro"} <= set(found.data.metrics)
    tags = found.data.tags
    assert tags["data_sha256"] == run.data.sha256 and tags["world_size"] == "1" and tags["device"] == "cpu"
    assert tags["host"] == socket.gethostname() and tags["git_dirty"] in ("true", "false") and tags["git_commit"]
    (dataset,) = found.inputs.dataset_inputs
    assert dataset.dataset.name == "breast_cancer" and run.data.sha256.startswith(dataset.dataset.digest)


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
    assert "is neither a folder nor a run that can be seen at sqlite:///" in capsys.readouterr().err


def test_a_training_does_not_go_into_the_run_of_another_that_has_finished(
    trained: Trained, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, working_folder: Path
) -> None:
    run = trained("mlp")
    before = MlflowClient().get_run(run.mlflow_run_id).data.to_dictionary()
    monkeypatch.setenv("MLFLOW_RUN_ID", run.mlflow_run_id)
    assert main(["train", "--model", "mlp", "--cache_dir", str(cache_dir)]) == 2
    assert f"MLFLOW_RUN_ID={run.mlflow_run_id} is a training that has finished. Unset it" in capsys.readouterr().err
    assert MlflowClient().get_run(run.mlflow_run_id).data.to_dictionary() == before and not list(working_folder.iterdir())


def test_a_later_stage_nests_the_run_that_mlflow_run_opened(
    trained: Trained, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained("mlp")
    client = MlflowClient()
    wrapper = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", wrapper)
    assert main(["evaluate", "--run", str(run.folder), "--cache_dir", str(cache_dir)]) == 0
    tags = client.get_run(wrapper).data.tags
    assert tags["mlflow.parentRunId"] == run.mlflow_run_id and tags.items() >= runs.owner().items()
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
    assert main(["train", "--model", "two_layer", "--epochs", "5", *cache]) == 0
    (folder,) = (tmp_path / "here" / "runs").iterdir()
    run_id = Run.open(folder).mlflow_run_id
    folder.rename(tmp_path / "out-of-reach")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    client = MlflowClient(server)
    before = client.get_run(run_id).data.metrics
    for command in ("evaluate", "export", "verify"):
        assert main([command, "--run", run_id, *(cache if command != "export" else [])]) == 0
    found = client.get_run(run_id)
    assert {k: v for k, v in found.data.metrics.items() if k in before} == before
    assert found.data.metrics["verify/onnx/argmax_flips"] == 0 and found.data.tags["parity"] == "passed"
    assert found.info.status == "FINISHED" and len(all_runs(server)) == 1
    assert {a.path for a in client.list_artifacts(run_id, "export")} >= {"export/model.onnx", "export/parity.md"}
    (model,) = client.search_logged_models([found.info.experiment_id])
    assert model.source_run_id == run_id
