"""`serve --onnx models:/...` serves what MLflow keeps under that name, and says so if there is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow.onnx
import numpy as np
import onnx
import pytest
from mlflow import MlflowClient
from mlflow.models import infer_signature

from export.serve import model as models
from pipeline.cli import main
from pipeline.tracking import served as tracking
from tests.export.serve.conftest import MakeOnnx
from tests.export.serve.serving import served


@pytest.fixture
def registered(make_onnx: MakeOnnx) -> tuple[Path, str]:
    """Return a file that is version 1 of `flowers`, the champion, and the address of its logged model."""
    path = make_onnx(shape=(4,))
    signature = infer_signature(np.zeros((2, 4), np.float32), {"logits": np.zeros((2, 3), np.float32)})
    with mlflow.start_run():
        info = mlflow.onnx.log_model(
            onnx.load(path), name="flowers", registered_model_name="flowers", signature=signature, save_as_external_data=False
        )
    version = MlflowClient().search_model_versions("name='flowers'")[0].version
    MlflowClient().set_registered_model_alias("flowers", "champion", version)
    return path, info.model_uri


def test_a_registered_model_is_served_under_its_own_name(registered: tuple[Path, str]) -> None:
    path, address = registered
    x = [[0.5, -1.0, 2.0, 0.0]]
    expected = models.load(path, threads=1).answer([np.array(x, np.float32)])
    version = str(MlflowClient().get_model_version_by_alias("flowers", "champion").version)
    with served("models:/flowers@champion") as server:
        about = json.loads(server.ask("/v2/models/flowers")[1])
        assert (about["name"], about["versions"]) == ("flowers", [version])
        (answer,) = server.predict({"instances": x})
        found = np.array(list(answer["probabilities"].values()), np.float32)
        assert found.tobytes() == expected.values[0].tobytes()
    for each in (f"models:/flowers/{version}", address):
        file, _, _ = tracking.fetch(each)
        assert models.load(file, threads=1).answer([np.array(x, np.float32)]).values.tobytes() == expected.values.tobytes()


@pytest.mark.parametrize(
    ("address", "told"),
    [("models:/nobody@champion", "is not in MLflow at"), ("models:/nobody/1", "is not in MLflow at"),
     ("models:/cnn", "is no address of a model"), ("models:/m-" + "0" * 32, "is not in MLflow at"),
     ("models:cnn@x", "is no address of a model")],
)  # fmt: skip
def test_an_address_of_no_model_gets_a_sentence(address: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--onnx", address]) == 2
    said = capsys.readouterr().err
    assert f"onnx={address} {told}" in said and said.count("\n") == 1
