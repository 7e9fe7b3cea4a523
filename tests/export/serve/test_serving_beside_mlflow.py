"""`mlflow models serve` and `serve` answer alike about the whole test set of the digits, over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow.onnx
import numpy as np
import onnx
import pytest
from mlflow.models import infer_signature

from pipeline.cli import main
from pipeline.data.loader import open_split
from pipeline.data.prepare import prepare
from pipeline.run import Run
from tests.export.serve.serving import PATIENCE, served
from tests.servers import free_port

STEP = 60


@contextmanager
def mlflow_serving(model: Path, folder: Path) -> Iterator[str]:
    """Run `mlflow models serve` for a saved model, and yield where it answers."""
    port = free_port()
    words = ["models", "serve", "-m", str(model), "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "mlflow", *words], stdout=log, stderr=log, start_new_session=True)
    uri, end = f"http://127.0.0.1:{port}", time.monotonic() + 2 * PATIENCE
    try:
        while True:
            try:
                urllib.request.urlopen(f"{uri}/ping", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < end, (folder / "log").read_text()
                time.sleep(0.2)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=PATIENCE)


def _invoked(uri: str, x: Any) -> Any:
    body = json.dumps({"inputs": {"input": x.tolist()}}).encode()
    asked = urllib.request.Request(f"{uri}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
        return json.loads(answer.read())["predictions"]


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_both_servers_answer_the_whole_test_set_of_the_digits_alike(
    trained: Callable[[str], Run], make_config: Callable[..., Any], tmp_path: Path
) -> None:
    run = trained("cnn")
    if not (run.folder / "export").is_dir():
        assert main(["export", "--run", str(run.folder)]) == 0
    file = run.folder / "export" / "model.onnx"
    test = open_split(prepare(make_config(model="cnn")), "test")
    x, y = test.x.numpy(), test.y.numpy()
    signature = infer_signature({"input": x[:2]}, {"logits": np.zeros((2, 10), np.float32)})
    mlflow.onnx.save_model(
        onnx.load(file), tmp_path / "saved", signature=signature, pip_requirements=["onnxruntime"], save_as_external_data=False
    )
    ours, theirs, names = list[list[float]](), list[list[float]](), list[str]()
    with served(file) as server, mlflow_serving(tmp_path / "saved", tmp_path) as uri:
        for start in range(0, len(x), STEP):
            part = x[start : start + STEP]
            tensor = {"name": "input", "datatype": "UINT8", "shape": list(part.shape), "data": part.ravel().tolist()}
            status, content = server.ask("/v2/models/cnn/infer", {"inputs": [tensor], "outputs": [{"name": "logits"}]})
            assert status == 200
            ours += np.reshape(json.loads(content)["outputs"][0]["data"], (len(part), 10)).tolist()
            names += [answer["prediction"] for answer in server.predict({"instances": part.tolist()})]
            theirs += _invoked(uri, part)["logits"]
    assert len(ours) == len(theirs) == len(y) > 300
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    decided = np.argmax(ours, axis=1)
    assert (decided == np.argmax(theirs, axis=1)).all()
    assert names == [run.data.classes[k] for k in decided]
    print(f"{len(y)} samples, 0 flips, max abs diff {np.abs(np.subtract(ours, theirs)).max():.1e}")
