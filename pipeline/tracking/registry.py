"""The ONNX file as an MLflow model, loaded back before it is believed; what the file says of itself, and how it is called."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models
from pipeline.errors import Failure
from pipeline.run import Run
from pipeline.tracking import connection

if TYPE_CHECKING:
    import numpy as np


def model_name(run: Run) -> str:
    """Return what a run's model is called in MLflow: `cnn-digits`."""
    return _allowed(f"{models.label(run.config.model)}-{run.data.name}")


def _allowed(name: str) -> str:
    return re.sub(r"[^\w-]+", "-", name)


def onnx_metadata(path: Path) -> dict[str, Any]:
    """Return what an ONNX file of ours says of its origin. Raises Failure where it is none."""
    import onnx

    try:
        found = {entry.key: entry.value for entry in onnx.load(path, load_external_data=False).metadata_props}
        return {key: json.loads(value) for key, value in found.items()}
    except Exception as error:  # of protobuf or of json, whose readers raise several
        raise Failure(f"its {path.name} cannot be read as an ONNX file of ours ({connection.first_line(error)})") from error


def log_onnx_model(run_id: str, path: Path, example: Mapping[str, np.ndarray], *, name: str) -> tuple[str, float]:
    """Log the ONNX file as an MLflow model and load it back; return its `models:/` address and how far its answers differ.

    The model is called `name`, less what MLflow does not take in one. `example` has an array (B, ...) for each input, and
    becomes the input example; the answers are held against onnxruntime on the file itself.
    """
    import mlflow.onnx
    import numpy as np
    import onnx
    import onnxruntime
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    expected = dict(zip(names, session.run(names, dict(example)), strict=True))
    schema: list[Any] = [TensorSpec(v.dtype, (-1, *v.shape[1:]), k) for k, v in expected.items()]
    asked = {k: a.astype(str) if a.dtype == object else a for k, a in example.items()}
    inputs: list[Any] = [
        TensorSpec(np.dtype(str) if a.dtype == object else a.dtype, (-1, *_sizes(session, k, a)), k) for k, a in example.items()
    ]
    signature = ModelSignature(Schema(inputs), Schema(schema))
    try:
        with _active(run_id):
            info = mlflow.onnx.log_model(
                onnx.load(path),  # a copy of its own: log_model changes what it is given
                name=_allowed(name),
                signature=signature,
                input_example=asked,
                pip_requirements=[f"{m.__name__}=={m.__version__}" for m in (onnx, onnxruntime, np)],
                onnx_execution_providers=["CPUExecutionProvider"],
                save_as_external_data=False,
            )
        answers = mlflow.pyfunc.load_model(info.model_uri).predict(asked)
    except Exception as error:  # whatever a server, a proxy, a store or its disk raises
        raise Failure(
            f"MLflow at {connection.shown()} does not take the ONNX model ({connection.first_line(error)}). Verify again."
        ) from error
    return str(info.model_uri), max(float(np.abs(answers[name] - value).max()) for name, value in expected.items())


def _sizes(session: Any, name: str, values: np.ndarray) -> list[int]:
    """Return the sizes of one sample, -1 where the file lets them vary."""
    declared = next(i.shape for i in session.get_inputs() if i.name == name)
    return [-1 if isinstance(d, str) else n for d, n in zip(declared[1:], values.shape[1:], strict=True)]


@contextmanager
def _active(run_id: str) -> Iterator[None]:
    """Make a run MLflow's active one for a while, and leave its status as it was."""
    import mlflow

    client = mlflow.MlflowClient()
    status = client.get_run(run_id).info.status
    mlflow.start_run(run_id=run_id)
    try:
        yield
    finally:
        mlflow.end_run(status)
