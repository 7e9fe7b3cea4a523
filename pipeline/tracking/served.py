"""A model that MLflow keeps, brought here to be served: its address to the .onnx file in it."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from pipeline.errors import UserError
from pipeline.tracking import connection
from pipeline.values import shown

_ADDRESS = re.compile(r"models:/(?:(?P<id>m-[0-9a-f]+)|(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+)))")


def fetch(address: str) -> tuple[Path, str, str]:
    """Return the .onnx file of `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `models:/m-ID`, its name and its version.

    The name is empty where the address has none. Raises UserError where there is no such model, or it is no ONNX model.
    """
    what, found = f"onnx={shown(address)}", _ADDRESS.fullmatch(address)
    if not found:
        raise UserError(f"{what} is no address of a model. Write models:/NAME@ALIAS, models:/NAME/VERSION, or a file.")
    connection.configure()
    name, version = found["name"] or "", found["version"] or "1"
    if found["alias"]:
        version = connection.ask(lambda: _version(name, found["alias"], what))
        address = f"models:/{name}/{version}"
    return connection.ask(lambda: _file(address, what)), name, version


def _version(name: str, alias: str, what: str) -> str:
    import mlflow

    try:
        return str(mlflow.MlflowClient().get_model_version_by_alias(name, alias).version)
    except mlflow.MlflowException as error:
        if not connection.is_missing_model(error, name):
            raise
        raise _unknown(what) from error


def _unknown(what: str) -> UserError:
    return UserError(f"{what} is not in MLflow at {connection.shown()}. Give a model that is, or set MLFLOW_TRACKING_URI.")


def _file(address: str, what: str) -> Path:
    """Return the .onnx file of a model, in a folder of its own among the temporary ones."""
    import mlflow.artifacts

    try:
        folder = mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=tempfile.mkdtemp(prefix="trainyard-"))
    except mlflow.MlflowException as error:
        if not connection.is_unseen(error):
            raise
        raise _unknown(what) from error
    files = sorted(Path(folder).rglob("*.onnx"))
    if len(files) != 1:
        raise UserError(f"{what} holds {len(files)} .onnx files, and one is served. Give a model that was logged as ONNX.")
    return files[0]
