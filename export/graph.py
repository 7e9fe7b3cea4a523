"""What of an exported ONNX graph is the network's: its layers with weights, and all that comes before the first of them.

What comes before is the resize of images of any size, whose sums are exact in float32 alone, and the standardization. A file
that is derived from another one leaves it as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Derivation:
    """How files are derived from another one: `make` gives the bytes of one that leaves some layers as they are, in float.

    `layers` has the label of each layer that can be left so by the name of its node, in the order of the graph, and `setting`
    what else was decided, as JSON values.
    """

    layers: Mapping[str, str]
    make: Callable[[Collection[str]], bytes]
    setting: Mapping[str, object]


def layers(graph: onnx.GraphProto) -> dict[str, str]:
    """Return the layers that have weights of their own: the name of each node, and what the model calls it."""
    weights = {tensor.name for tensor in graph.initializer}
    found: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in LAYERS and len(node.input) > 1 and node.input[1] in weights:
            found[node.name] = _label(node)
    return found


def _label(node: onnx.NodeProto) -> str:
    for name in node.input[1:]:  # a fused layer's weights may have lost their name, and its bias not
        if name.startswith("model.") and "." in name.removeprefix("model."):
            return name.removeprefix("model.").removeprefix("network.").rpartition(".")[0]
    return node.name.removeprefix("node_")


def front(graph: onnx.GraphProto) -> set[str]:
    """Return the names of the nodes that no layer comes before, and that are none."""
    with_weights = layers(graph)
    behind: set[str] = set()  # values
    found = set()
    for node in graph.node:
        if node.name in with_weights or any(name in behind for name in node.input):
            behind |= set(node.output)
        else:
            found.add(node.name)
    return found


def following(graph: onnx.GraphProto, names: Collection[str]) -> set[str]:
    """Return the names of some layers and of the nodes behind them, up to the next layers."""
    with_weights = layers(graph)
    values: set[str] = set()
    found = set()
    for node in graph.node:
        if node.name in names or (node.name not in with_weights and any(name in values for name in node.input)):
            values |= set(node.output)
            found.add(node.name)
    return found


def finish(model: onnx.ModelProto, original: onnx.ModelProto) -> bytes:
    """Return the bytes of a derived model, which gets the inputs, outputs and metadata of the original.

    Raises ValueError where onnx.checker refuses it.
    """
    import onnx

    used = {node.domain for node in model.graph.node}
    opsets = {entry.domain: entry.version for entry in model.opset_import if entry.domain in used or not entry.domain}
    for field, values in (("input", original.graph.input), ("output", original.graph.output)):
        del getattr(model.graph, field)[:]
        getattr(model.graph, field).extend(values)
    nodes = in_order(model.graph)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.opset_import[:], model.metadata_props[:], model.graph.value_info[:]
    model.opset_import.extend(onnx.helper.make_opsetid(domain, version) for domain, version in sorted(opsets.items()))
    model.metadata_props.extend(original.metadata_props)
    model.ir_version, model.producer_name = original.ir_version, original.producer_name
    model.producer_version, model.graph.name = original.producer_version, original.graph.name
    model.ClearField("doc_string")
    tensors = sorted(model.graph.initializer, key=lambda tensor: tensor.name)
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    content: bytes = model.SerializeToString(deterministic=True)
    try:
        onnx.checker.check_model(content, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(str(error).splitlines()[0]) from error
    return content


def with_metadata(content: bytes, entries: Mapping[str, object]) -> bytes:
    """Return the bytes of a model that says so much more of itself, as JSON values."""
    import onnx

    model = onnx.load_model_from_string(content)
    onnx.helper.set_model_props(
        model, {e.key: e.value for e in model.metadata_props} | {key: json.dumps(value) for key, value in entries.items()}
    )
    made: bytes = model.SerializeToString(deterministic=True)
    return made


def in_order(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return nodes so that each comes behind those that it reads from: what converts a graph appends its own at the end."""
    known = {"", *(value.name for value in (*graph.input, *graph.initializer))}
    rest, ordered = [*graph.node], []
    while rest:
        later = []
        for node in rest:
            if all(name in known for name in node.input):
                ordered.append(node)
                known |= set(node.output)
            else:
                later.append(node)
        assert len(later) < len(rest), "a graph without a circle"
        rest = later
    return ordered
