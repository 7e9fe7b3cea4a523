"""`serve` answers as `predict` does, by the names that it writes, and by the open inference protocol."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import helper
from PIL import Image
from pyarrow import csv as arrow_csv

from export.serve import bodies
from export.serve import model as models
from pipeline.cli import main
from pipeline.data import images
from tests.export.serve.conftest import CLASSES, MakeOnnx
from tests.export.serve.serving import served
from tests.export.serve.test_bits import vector_onnx
from tests.export.serve.test_predict import EXPECTED, _predict, _rows, _save, _table

Said = pytest.CaptureFixture[str]
INPUT = {"name": "input", "datatype": "UINT8"}


def _same_answer(row: dict[str, str], answer: dict[str, Any]) -> None:
    """Hold a row that `predict` wrote against an answer that was served."""
    flat = {f"p_{name}": value for name, value in answer.pop("probabilities", {}).items()} | answer
    assert set(flat) == set(row) - {"input"}
    for name, value in flat.items():
        if isinstance(value, str):
            assert row[name] == value
        else:
            np.testing.assert_allclose(np.float32(value), np.float32(row[name]), rtol=1e-6, atol=1e-7)


def test_images_of_any_size_are_answered_as_predict_does_and_by_the_protocol(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    onnx = make_onnx(side=8)
    paths = [_save(tmp_path / "photos" / f"{k}.png", 5 + 7 * k, 40 - 3 * k, seed=k) for k in range(8)]
    Image.open(paths[0]).save(tmp_path / "photos" / "8.jpg")
    paths.append(tmp_path / "photos" / "8.jpg")
    assert _predict(onnx, tmp_path / "photos") == 0
    session = onnxruntime.InferenceSession(onnx)
    with served(onnx) as server:
        for path, row in zip(paths, _rows(tmp_path / "answers.csv"), strict=True):
            (answer,) = server.predict(path.read_bytes())
            _same_answer(row, answer)
            x = images.decode(path, 3)[None]
            found = server.infer([INPUT | {"shape": list(x.shape), "data": x.ravel().tolist()}], id="mine")
            nested = server.infer([INPUT | {"shape": list(x.shape), "data": x.tolist()}], outputs=[{"name": "logits"}])
            assert list(nested) == ["logits"] and nested["logits"] == found["logits"]
            for name, values in zip(("logits", "probabilities", "features"), session.run(None, {"input": x}), strict=True):
                assert (found[name]["datatype"], found[name]["shape"]) == ("FP32", list(values.shape))
                np.testing.assert_allclose(np.float32(found[name]["data"]), values.ravel(), rtol=1e-5, atol=1e-6)
        pixels = [images.resize(images.decode(path, 3), 8).tolist() for path in paths[:3]]
        assert [answer["prediction"] in CLASSES for answer in server.predict({"instances": pixels})] == [True] * 3

        assert json.loads(server.ask("/v2/health/live")[1]) == {"live": True}
        assert json.loads(server.ask("/v2/models/model/ready")[1])["ready"] is True
        about = json.loads(server.ask("/v2/models/model")[1])
        assert json.loads(server.ask("/v2/models/model/versions/1")[1]) == about
        assert about["inputs"] == [INPUT | {"shape": [-1, 3, -1, -1]}]
        assert about["outputs"][0] == {"name": "logits", "datatype": "FP32", "shape": [-1, 3]}
        assert json.loads(server.ask("/")[1])["classes"] == CLASSES
        assert server.ask("/docs")[0] == server.ask("/openapi.json")[0] == 404


def test_rows_are_answered_from_raw_columns_as_predict_does(table_onnx: Path, tmp_path: Path) -> None:
    arrow_csv.write_csv(_table(), tmp_path / "people.csv")
    assert _predict(table_onnx, tmp_path / "people.csv") == 0
    rows = [row | {"since": f"{row['since']}"} for row in _table().to_pylist()]
    assert rows[1]["age"] is None and rows[2]["city"] == ""
    with served(table_onnx) as server:
        found = server.predict({"rows": rows})
        assert [answer["prediction"] for answer in found] == EXPECTED
        for written, answer, row in zip(_rows(tmp_path / "answers.csv"), found, rows, strict=True):
            alone = server.predict({"instances": [row]})
            assert alone == [answer]
            _same_answer(written, answer)
        values: dict[str, tuple[str, list[Any]]] = {
            "age": ("FP64", [20, None, 300.0, 5]), "member": ("FP64", [1, 0, 0, 1]), "since": ("FP64", [0, 1, 2, 3]),
            "city": ("BYTES", ["Rome", "Oslo", None, "NA"]),
        }  # fmt: skip
        tensors = [{"name": n, "datatype": d, "shape": [4, 1], "data": v} for n, (d, v) in values.items()]
        probabilities = server.infer(tensors, outputs=[{"name": "probabilities"}])["probabilities"]["data"]
        expected = [value for answer in server.predict({"rows": rows}) for value in answer["probabilities"].values()]
        assert np.array_equal(np.float32(probabilities), np.float32(expected))


@pytest.mark.parametrize(
    ("of", "outputs", "said"),
    [("multiclass", 3, {}), ("multilabel", 3, {}), ("binary", 2, {"classes": ["no", "yes"]}), ("regression", 1, {}),
     ("regression", 2, {"targets": ["a", "b"]})],
)  # fmt: skip
def test_arrays_of_each_task_are_answered_by_the_names_of_predict(
    make_onnx: MakeOnnx, tmp_path: Path, of: str, outputs: int, said: dict[str, Any]
) -> None:
    onnx = make_onnx(of=of, shape=(5,), outputs=1 if of == "binary" else outputs, **said)
    x = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    assert _predict(onnx, tmp_path / "x.npy") == 0
    model = models.load(onnx, threads=1)
    question = bodies.read(json.dumps({"instances": x.tolist()}).encode(), model)
    answer = json.loads(question.answer(model.run(question.outputs, question.inputs)))["predictions"]
    for row, found in zip(_rows(tmp_path / "answers.csv"), answer, strict=True):
        _same_answer(row, found)


def test_an_answer_that_is_no_number_is_a_500_with_a_sentence(tmp_path: Path) -> None:
    onnx_file = vector_onnx(tmp_path / "log.onnx", [helper.make_node("Log", ["input"], ["logits"])])
    with served(onnx_file) as server:
        for numbers in ([[-1.0, 1.0, 2.0]], [[1.0, 2.0, 3.0], [0.0, 1.0, 1.0]]):
            tensor = {"name": "input", "datatype": "FP32", "shape": [len(numbers), 3], "data": numbers}
            for path, body in (("/predict", {"instances": numbers}), ("/v2/models/model/infer", {"inputs": [tensor]})):
                status, content = server.ask(path, body)
                assert status == 500 and "no number" in json.loads(content)["error"], content
        assert server.ask("/predict", {"instances": [[1, 2, 3]]})[0] == 200


def test_what_cannot_be_served_gets_a_sentence_before_a_port_is_opened(table_onnx: Path, tmp_path: Path, capsys: Said) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        for words, told in [
            ([], "onnx: nothing was given. Add --onnx FILE"),
            (["--onnx", "nowhere.onnx"], "onnx=nowhere.onnx is not a file."),
            (["--onnx", "text.onnx"], "cannot be loaded by onnxruntime"),
            (["--onnx", str(table_onnx), "--port", taken], f"port={taken} is in use on 127.0.0.1."),
            (["--onnx", str(table_onnx), "--port", "66000"], "port=66000 is out of range."),
            (["--onnx", str(table_onnx), "--host", "203.0.113.7"], "host=203.0.113.7 is no address of this machine."),
            (["--onnx", str(table_onnx), "--max_delay_ms", "50", "--timeout_ms", "20"], "is not below timeout_ms=20"),
        ]:
            assert main(["serve", *words]) == 2
            assert told in (said := capsys.readouterr().err) and "Traceback" not in said and said.count("\n") == 1


def test_a_connection_sends_an_answer_at_once_and_does_not_wait_for_its_head_to_be_confirmed() -> None:
    """With Nagle's algorithm each answer took 44 ms on loopback, of which 43 were waiting."""
    from export.serve.server import _listener

    with _listener("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        at_once = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        connection.close()
    assert at_once
