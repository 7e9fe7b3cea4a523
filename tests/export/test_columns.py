"""The ONNX front of a table's model against `encode`, bit for bit, and against names that were made to break it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.columns import with_columns
from pipeline.data.columns import Column, feature_names, fit
from pipeline.data.encoding import encode

Raw = dict[str, np.ndarray]
WORDS = [
    "",
    "Rome",
    "Zürich",
    "東京",
    "NA",
    "a,b",
    'she said "no"',
    "two\nlines",
    " Rome",
    "rome",
    "🚂",
    "-1",
    "x" * 300,
    "nan",
    "None",
    "<NA>",
]


def network(width: int, *, names: dict[str, str] | None = None) -> bytes:
    """Return an .onnx file like ours: `input` (batch, width), and outputs that show the matrix itself and one weighed sum."""
    name = {n: n for n in ("input", "weight", "sum")} | (names or {})
    weight = np.linspace(-1, 1, width, dtype=np.float32)[:, None]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", [name["input"], name["weight"]], [name["sum"]]),
            helper.make_node("Identity", [name["sum"]], ["logits"]),
            helper.make_node("Identity", [name["input"]], ["features"]),
        ],
        "main_graph",
        [helper.make_tensor_value_info(name["input"], TensorProto.FLOAT, ["batch", width])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 1]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", width]),
        ],
        [numpy_helper.from_array(weight, name["weight"])],
        value_info=[helper.make_tensor_value_info(name["sum"], TensorProto.FLOAT, ["batch", 1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    model.metadata_props.add(key="task", value='"binary"')
    return model.SerializeToString(deterministic=True)


def answers(content: bytes, raw: Raw, columns: tuple[Column, ...], rows: Any) -> list[np.ndarray]:
    """Return (logits, features) of onnxruntime for some rows; inputs are taken by their order."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    feeds = {i.name: raw[c.name][rows].reshape(-1, 1) for i, c in zip(session.get_inputs(), columns, strict=True)}
    return session.run(["logits", "features"], feeds)


def random_table(seed: int, num_rows: int = 200) -> tuple[Raw, list[Column]]:
    """Return a table whose first row is missing throughout, and whose later half holds what the first half has not seen."""
    rng = np.random.default_rng(seed)
    half = num_rows // 2
    words = np.array([*WORDS, *(f"word {k}" for k in range(80))], object)
    raw: Raw = {
        "small": rng.normal(size=num_rows),
        "huge whole number": rng.integers(2**40, 2**40 + 1000, num_rows).astype(np.float64),
        "tiny": rng.normal(size=num_rows) * 1e-30 + 1e-25,
        "wide": rng.normal(size=num_rows) * 10.0 ** rng.integers(-300, 300, num_rows),
        "date": rng.integers(-4000, 30000, num_rows) + rng.integers(0, 86400, num_rows) / 86400,
        "flag": rng.integers(0, 2, num_rows).astype(np.float64),
        "constant": np.full(num_rows, 7.25),
        "always there": rng.normal(size=num_rows),
        "city": words[rng.integers(0, len(words), num_rows)],
        "rare": np.array([f"only once {k}" for k in range(num_rows)], object),
        "few": words[rng.integers(1, 4, num_rows)],
    }
    raw["city"][half:] = np.where(rng.random(num_rows - half) < 0.3, "never seen", raw["city"][half:])
    for name in ("small", "date", "flag", "huge whole number"):
        raw[name][rng.random(num_rows) < 0.2] = np.nan
    raw["always there"][half:][::3] = np.nan  # missing only where nobody has seen it missing
    raw["few"][half:][::5] = ""
    kinds = {"date": "date", "flag": "boolean", "city": "category", "rare": "category", "few": "category"}
    for name, values in raw.items():
        values[0] = "" if values.dtype == object else np.nan
        del name
    raw["few"][0], raw["always there"][0] = "Rome", 0.0
    names = list(raw)
    rng.shuffle(names)
    return raw, [Column(name=name, kind=kinds.get(name, "number")) for name in names]


