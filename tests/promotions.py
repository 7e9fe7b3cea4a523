"""Proven runs for promotions: one that was really trained, and as many as are wanted with other figures, in MLflow too."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from mlflow import MlflowClient

from pipeline import files, manifest

STAGES = ("train", "evaluate", "export", "verify")


def change(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Edit a JSON file; NaN may come in."""
    values = json.loads(path.read_text())
    edit(values)
    path.write_text(json.dumps(values, indent=1) + "\n")


def reseal(folder: Path, *stages: str) -> None:
    """Write the manifest anew, as somebody would who edits a file and knows of it."""
    run_id = json.loads((folder / "manifest.json").read_text())["mlflow_run_id"]
    for stage in stages or STAGES:
        manifest.seal(folder, run_id, *manifest.FILES[stage])


def set_figure(folder: Path, value: float) -> None:
    """Have all files of a run say that its accuracy is `value`."""

    def edit(report: dict[str, Any]) -> None:
        report["reference"]["metric"] = value
        for part in report["artifacts"].values():
            part["metric"] = value

    change(folder / "test.json", lambda values: values.update(accuracy=value))
    change(folder / "export" / "parity.json", edit)


def stamp(folder: Path, **metadata: object) -> None:
    """Have the ONNX file of a run say other things of its origin, and parity.json be of that file."""
    path = folder / "export" / "model.onnx"
    model = onnx.load(path)
    for entry in model.metadata_props:
        if entry.key in metadata:
            entry.value = json.dumps(metadata[entry.key])
    onnx.save(model, path)
    change(
        folder / "export" / "parity.json",
        lambda report: report["artifacts"]["onnx"].update(sha256=files.sha256(path)),
    )


def twin(proven: Path, folder: Path, *, accuracy: float, edit: Callable[[Path], object] | None = None) -> Path:
    """Make a run like `proven`, a real one, with another accuracy and its own MLflow run; `edit` comes before the seal."""
    client = MlflowClient()
    run_id = client.create_run("0").info.run_id
    wanted = (
        "config.json",
        "parameters.md",
        "weights.safetensors",
        "last.safetensors",
        "test.json",
        "answers.safetensors",
        "plots",
        "export",
    )
    folder.mkdir(parents=True)
    for name in wanted:
        (shutil.copytree if (proven / name).is_dir() else shutil.copyfile)(proven / name, folder / name)
    config = json.loads((folder / "config.json").read_text()) | {"mlflow_run_id": run_id}
    del config["sha256"]
    files.write_json(folder / "config.json", config | {"sha256": files.digest_of(config)})
    (folder / "manifest.json").write_text(json.dumps({"mlflow_run_id": run_id, "sha256": {}}))
    stamp(folder, mlflow_run_id=run_id)
    set_figure(folder, accuracy)
    if edit:
        edit(folder)
    reseal(folder)
    for name in ("config.json", "test.json", "export/parity.json", "manifest.json"):
        client.log_artifact(run_id, str(folder / name), "export" if "/" in name else None)
    client.log_metric(run_id, "test/accuracy", accuracy)
    for tag, value in {
        "data_sha256": config["data"]["sha256"],
        "parity": "passed",
        "model_uri": log_model(folder, run_id),
    }.items():
        client.set_tag(run_id, tag, value)
    client.set_terminated(run_id, "FINISHED")
    return folder


def log_model(folder: Path, run_id: str) -> str:
    """Log the ONNX file of a run as an MLflow model, its bytes as they are; return the address."""
    client = MlflowClient()
    model = client.create_logged_model("0", name="twin", source_run_id=run_id)
    with tempfile.TemporaryDirectory() as temporary:
        shutil.copyfile(folder / "export" / "model.onnx", Path(temporary) / "model.onnx")
        (Path(temporary) / "MLmodel").write_text("flavors: {}\n")
        client.log_model_artifacts(model.model_id, temporary)
    client.finalize_logged_model(model.model_id, "READY")
    return f"models:/{model.model_id}"


def id_of(folder: Path) -> str:
    return str(json.loads((folder / "config.json").read_text())["mlflow_run_id"])


def version(name: str, alias: str = "champion") -> str:
    """Return the version that has an alias, "" where none has."""
    found = [model for model in MlflowClient().search_registered_models() if model.name == name]
    return str(found[0].aliases.get(alias, "")) if found else ""


def num_versions(name: str) -> int:
    return len(MlflowClient().search_model_versions(f"name='{name}'"))
