"""Exported probabilities are those of logits / T in every format, and the proof knows T."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from export import temperature
from export.artifacts import FOLDER, export_run
from export.gates import Limits
from export.verify import verify_run
from pipeline import calibration
from pipeline.cli import main
from pipeline.data.loader import open_split
from pipeline.errors import Failure, UserError
from pipeline.run import Run
from tests.export.conftest import Trained

FORMATS = "onnx,torchscript,pt2,onnx-int8,onnx-fp16"


@pytest.fixture(scope="module")
def calibrated(make_run: Callable[[str, Path], Trained], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of `mlp` (two classes, one score), whose weights are drawn, exported to every format at a temperature."""
    made = make_run("mlp", tmp_path_factory.mktemp("calibrated") / "run")
    config = dataclasses.replace(made.run.config, calibrate="temperature", formats=FORMATS)
    run = dataclasses.replace(made.run, config=config)
    export_run(run, data=made.data)
    return Trained(run, made.data)


def _session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_t_is_fitted_on_the_validation_samples_and_kept_with_the_export(calibrated: Trained) -> None:
    run, kept = calibrated.run, temperature.kept(calibrated.run)
    val = open_split(calibrated.data, "val")
    with torch.no_grad():
        scores = run.load_model()(val.x)[0].numpy()
    assert kept["temperature"] == pytest.approx(calibration.fit_temperature(scores, val.y.numpy()), rel=1e-3)
    assert kept["split"] == "val" and kept["num_samples"] == len(val) and kept["after"]["nll"] < kept["before"]["nll"]


def test_every_format_gives_the_probabilities_of_logits_over_t_and_passes_its_proof(calibrated: Trained) -> None:
    run, value = calibrated.run, temperature.kept(calibrated.run)["temperature"]
    x = open_split(calibrated.data, "test").x[:20]
    found = _session(run.folder / FOLDER / "model.onnx")
    logits, probabilities = found.run(["logits", "probabilities"], {"input": x.numpy()})
    want = run.task.probabilities(torch.from_numpy(logits.astype(np.float64)) / value).numpy()
    np.testing.assert_allclose(probabilities, want, atol=1e-6)
    assert abs(want - run.task.probabilities(torch.from_numpy(logits)).numpy()).max() > 0.01, "T changes nothing here"
    assert json.loads(found.get_modelmeta().custom_metadata_map["temperature"]) == value
    verdict = verify_run(run, data=calibrated.data, limits=Limits(max_metric_drop=0.5))
    assert verdict.passed, verdict.problems
    assert set(verdict.report["artifacts"]) | set(verdict.report.get("rejected", {})) == {*FORMATS.split(",")}
    told = [p for part in verdict.report.get("rejected", {}).values() for p in part["problems"]]
    assert not [p for p in told if "probabilities" in p or "metadata" in p], told


