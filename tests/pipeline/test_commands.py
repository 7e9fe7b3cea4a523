"""What the commands leave behind and refuse, run in this process."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from mlflow import MlflowClient
from PIL import Image

from export import artifacts
from export.module import ExportError
from export.runner import Runner
from models import MODELS
from pipeline import files, manifest
from pipeline.cli import main
from pipeline.files import digest_of
from pipeline.run import Run
from tests.conftest import all_runs, read_rows

Trained = Callable[[str], Run]
Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.mark.parametrize("model", MODELS)
def test_a_training_leaves_a_sealed_folder_with_its_report_and_pictures(trained: Trained, model: str) -> None:
    run = trained(model)
    assert Run.open(run.folder) == run
    names = {p.relative_to(run.folder).as_posix() for p in run.folder.rglob("*") if p.is_file()}
    assert names >= {"config.json", "metrics.jsonl", "weights.safetensors", "last.safetensors", "test.json", "parameters.md"}
    pictures = {Path(n).stem for n in names if n.startswith("plots/")}
    expected = {"curves"} | ({"fitted_curve"} if not run.task.has_decisions else {"confusion_matrix", "tsne"})
    expected |= {"top_losses"} if run.data.is_image else set()
    expected |= {"roc_pr"} if len(run.data.classes) == 2 else set()
    expected |= {"scatter", "decision_regions", "activations"} if model == "two_layer" else set()
    assert pictures == expected
    for picture in pictures:
        with Image.open(run.folder / "plots" / f"{picture}.png") as image:
            assert image.format == "PNG"
            assert image.info["Title"] == f"{model} on {run.config.dataset}, run {run.folder.name}"


@pytest.mark.parametrize("model", MODELS)
def test_the_report_is_that_of_the_kept_weights_on_the_test_split(trained: Trained, model: str, cache_dir: Path) -> None:
    import torch

    from pipeline.data.loader import open_split
    from pipeline.data.prepare import prepare

    run = trained(model)
    report = json.loads((run.folder / "test.json").read_text())
    split = open_split(prepare(run.config), "test")
    with torch.no_grad():
        scores, _ = run.load_model()(split.x)
    if not run.task.has_decisions:
        assert report["rmse"] == pytest.approx((scores - split.y).square().mean().sqrt().item(), rel=1e-5)
        assert report["r2"] > 0.5 and (run.folder / "formula.txt").read_text().startswith("y = ")
        assert MlflowClient().get_run(run.mlflow_run_id).data.tags["formula"].startswith("y = ")
    else:
        predicted = (scores[:, 0] > 0).long() if scores.shape[1] == 1 else scores.argmax(1)
        assert report["accuracy"] == pytest.approx((predicted == split.y).float().mean().item())
        assert sum(map(sum, report["confusion_matrix"])) == len(split)
        assert report["accuracy"] > (0.75 if model == "two_layer" else 0.85)


def test_other_data_than_the_trainings_is_refused(trained: Trained, tmp_path: Path, capsys: Any) -> None:
    run = trained("mlp")
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", run.folder, copy], check=True, timeout=30)
    config = json.loads((copy / "config.json").read_text())
    config["data"]["sha256"] = "0" * 64
    del config["sha256"]
    (copy / "config.json").write_text(json.dumps(config | {"sha256": digest_of(config)}))
    run_in_copy = Run.open(copy, check=False)
    (copy / "manifest.json").unlink()
    manifest.seal(run_in_copy.folder, run_in_copy.mlflow_run_id, *manifest.FILES["train"])
    assert main(["evaluate", "--run", str(copy), "--cache_dir", str(run.config.cache_dir)]) == 2
    assert "are not those of the training" in capsys.readouterr().err


def test_verify_before_export_says_what_to_do(trained: Trained, capsys: Any) -> None:
    run = trained("two_layer")
    assert main(["verify", "--run", str(run.folder), "--cache_dir", str(run.config.cache_dir)]) == 2
    assert f"python -m pipeline export --run {run.folder}" in capsys.readouterr().err
    assert main(["verify", "--run", str(run.folder), "--onnx", "no.onnx"]) == 2
    assert "onnx=no.onnx is not a file" in capsys.readouterr().err


def test_an_output_folder_that_holds_a_run_is_refused_before_anything_happens(trained: Trained, capsys: Any) -> None:
    run = trained("mlp")
    digest = files.sha256(run.folder / "manifest.json")
    number = len(all_runs())
    assert main(["train", "--model", "mlp", "--output_dir", str(run.folder)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert files.sha256(run.folder / "manifest.json") == digest and len(all_runs()) == number


def test_a_folder_that_cannot_be_written_is_told_before_an_mlflow_run_exists(cache_dir: Path, capsys: Any) -> None:
    number = len(all_runs())
    assert main(["train", "--model", "mlp", "--output_dir", "/proc/nowhere", "--cache_dir", str(cache_dir)]) == 2
    assert "output_dir=/proc/nowhere cannot be written" in capsys.readouterr().err
    assert len(all_runs()) == number


def test_the_last_line_is_a_command_that_works(trained: Trained, cache_dir: Path, capsys: Any, tmp_path: Path) -> None:
    flags = ["--model", "polynomial", "--epochs", "2", "--output_dir", "run", "--cache_dir", str(cache_dir)]
    assert main(["train", *flags]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("next: python -m pipeline export --run ")
    assert main(last.split()[4:]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("next: python -m pipeline verify --run ")
    assert main(last.split()[4:]) == 0
    assert "**PASSED**" in capsys.readouterr().out


def test_files_that_answer_otherwise_cost_no_picture_and_are_told_first(
    cache_dir: Path, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(run: Run, **data: Any) -> dict[str, object]:
        figures = export_run(run, **data)
        path = run.folder / "export" / "model.onnx"
        model = onnx.load(path)
        first = model.graph.initializer[0]
        first.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(first) + 1, first.name))
        onnx.save(model, path)
        return figures

    export_run = artifacts.export_run
    monkeypatch.setattr(artifacts, "export_run", spoil)
    flags = ["--model", "two_layer", "--epochs", "2", "--output_dir", str(tmp_path / "run"), "--cache_dir", str(cache_dir)]
    assert main(["run", *flags]) == 1
    assert "exported files disagree with the model:\nmodel.onnx: its weights differ" in capsys.readouterr().err
    run = Run.open(tmp_path / "run")
    pictures = list((run.folder / "plots").iterdir())
    assert len(pictures) == 7
    told = (run.folder / "export" / "parity.md").stat().st_mtime_ns
    assert told < min(picture.stat().st_mtime_ns for picture in pictures)


def test_an_export_that_fails_costs_neither_the_pictures_nor_a_process(
    cache_dir: Path, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_run: Run, **_: Any) -> None:
        raise ExportError("onnx: no such operator")

    started: list[Runner] = []
    begin = Runner.__init__
    monkeypatch.setattr(Runner, "__init__", lambda self, kinds: (started.append(self), begin(self, kinds))[1])
    monkeypatch.setattr("export.artifacts.export_run", fail)
    flags = ["--model", "two_layer", "--epochs", "2", "--output_dir", str(tmp_path / "run"), "--cache_dir", str(cache_dir)]
    assert main(["run", *flags]) == 1
    assert "onnx: no such operator" in capsys.readouterr().err
    run = Run.open(tmp_path / "run")
    names = {p.stem for p in (run.folder / "plots").iterdir()}
    assert names == {"curves", "confusion_matrix", "roc_pr", "tsne", "scatter", "decision_regions", "activations"}
    artifacts = {Path(file.path).stem for file in MlflowClient().list_artifacts(run.mlflow_run_id, "plots")}
    assert artifacts == names and MlflowClient().get_run(run.mlflow_run_id).info.status == "FAILED"
    (runner,) = started
    assert {process.returncode for process in runner._processes.values()} == {-signal.SIGKILL}


def test_the_training_curve_has_every_step_window(trained: Trained) -> None:
    c, rows = trained("mlp").config, [r for r in read_rows(trained("mlp").folder) if "train/loss" in r]
    steps = 4 * -(-341 // c.batch_size)
    assert [row["step"] for row in rows] == list(range(10, steps + 1, 10))
    smaller = c.batch_size - 341 % c.batch_size  # samples that the last batch of an epoch lacks
    assert all(10 * c.batch_size - row["samples"] in (0, smaller) for row in rows)  # alike


def test_samples_that_were_trained_on_are_never_called_a_test(
    cache_dir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    flags = ["--model", "mlp", "--recipe", "reference", "--epochs", "20", "--cache_dir", str(cache_dir), "--output_dir", "run"]
    assert main(["run", *flags]) == 0
    said = capsys.readouterr().out
    assert "569 train samples of 2 classes" in said and "no samples are held out for a test" in said
    assert "train/final/accuracy" in said and "test/" not in said and "val/" not in said
    run = Run.open(tmp_path / "run")
    assert (run.folder / "train.json").is_file() and not (run.folder / "test.json").exists()
    assert not [name for row in read_rows(run.folder) for name in row if name.startswith(("test/", "val/"))]
    tracked = MlflowClient().get_run(run.mlflow_run_id)
    assert tracked.data.tags["evaluated_on"] == "train" and not [m for m in tracked.data.metrics if m.startswith("test/")]
    report = (run.folder / "export" / "parity.md").read_text()
    assert "The whole training set" in report and "No samples were held out for a test" in report and "test set" not in report
    values = json.loads((run.folder / "export" / "parity.json").read_text())
    assert values["split"] == "train" and values["num_samples"] == 569
