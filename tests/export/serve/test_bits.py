"""What is computed together has the bits that each sample has alone, by trial; a file for which that fails is seen."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.serve import bits
from export.serve import model as models
from tests.export.conftest import ONE_EACH, Trained
from tests.export.serve.conftest import CLASSES, MakeOnnx


def vector_onnx(path: Path, nodes: list[Any], constants: Sequence[Any] = ()) -> Path:
    """Write a file of three numbers whose `nodes` make `logits` of `input`."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3]) for n in ("input", "logits", "probabilities")]
    nodes = [*nodes, helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1)]
    graph = helper.make_graph(nodes, "vector", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    model.ir_version = 10
    said = {"task": "multiclass", "classes": CLASSES, "input_shape": [3], "input_dtype": "float32", "columns": []}
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in said.items()})
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    return path


def mixing_onnx(path: Path, *, from_size: int = 0) -> Path:
    """Write a file whose answers hang on the other samples of a batch: a little of their mean is added to each.

    With `from_size`, only in batches of that size and larger.
    """
    tensor, batch = helper.make_tensor, TensorProto.FLOAT
    nodes = [
        helper.make_node("ReduceMean", ["input", "axis"], ["mean"], keepdims=1),
        helper.make_node("Sub", ["input", "mean"], ["rest"]),
        helper.make_node("Shape", ["input"], ["shape"], start=0, end=1),
        helper.make_node("Less", ["shape", "limit"], ["is_small"]),
        helper.make_node("Where", ["is_small", "zero", "some"], ["factor"]),
        helper.make_node("Mul", ["rest", "factor"], ["change"]),
        helper.make_node("Add", ["input", "change"], ["logits"]),
    ]
    constants = [tensor("axis", TensorProto.INT64, [1], [0]), tensor("limit", TensorProto.INT64, [1], [from_size]),
                 tensor("zero", batch, [1], [0.0]), tensor("some", batch, [1], [1e-6])]  # fmt: skip
    return vector_onnx(path, nodes, constants)


@pytest.mark.parametrize(("from_size", "largest"), [(0, 1), (8, 4)])
def test_sizes_at_which_a_sample_hangs_on_its_neighbors_are_not_used(tmp_path: Path, from_size: int, largest: int) -> None:
    model = models.load(mixing_onnx(tmp_path / "mixing.onnx", from_size=from_size), threads=1)
    found = bits.plan(model, 16)
    assert max(found.sizes) <= largest and found.sizes[0] == 1
    assert found.together >= 1


def test_no_more_are_computed_together_than_was_asked_for(table_onnx: Path) -> None:
    for most in (1, 2, 5, 16):
        found = bits.plan(models.load(table_onnx, threads=1), most)
        assert found.sizes[0] == 1 and max(found.sizes) <= found.together <= most


def test_images_of_a_size_that_was_not_tried_are_computed_alone(make_onnx: MakeOnnx) -> None:
    found = bits.plan(models.load(make_onnx(side=8), threads=1), 16)
    assert found.sizes_for([np.zeros((1, 3, 8, 8), np.uint8)]) == found.sizes
    assert found.sizes_for([np.zeros((1, 3, 8, 9), np.uint8)]) == (1,)


@pytest.mark.parametrize("variant", ONE_EACH)
def test_the_sizes_found_keep_the_bits_of_other_values_too(variant: str, exports: Callable[[str], Trained]) -> None:
    model = models.load(exports(variant).run.folder / "export" / "model.onnx", threads=1)
    names = [value.name for value in model.session.get_outputs()]
    rng = np.random.default_rng(1)
    for size in bits.plan(model, 16).sizes:
        (x,) = bits.samples(model, size, rng)
        for k in range(size):
            for whole, single in zip(model.run(names, [x]), model.run(names, [x[k : k + 1]]), strict=True):
                assert whole[k : k + 1].tobytes() == single.tobytes(), (variant, size)


def test_a_quick_model_gets_one_thread_and_a_slow_one_all_cores() -> None:
    def plan(seconds: float) -> bits.Plan:
        return bits.Plan(sizes=(1,), shapes=((3,),), together=1, seconds=seconds)

    assert [plan(s).num_threads(8) for s in (1e-5, 4e-4, 6e-4, 2e-3, 1.0)] == [1, 1, 2, 5, 8]