@pytest.mark.parametrize("seed", range(6))
def test_the_front_gives_the_same_bits_as_the_training_path(seed: int) -> None:
    raw, given = random_table(seed)
    columns = fit({name: values[: len(values) // 2] for name, values in raw.items()}, given)
    expected = encode(raw, columns)
    content = with_columns(network(expected.shape[1]), columns)
    assert expected.shape[1] == len(feature_names(columns)) == sum(column.width for column in columns)
    for rows in (slice(0, 1), slice(5, 7), slice(150, 157), slice(30, 94), slice(None)):  # batches of 1, 2, 7, 64 and all
        np.testing.assert_array_equal(answers(content, raw, columns, rows)[1].view(np.int32), expected[rows].view(np.int32))


def test_a_row_in_which_all_is_missing_has_an_answer_like_any_other() -> None:
    raw, given = random_table(3)
    columns = fit(raw, given)
    empty: Raw = {c.name: np.array([""], object) if c.is_category else np.array([np.nan]) for c in columns}
    expected = encode(empty, columns)
    assert np.isfinite(expected).all()
    got = answers(with_columns(network(expected.shape[1]), columns), empty, columns, slice(None))[1]
    np.testing.assert_array_equal(got, expected)


def test_numbers_alone_and_categories_alone_have_a_front_too() -> None:
    raw, given = random_table(1)
    for some in ([c for c in given if c.is_category], [c for c in given if not c.is_category], [given[0]]):
        columns = fit(raw, some)
        expected = encode(raw, columns)
        got = answers(with_columns(network(expected.shape[1]), columns), raw, columns, slice(None))[1]
        np.testing.assert_array_equal(got, expected)


NAMES = [
    "input",
    "weight",
    "sum",
    "logits",
    "probabilities",
    "prediction",
    "features",
    "a/b",
    "two words",
    "größe",
    "東京",
    "'",
    '"',
]
NAMES += [
    "columns/numbers",
    "columns/fill",
    "columns/order",
    "columns/two words/slot",
    "batch",
    "column:logits",
    "a\nb",
    "x.y",
    "input_",
]


@pytest.mark.parametrize("kind", ["number", "category"])
def test_no_name_of_a_column_collides_with_a_value_of_the_graph(kind: str) -> None:
    values = np.array(["a", "b", "", "c", "a", "b"], object) if kind == "category" else np.array([1.0, 2, np.nan, 5, 6, 7])
    raw = {name: np.roll(values, k) for k, name in enumerate(NAMES)}
    columns = fit(raw, [Column(name=name, kind=kind) for name in NAMES])
    expected = encode(raw, columns)
    content = with_columns(network(expected.shape[1]), columns)
    logits, got = answers(content, raw, columns, slice(None))
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_allclose(logits[:, 0], expected @ np.linspace(-1, 1, expected.shape[1]), rtol=1e-4, atol=1e-5)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    inputs = dict(zip(NAMES, [i.name for i in session.get_inputs()], strict=True))
    outputs = {"logits", "features"}  # those that this graph has; the rule is for all that one may have
    for name, found in inputs.items():
        if name not in (*outputs, "probabilities", "prediction"):
            assert found == name
    assert inputs["probabilities"] == "column:probabilities" and inputs["logits"] == "column:logits_"  # the other is a column's
    assert [o.name for o in session.get_outputs()] == ["logits", "features"]


def test_inputs_are_as_documented_and_the_rest_of_the_file_stays() -> None:
    columns = fit(
        {"age": np.array([1.0, 2.0, np.nan]), "city": np.array(["Rome", "Rome", ""], object)},
        [Column(name="age", kind="number"), Column(name="city", kind="category")],
    )
    before = network(5)
    content = with_columns(before, columns)
    model = onnx.load_model_from_string(content)
    onnx.checker.check_model(content, full_check=True)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("age", "tensor(double)", ["batch", 1]),
        ("city", "tensor(string)", ["batch", 1]),
    ]
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {("", 20), ("ai.onnx.ml", 3)}
    assert [(p.key, p.value) for p in model.metadata_props] == [("task", '"binary"')]
    assert not any(node.doc_string for node in model.graph.node) and model.ir_version == 10
    assert "weight" in {tensor.name for tensor in model.graph.initializer}
    assert with_columns(before, columns) == content  # and the same bytes each time


def test_a_matrix_of_another_width_is_refused() -> None:
    columns = fit({"age": np.array([1.0, 2.0])}, [Column(name="age", kind="number")])
    with pytest.raises(ValueError, match="is not one float32 matrix"):
        with_columns(network(3), columns)


def test_a_thousand_columns_load_within_seconds(tmp_path: Path) -> None:
    raw = {f"c{k}": np.arange(4.0) + k for k in range(900)} | {
        f"t{k}": np.array(["a", "a", "b", ""], object) for k in range(100)
    }
    columns = fit(raw, [Column(name=n, kind="category" if v.dtype == object else "number") for n, v in raw.items()])
    expected = encode(raw, columns)
    got = answers(with_columns(network(expected.shape[1]), columns), raw, columns, slice(None))[1]
    np.testing.assert_array_equal(got, expected)


def test_mlflow_answers_a_data_frame_of_the_raw_columns_by_the_signature_that_is_documented(tmp_path: Path) -> None:
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    raw: Raw = {"age": np.array([1.0, 2, np.nan, 4]), "city": np.array(["Rome", "Rome", "", "Paris"], object)}
    columns = fit(raw, [Column(name="age", kind="number"), Column(name="city", kind="category")])
    expected = encode(raw, columns)
    content = with_columns(network(expected.shape[1]), columns)
    inputs = Schema([TensorSpec(np.dtype(np.float64), (-1, 1), "age"), TensorSpec(np.dtype(str), (-1, 1), "city")])
    model, signature = onnx.load_model_from_string(content), ModelSignature(inputs=inputs)
    mlflow.onnx.save_model(model, str(tmp_path / "m"), signature=signature, pip_requirements=[])
    served = mlflow.pyfunc.load_model(str(tmp_path / "m"))
    for missing in ("", None, np.nan):
        texts = np.array(["Rome", "Rome", missing, "Paris"], object)
        found = served.predict(pd.DataFrame({"age": raw["age"], "city": texts}))["features"]
        np.testing.assert_array_equal(found, expected)
    feeds = {"age": raw["age"].reshape(-1, 1), "city": raw["city"].reshape(-1, 1).astype(str)}
    np.testing.assert_array_equal(served.predict(feeds)["features"], expected)
