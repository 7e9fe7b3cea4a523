"""Small .onnx files as `export` writes them: of images of any size, of raw columns, and of plain vectors."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from export.formats import FORMATS, pt2
from export.module import ExportModule
from pipeline.data.columns import Column
from pipeline.task import task

CLASSES = ["cat", "dog", "a bird, or none"]
COLUMNS = (
    Column(name="age", kind="number", fill=40.0, has_missing=True),
    Column(name="member", kind="boolean", fill=0.0),
    Column(name="since", kind="date", fill=0.0),
    Column(name="city", kind="category", categories=("Oslo", "Rome"), has_missing=True),
)

MakeOnnx = Callable[..., Path]


class _Network(torch.nn.Module):
    """A linear layer over whatever it is given."""

    has_features = True

    def __init__(self, size: int, num_outputs: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(size, num_outputs)
        with torch.no_grad():
            weight = torch.randn(num_outputs, size, generator=torch.Generator().manual_seed(0))
            self.layer.weight.copy_(weight / 40)
            self.layer.bias.zero_()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x.float().flatten(1)
        return self.layer(x), x


@pytest.fixture
def make_onnx(tmp_path: Path) -> MakeOnnx:
    """Return a function that writes model.onnx for a task and an input shape; with `side`, of images of any size."""

    def make(
        *, of: str = "multiclass", shape: tuple[int, ...] = (3, 8, 8), side: int = 0, outputs: int = 3, **said: Any
    ) -> Path:
        model = onnx.load_model_from_string(_built(of, shape, side, outputs))
        said = {
            "task": of, "classes": CLASSES if of != "regression" else [], "input_shape": shape,
            "input_dtype": "uint8" if len(shape) == 3 else "float32", "any_size": bool(side), "columns": [], "targets": [],
        } | said  # fmt: skip
        onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in said.items()})
        (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
        return tmp_path / "model.onnx"

    return make


@functools.cache
def _built(of: str, shape: tuple[int, ...], side: int, outputs: int) -> bytes:
    kind = task(of)
    network = _Network(int(np.prod(shape)), outputs)
    module = ExportModule(network, task=kind, side=side).eval().requires_grad_(False)  # type: ignore[arg-type]
    size = (2, shape[0], shape[1] + 3, shape[2] + 5) if side else (2, *shape)
    example = torch.zeros(size, dtype=torch.uint8 if len(shape) == 3 else torch.float32)
    return FORMATS["onnx"].build(pt2.capture(module, example, any_size=bool(side)), {}, outputs=kind.outputs)


@pytest.fixture
def table_onnx(tmp_path: Path) -> Path:
    """Return a file that takes `COLUMNS` raw: scores are age / 100, member, and 1 for Rome, 2 for a city that is not known."""
    number = "age", "member", "since"
    values = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, ["batch", 1]) for n in number]
    values.append(helper.make_tensor_value_info("city", TensorProto.STRING, ["batch", 1]))
    nodes = [
        helper.make_node("IsNaN", ["age"], ["is_missing"]),
        helper.make_node("Where", ["is_missing", "fill", "age"], ["filled"]),
        helper.make_node("Div", ["filled", "hundred"], ["scaled"]),
        helper.make_node("Mul", ["since", "zero"], ["nothing"]),
        helper.make_node("Add", ["member", "nothing"], ["joined"]),
        helper.make_node("LabelEncoder", ["city"], ["code"], domain="ai.onnx.ml", keys_strings=["Oslo", "Rome", ""],
                         values_floats=[0.0, 1.0, 0.0], default_float=2.0),
        helper.make_node("Cast", ["scaled"], ["a"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["joined"], ["b"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["a", "b", "code"], ["logits"], axis=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]  # fmt: skip
    constants = [
        helper.make_tensor(name, TensorProto.DOUBLE, [], [value])
        for name, value in (("fill", 40.0), ("hundred", 100.0), ("zero", 0.0))
    ]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3]) for n in ("logits", "probabilities")]
    graph = helper.make_graph(nodes, "table", values, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("ai.onnx.ml", 3)])
    model.ir_version = 10
    said = {
        "task": "multiclass", "classes": CLASSES, "input_shape": [8], "input_dtype": "float32", "any_size": False,
        "columns": [column.to_json() for column in COLUMNS], "targets": [],
    }  # fmt: skip
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in said.items()})
    onnx.checker.check_model(model, full_check=True)
    (tmp_path / "table.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "table.onnx"
