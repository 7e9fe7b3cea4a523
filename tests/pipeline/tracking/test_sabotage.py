"""Artifacts, reports and MLflow entries that were changed on purpose: each is refused, and nothing is registered."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline import manifest
from pipeline.cli import main
from pipeline.tracking import proof
from tests.promotions import change, id_of, log_model, num_versions, reseal, set_figure, stamp, twin, version

ONNX, PARITY = Path("export/model.onnx"), Path("export/parity.json")
Sabotage = tuple[Callable[[Path, Path], object], int, str]


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _copy(name: Path | str, *, again: bool = False) -> Callable[[Path, Path], None]:
    """Take a file of another run, and seal it where it is told `again`."""

    def sabotage(folder: Path, other: Path) -> None:
        shutil.copyfile(other / name, folder / name)
        if again:
            reseal(folder)

    return sabotage


def _edit(name: Path | str, edit: Callable[[dict[str, Any]], object], *, again: bool = False) -> Callable[[Path, Path], None]:
    def sabotage(folder: Path, other: Path) -> None:
        change(folder / name, edit)
        if again:
            reseal(folder)

    return sabotage


def _report(**values: Any) -> Callable[[Path, Path], None]:
    return _edit(PARITY, lambda report: report.update(values), again=True)


def _onnx(**values: Any) -> Callable[[Path, Path], None]:
    return _edit(PARITY, lambda report: report["artifacts"]["onnx"].update(values), again=True)


def _gone(name: Path | str) -> Callable[[Path, Path], None]:
    return lambda folder, other: (folder / name).unlink()


def _unsealed(stage: str) -> Callable[[Path, Path], None]:
    return lambda folder, other: manifest.unseal(folder, id_of(folder), *manifest.FILES[stage])


def _link(folder: Path, other: Path) -> None:
    (folder / ONNX).rename(folder / "elsewhere.onnx")
    (folder / ONNX).symlink_to(folder / "elsewhere.onnx")


def _flip_and_seal(folder: Path, other: Path) -> None:
    _flip(folder / ONNX)
    reseal(folder)


def _flip_seal_and_say_so(folder: Path, other: Path) -> None:
    """Change the weights within the file, and have every hash in the folder agree with it."""
    stamp(folder, git_commit="f" * 40)
    reseal(folder)


def _other_onnx_and_say_so(folder: Path, other: Path) -> None:
    shutil.copyfile(other / ONNX, folder / ONNX)
    stamp(folder)
    reseal(folder)


def _int8(folder: Path, other: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(folder / ONNX), str(folder / "small.onnx"))
    shutil.move(folder / "small.onnx", folder / ONNX)
    reseal(folder)


def _better(folder: Path, other: Path) -> None:
    set_figure(folder, 1.0)
    reseal(folder)


LOCAL: dict[str, Sabotage] = {
    "a byte of model.onnx": (lambda folder, other: _flip(folder / ONNX), 2, "model.onnx is not the file"),
    "another run's model.onnx": (_copy(ONNX), 2, "model.onnx is not the file"),
    "another run's parity.json": (_copy(PARITY), 2, "parity.json is not the file"),
    "another run's test.json": (_copy("test.json"), 2, "test.json is not the file"),
    "another run's config.json": (_copy("config.json"), 2, "files of two runs"),
    "another run's manifest": (_copy("manifest.json"), 2, "files of two runs"),
    "parity.json edited": (_edit(PARITY, lambda r: r.update(num_samples=9)), 2, "parity.json is not the file"),
    "test.json edited": (_edit("test.json", lambda r: r.update(accuracy=1.0)), 2, "test.json is not the file"),
    "config.json edited": (_edit("config.json", lambda r: r["config"].update(seed=5)), 2, "it was changed"),
    "a hash in the manifest": (
        _edit("manifest.json", lambda r: r["sha256"].update({str(ONNX): "0" * 64})), 2, "model.onnx is not the file",
    ),
    "a manifest that is none": (lambda folder, other: (folder / "manifest.json").write_text("{"), 2, "cannot be read"),
    "model.onnx gone": (_gone(ONNX), 2, "model.onnx is missing"),
    "parity.json gone": (_gone(PARITY), 2, "parity.json is missing"),
    "test.json gone": (_gone("test.json"), 2, "test.json is missing"),
    "weights gone": (_gone("weights.safetensors"), 2, "weights.safetensors is missing"),
    "the manifest gone": (_gone("manifest.json"), 2, "training did not end"),
    "a link": (_link, 2, "is a link"),
    "never evaluated": (_unsealed("evaluate"), 2, "its evaluate was never done"),
    "never exported": (_unsealed("export"), 2, "its export was never done"),
    "never verified": (_unsealed("verify"), 2, "its verify was never done"),
    "a byte of model.onnx, sealed anew": (_flip_and_seal, 1, "is of another model.onnx"),
    "an int8 file in its place, sealed anew": (_int8, 1, "is of another model.onnx"),
    "another run's model.onnx, sealed anew": (_copy(ONNX, again=True), 1, "is of another model.onnx"),
    "another run's model.onnx, in parity.json too": (_other_onnx_and_say_so, 1, "so it is of another run"),
    "another file, in all of the folder": (_flip_seal_and_say_so, 1, "MLflow's manifest.json has another"),
    "parity failed": (_report(passed=False, problems=["model.onnx: it differs"]), 1, "did not pass (model.onnx: it differs)"),
    "parity failed without a word": (_report(passed=False), 1, "did not pass"),
    "passed as text": (_report(passed="true"), 1, "did not pass"),
    "a problem of the ONNX file alone": (_onnx(problems=["it differs"]), 1, "did not pass (it differs)"),
    "no ONNX file in the report": (_report(artifacts={}), 1, "did not pass"),
    "flips": (_onnx(argmax_flips=3), 1, "decides 3 samples otherwise"),
    "no count of flips": (_onnx(argmax_flips=None), 1, "decides None samples otherwise"),
    "other weights": (_report(weights_sha256="0" * 64), 1, "is of other weights"),
    "other data": (_report(data_sha256="0" * 64), 1, "is of other data"),
    "no samples": (_report(split_sha256=""), 1, "does not say which samples"),
    "a split that is none": (_report(split="../test"), 1, "is no split"),
    "NaN in test.json": (_edit("test.json", lambda r: r.update(accuracy=math.nan), again=True), 1, "is nan, which is no"),
    "infinity in test.json": (_edit("test.json", lambda r: r.update(accuracy=math.inf), again=True), 1, "is inf, which is no"),
    "a text in test.json": (_edit("test.json", lambda r: r.update(accuracy="0.9"), again=True), 1, "which is no number"),
    "NaN in parity.json": (_onnx(metric=None), 1, "is None, which is no number"),
    "a better figure in test.json": (_edit("test.json", lambda r: r.update(accuracy=1.0), again=True), 1, "was not measured"),
    "a better figure everywhere": (_better, 1, "MLflow's manifest.json has another test.json"),
    "a report of brackets": (lambda folder, other: _brackets(folder), 1, "brackets are nested too deeply"),
}  # fmt: skip


def _brackets(folder: Path) -> None:
    (folder / PARITY).write_text("[" * 100_000)
    reseal(folder)


@pytest.mark.parametrize("kind", LOCAL)
def test_a_folder_that_was_changed_is_refused_and_nothing_is_registered(
    kind: str, proven: Path, others: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sabotage, status, told = LOCAL[kind]
    folder = tmp_path / "run"
    shutil.copytree(proven, folder)
    sabotage(folder, others)
    _refused(folder, status, told, capsys)


def _refused(folder: Path, status: int, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    for force in ([], ["--force", "it is urgent"]):
        capsys.readouterr()
        assert main(["promote", "--run", str(folder), "--name", "sabotaged", *force]) == status
        said = capsys.readouterr().err
        assert told in said and said.count("\n") == 1, said
    assert not [each for each in MlflowClient().search_registered_models() if each.name.startswith("sabotaged")]


@pytest.fixture(scope="session")
def others(proven: Path, session_folder: Path) -> Path:
    return twin(proven, session_folder / "others", accuracy=0.5)


def _run_tag(key: str, value: str) -> Callable[[str, Path], None]:
    return lambda run_id, folder: MlflowClient().set_tag(run_id, key, value)


def _other_model(run_id: str, folder: Path) -> None:
    path = folder / ONNX
    kept = path.read_bytes()
    _flip(path)
    MlflowClient().set_tag(run_id, "model_uri", log_model(folder, run_id))
    path.write_bytes(kept)


def _changed_model(run_id: str, folder: Path) -> None:
    client = MlflowClient()
    model = client.get_run(run_id).data.tags["model_uri"].removeprefix("models:/")
    where = client.get_logged_model(model).artifact_location.removeprefix("file://")
    _flip(Path(where) / "model.onnx")


def _changed_artifact(run_id: str, folder: Path) -> None:
    (folder.parent / "test.json").write_text(json.dumps({"accuracy": 0.9}))
    MlflowClient().log_artifact(run_id, str(folder.parent / "test.json"))


ENTRIES: dict[str, tuple[Callable[[str, Path], object], str]] = {
    "parity by hand": (_run_tag("parity", "failed"), "MLflow's tag parity says failed"),
    "data by hand": (_run_tag("data_sha256", "0" * 64), "MLflow's tag data_sha256 says 000"),
    "a figure by hand": (lambda i, _: MlflowClient().log_metric(i, "test/accuracy", 0.99), "MLflow's test/accuracy is 0.99"),
    "NaN by hand": (lambda i, _: MlflowClient().log_metric(i, "test/accuracy", math.nan), "MLflow's test/accuracy is nan"),
    "still running": (lambda i, _: MlflowClient().update_run(i, status="RUNNING"), "its MLflow run is RUNNING"),
    "killed": (lambda i, _: MlflowClient().set_terminated(i, "KILLED"), "its MLflow run is KILLED"),
    "deleted": (lambda i, _: MlflowClient().delete_run(i), "was deleted (mlflow runs restore"),
    "no model": (lambda i, _: MlflowClient().delete_tag(i, "model_uri"), "is not in MLflow as a model"),
    "a path for a model": (_run_tag("model_uri", "/etc"), "is not in MLflow as a model"),
    "a model that is not there": (_run_tag("model_uri", "models:/m-" + "0" * 32), "cannot be fetched from MLflow"),
    "another model": (_other_model, "holds another file than the model.onnx that is proven"),
    "a model whose file was changed": (_changed_model, "holds another file than the model.onnx that is proven"),
    "a test.json that was replaced": (_changed_artifact, "its test.json is not the file that was sealed"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ENTRIES)
def test_an_entry_in_mlflow_that_says_something_else_is_refused(
    kind: str, proven: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sabotage, told = ENTRIES[kind]
    folder = twin(proven, tmp_path / "twin", accuracy=0.9)
    sabotage(id_of(folder), folder)
    _refused(folder, 1, told, capsys)


def test_the_same_runs_untouched_are_promoted(proven: Path, tmp_path: Path) -> None:
    shutil.copytree(proven, tmp_path / "run")
    assert main(["promote", "--run", str(tmp_path / "run"), "--name", "untouched"]) == 0
    folder = twin(proven, tmp_path / "twin", accuracy=0.9999)
    assert main(["promote", "--run", str(folder), "--name", "untouched"]) == 0
    assert (version("untouched"), num_versions("untouched")) == ("2", 2)
    assert len(LOCAL) + len(ENTRIES) >= 20 and str(ONNX) == proof.ONNX
