"""The ONNX front of a model for tables: one input a column, text and missing values included, and the encoding in the graph.

It computes what `pipeline.data.encoding.encode` does, in float64 and in the same order, with one cast to float32 at the end, so
the network gets the same bits. The surprise: all numbers go through together, as one (batch, n) matrix, and are put in order
afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.data.columns import Column

if TYPE_CHECKING:
    import onnx

_BATCH = "batch"
_ML = "ai.onnx.ml"
_ML_OPSET = 3
_PREFIX = "columns/"


def with_columns(content: bytes, columns: Sequence[Column]) -> bytes:
    """Return an .onnx file whose inputs are raw columns, made from one that takes the encoded matrix (batch, D) float32.

    The inputs come in the order of `columns`, (batch, 1) each: float64 with NaN for a missing number, boolean or date, string
    with "" for a missing category. Each is named as its column, but one that is called like an output is `column:NAME`
    (`Column.input_name`). Outputs, weights and metadata stay as they are; a value inside the graph that is called like a column
    gets another name. Raises ValueError for a file that has no such input, or whose D is another.
    """
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load_model_from_string(content)
    graph = model.graph
    width = sum(column.width for column in columns)
    shape = [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] if len(graph.input) == 1 else []
    if shape[1:] != [width] or graph.input[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise ValueError(f"its input is not one float32 matrix (batch, {width}), which the columns of the table give.")
    inputs = _input_names(columns, outputs={value.name for value in graph.output})
    _make_way(graph, inputs)
    front = _Front(taken={*inputs, *_names(graph)}, matrix=graph.input[0].name)
    front.build(columns, inputs)
    kinds = [TensorProto.STRING if column.is_category else TensorProto.DOUBLE for column in columns]
    values = [helper.make_tensor_value_info(n, kind, [_BATCH, 1]) for n, kind in zip(inputs, kinds, strict=True)]
    network = [*graph.node]
    for field, content_of in (("input", values), ("node", [*front.nodes, *network])):
        del getattr(graph, field)[:]
        getattr(graph, field).extend(content_of)
    graph.initializer.extend(front.constants)
    if not any(entry.domain == _ML for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_ML, _ML_OPSET))
    made: bytes = model.SerializeToString(deterministic=True)
    onnx.checker.check_model(made, full_check=True)
    return made


def _input_names(columns: Sequence[Column], *, outputs: set[str]) -> list[str]:
    """Return the name of each column's input; no two are equal, and none is an output's."""
    names, taken = [], {*outputs, *(column.name for column in columns)}
    for column in columns:
        is_own = column.input_name == column.name and column.name not in outputs
        names.append(column.name if is_own else _free(f"column:{column.name}", taken))
        taken.add(names[-1])
    return names


class _Front:
    """The nodes and constants in front of a network, as they are made."""

    def __init__(self, *, taken: set[str], matrix: str) -> None:
        self.taken, self.matrix = taken, matrix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.off_on = ""  # the name of the values that OneHot writes, once there are any

    def build(self, columns: Sequence[Column], inputs: Sequence[str]) -> None:
        parts: list[str] = []  # each (batch, some), in the order in which they are joined
        order: list[int] = []  # of each column of the joined parts, its place in the matrix
        firsts = np.cumsum([0, *(column.width for column in columns)])[:-1].tolist()
        numbers = [k for k, column in enumerate(columns) if not column.is_category]
        if numbers:
            scaled, missing = self._numbers([columns[k] for k in numbers], [inputs[k] for k in numbers])
            parts += [scaled, *missing]
            order += [firsts[k] for k in numbers] + [firsts[k] + 1 for k in numbers if columns[k].has_missing]
        for k, column in enumerate(columns):
            if column.is_category:
                self.off_on = self.off_on or self._constant("off_on", np.array([0, 1], np.float32))
                parts.append(self._category(column, inputs[k]))
                order += range(firsts[k], firsts[k] + column.width)
        places = np.argsort(order)
        in_order = bool((places == np.arange(len(places))).all())
        joined = self._add("Concat", parts, self.matrix if in_order else "joined", axis=1)
        if not in_order:
            self._add("Gather", [joined, self._constant("order", places.astype(np.int64))], self.matrix, axis=1)

    def _numbers(self, columns: Sequence[Column], inputs: Sequence[str]) -> tuple[str, list[str]]:
        """Add (x - center) / scale for all numbers; return its name, and that of what says which are missing, if one may be."""
        fill, center, scale = (
            self._constant(name, np.array([[getattr(column, name) for column in columns]], np.float64))
            for name in ("fill", "center", "scale")
        )
        raw = self._add("Concat", inputs, "numbers", axis=1)
        missing = self._add("IsNaN", [raw], "is_missing")
        filled = self._add("Where", [missing, fill, raw], "filled")
        centered = self._add("Sub", [filled, center], "centered")
        scaled = self._add("Cast", [self._add("Div", [centered, scale], "scaled_float64")], "scaled", to=1)
        marked = [k for k, column in enumerate(columns) if column.has_missing]
        if not marked:
            return scaled, []
        chosen = self._constant("with_missing", np.array(marked, np.int64))
        return scaled, [self._add("Cast", [self._add("Gather", [missing, chosen], "marked", axis=1)], "missing", to=1)]

    def _category(self, column: Column, name: str) -> str:
        """Add the one-hot slots of a column; return their name, (batch, width)."""
        other = len(column.categories)
        keys = [*column.categories, *column.missing_texts]
        places = [*range(other), *(other + 1 for _ in column.missing_texts)]
        if not keys:  # a label encoder must have one; its place is that of all others
            keys, places = [""], [other]
        label = {"keys_strings": keys, "values_int64s": places, "default_int64": other}
        slot = self._add("LabelEncoder", [name], f"{column.name}/slot", domain=_ML, **label)
        depth = self._constant(f"{column.name}/width", np.array(column.width, np.int64))
        spread = self._add("OneHot", [slot, depth, self.off_on], f"{column.name}/spread", axis=-1)  # (batch, 1, width)
        return self._add("Flatten", [spread], f"{column.name}/one_hot", axis=1)

    def _constant(self, name: str, value: np.ndarray) -> str:
        from onnx import numpy_helper

        name = self._take(name)
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def _add(self, operator: str, inputs: Iterable[str], output: str, *, domain: str = "", **attributes: Any) -> str:
        from onnx import helper

        output = output if output == self.matrix else self._take(output)
        self.nodes.append(helper.make_node(operator, [*inputs], [output], name=output, domain=domain, **attributes))
        return output

    def _take(self, name: str) -> str:
        name = _free(f"{_PREFIX}{name}", self.taken)
        self.taken.add(name)
        return name


def _free(name: str, taken: set[str]) -> str:
    """Return a name that is not taken: itself, or with `_` after it, as often as needed."""
    while name in taken:
        name += "_"
    return name


def _make_way(graph: onnx.GraphProto, inputs: Sequence[str]) -> None:
    """Rename what is inside a graph and has the name of an input-to-be, in the graphs within it too."""
    taken = {*inputs, *_names(graph)}
    renamed: dict[str, str] = {}
    for name in sorted(_names(graph) & {*inputs}):
        renamed[name] = _free(name, taken)
        taken.add(renamed[name])
    if renamed:
        _rename(graph, renamed)


def _rename(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = names.get(value.name, value.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = names.get(sparse.values.name, sparse.values.name)
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
        for inner in _inner(node):
            _rename(inner, names)


def _names(graph: onnx.GraphProto) -> set[str]:
    """Return the names of all values of a graph and of those within it."""
    found = {value.name for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info)}
    for node in graph.node:
        found |= {*node.input, *node.output}
        found |= {name for inner in _inner(node) for name in _names(inner)}
    return found - {""}


def _inner(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    return [graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs) if graph.node]
