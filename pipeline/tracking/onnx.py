"""The ONNX file as an MLflow model, loaded back before it is believed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config import Failure

if TYPE_CHECKING:
    import numpy as np


def log_onnx_model(run_id: str, path: Path, example: np.ndarray) -> float:
    """Log the ONNX file as an MLflow model, load it back and return the largest difference of its answers.

    `example` (B, *input_shape) becomes the input example; the answers are held against onnxruntime on the file itself.
    """
    import mlflow.onnx
    import numpy as np
    import onnx
    import onnxruntime
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    expected = dict(zip(names, session.run(names, {"input": example}), strict=True))
    schema: list[Any] = [TensorSpec(v.dtype, (-1, *v.shape[1:]), k) for k, v in expected.items()]
    signature = ModelSignature(Schema([TensorSpec(example.dtype, (-1, *example.shape[1:]), "input")]), Schema(schema))
    try:
        with _active(run_id):
            info = mlflow.onnx.log_model(
                onnx.load(path),  # a copy of its own: log_model changes what it is given
                name="model",
                signature=signature,
                input_example={"input": example},
                pip_requirements=[f"{m.__name__}=={m.__version__}" for m in (onnx, onnxruntime, np)],
                onnx_execution_providers=["CPUExecutionProvider"],
                save_as_external_data=False,
            )
        answers = mlflow.pyfunc.load_model(info.model_uri).predict({"input": example})
    except (MlflowException, OSError) as error:
        raise Failure(f"MLflow does not take the ONNX model ({str(error).partition(chr(10))[0]}). Verify again.") from error
    return max(float(np.abs(answers[name] - value).max()) for name, value in expected.items())


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
