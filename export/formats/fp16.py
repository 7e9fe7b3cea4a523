"""fp16: the ONNX file with weights and arithmetic of 16 bits: half the size, and no faster on most processors.

By onnxruntime's own converter: what onnxconverter-common makes of a uint8 input cannot be loaded. What comes before the first
layer (sums of a resize, raw values of a table) stays in float32 and is taken out meanwhile, since the converter would send it
through 16 bits between two nodes. So is what a layer left in float gives to the next one, where that is left so too.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from export import graph
from export.graph import Derivation

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    Array = NDArray[Any]

ORDER = 4
FILE = "model.fp16.onnx"
BASE = "onnx"


def derivation(content: bytes, samples: Array) -> Derivation:
    """Return how to make fp16 files of an .onnx file; it needs no samples. Raises ValueError where no layer has weights."""
    import onnx

    original = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(content), data_prop=True)
    layers = graph.layers(original.graph)
    if not layers:
        raise ValueError("no layer of it has weights that could have 16 bits. Leave onnx-fp16 out of --formats.")
    return Derivation(layers, lambda in_float: _halved(original, in_float), {})


def _halved(original: onnx.ModelProto, in_float: Collection[str]) -> bytes:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    in_front = graph.front(original.graph)
    blocked = graph.following(original.graph, in_float)
    before = [node for node in original.graph.node if node.name in in_front]
    network = onnx.ModelProto()
    network.CopyFrom(original)
    inner = network.graph
    nodes = [node for node in original.graph.node if node.name not in in_front]
    given = {value for node in before for value in node.output} | {value.name for value in original.graph.input}
    read = {value for node in nodes for value in node.input}
    kinds = {value.name: value for value in (*original.graph.input, *original.graph.value_info)}
    early = {value.name for value in original.graph.output} & given  # an output that no layer has touched
    constants = [tensor for tensor in original.graph.initializer if tensor.name in read]
    for field, values in (
        ("node", nodes), ("initializer", constants), ("input", [kinds[name] for name in sorted(given & read)]),
        ("output", [value for value in original.graph.output if value.name not in early]), ("value_info", []),
    ):  # fmt: skip
        del getattr(inner, field)[:]
        getattr(inner, field).extend(values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values too small for 16 bits
        halved = convert_float_to_float16(network, keep_io_types=True, node_block_list=sorted(blocked))
    _join_floats(halved.graph)
    converted = [*halved.graph.node]
    own = {tensor.name for tensor in halved.graph.initializer}
    needed = {value for node in before for value in node.input}
    shared = needed & own  # a constant on both sides: the network's one is of 16 bits
    for name in shared:
        for node in converted:
            node.input[:] = [f"{name}/fp16" if value == name else value for value in node.input]
    for tensor in halved.graph.initializer:
        tensor.name = f"{tensor.name}/fp16" if tensor.name in shared else tensor.name
    halved.graph.initializer.extend(tensor for tensor in original.graph.initializer if tensor.name in needed)
    del halved.graph.node[:]
    halved.graph.node.extend([*before, *converted])
    return graph.finish(halved, original)


def _join_floats(network: onnx.GraphProto) -> None:
    """Let what is computed in float32 be read as such, without a way through 16 bits, and drop what nobody reads then."""
    made = {name: node for node in network.node for name in node.output}
    wide: dict[str, str] = {}
    for node in network.node:
        before = made.get(node.input[0]) if node.op_type == "Cast" and _to(node) == 1 else None
        if before is not None and before.op_type == "Cast" and _to(before) == 10:
            wide[node.output[0]] = before.input[0]
    outputs = {value.name for value in network.output}
    for node in network.node:
        node.input[:] = [wide.get(name, name) for name in node.input]
    for name in outputs & wide.keys():
        made[name].op_type, made[name].input[:] = "Identity", [wide[name]]
        del made[name].attribute[:]
    while True:
        read = {name for node in network.node for name in node.input} | outputs
        idle = [node for node in network.node if node.op_type == "Cast" and not read & {*node.output}]
        if not idle:
            return
        for node in idle:
            network.node.remove(node)


def _to(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "to"), 0)