def _others(calibrated: Trained, tmp_path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(calibrated.run.folder / FOLDER / "model.onnx")
    change(model)
    onnx.save(model, tmp_path / "other.onnx")
    return tmp_path / "other.onnx"


def _without_t(model: onnx.ModelProto) -> None:
    """Have the probabilities be those of T = 1: the division by it is passed by."""
    division = next(node for node in reversed(model.graph.node) if node.op_type == "Div")
    for node in model.graph.node:
        node.input[:] = [division.input[0] if name == division.output[0] else name for name in node.input]
    model.graph.node.remove(division)


def _says(value: object) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for entry in model.metadata_props:
            if entry.key == "temperature":
                entry.value = json.dumps(value)

    return change


def test_a_file_with_other_probabilities_or_another_t_is_found_out(calibrated: Trained, tmp_path: Path) -> None:
    cases = {"output probabilities differs": _without_t, "its metadata says temperature=3": _says(3)}
    for sentence, change in cases.items():
        verdict = verify_run(calibrated.run, data=calibrated.data, onnx=_others(calibrated, tmp_path, change))
        assert not verdict.passed and any(sentence in problem for problem in verdict.problems), verdict.problems


def test_a_small_file_is_held_to_t_too(calibrated: Trained, tmp_path: Path) -> None:
    made = tmp_path / "run"
    shutil.copytree(calibrated.run.folder, made)
    run, limits = dataclasses.replace(calibrated.run, folder=made), Limits(max_metric_drop=1.0)
    file = next(path for folder in ("export", "rejected") if (path := made / folder / "model.fp16.onnx").is_file())
    model = onnx.load(file)
    _without_t(model)
    onnx.save(model, tmp_path / "other.onnx")
    verdict = verify_run(run, data=calibrated.data, onnx=tmp_path / "other.onnx", kind="onnx-fp16", limits=limits)
    assert any("its probabilities are not those of its logits" in problem for problem in verdict.problems), verdict.problems


def test_a_file_that_tells_a_t_which_the_run_has_not_is_found_out() -> None:
    assert [*temperature.wrong({"temperature": 2.0}, 1.0)] and not [*temperature.wrong({}, 1.0)]
    assert [temperature.said({"temperature": v}, 1.5) for v in (2.0, 0, -1, True, "x", float("nan"))] == [2.0] + [1.5] * 5


def test_it_is_refused_where_there_is_nothing_to_fit_to(
    trained: Callable[[str], Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curve = trained("polynomial")
    before = {p: p.stat().st_mtime_ns for p in curve.folder.rglob("*")}
    assert main(["export", "--run", str(curve.folder), "--calibrate", "temperature"]) == 2
    assert "has no effect on regression, which has no probabilities" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in curve.folder.rglob("*")} == before
    run = trained("mlp")
    without = dataclasses.replace(
        run, data=dataclasses.replace(run.data, counts={"train": 9}),
        config=dataclasses.replace(run.config, calibrate="temperature"),
    )  # fmt: skip
    with pytest.raises(UserError, match="needs validation samples"):
        temperature.refuse(without)
    assert main(["run", "--model", "mlp", "--val_split", "0", "--calibrate", "temperature", "--output_dir", str(tmp_path)]) == 2
    assert "calibrate=temperature has no effect without validation samples" in capsys.readouterr().err
    assert main(["run", "--model", "polynomial", "--calibrate", "temperature", "--output_dir", str(tmp_path)]) == 2
    assert "which has no classes or labels" in capsys.readouterr().err and not [*tmp_path.iterdir()]


def test_where_no_t_is_best_the_export_fails_and_leaves_what_was_there(
    calibrated: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(scores: object, target: object) -> float:
        raise ValueError("no temperature fits")

    before = {p: p.read_bytes() for p in (calibrated.run.folder / FOLDER).iterdir()}
    monkeypatch.setattr(calibration, "fit_temperature", fit)
    with pytest.raises(Failure, match="Export with --calibrate none"):
        export_run(calibrated.run, data=calibrated.data)
    assert {p: p.read_bytes() for p in (calibrated.run.folder / FOLDER).iterdir()} == before


def test_exported_again_it_has_the_same_bytes_and_without_it_no_t_is_left(calibrated: Trained, tmp_path: Path) -> None:
    shutil.copytree(calibrated.run.folder, tmp_path / "run")
    config = dataclasses.replace(calibrated.run.config, formats="onnx")
    run = dataclasses.replace(calibrated.run, folder=tmp_path / "run", config=config)
    export_run(run, data=calibrated.data)
    exported = run.folder / FOLDER / "model.onnx"
    assert exported.read_bytes() == (calibrated.run.folder / FOLDER / "model.onnx").read_bytes()
    export_run(dataclasses.replace(run, config=dataclasses.replace(config, calibrate="none")))
    assert not temperature.kept(run) and "temperature" not in _session(exported).get_modelmeta().custom_metadata_map
