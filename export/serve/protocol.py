"""The open inference protocol, V2, over HTTP with JSON: what a model takes and gives, and the tensors of a request.

A tensor is {"name", "shape", "datatype", "data"}, its data flat in row-major order, or nested as its shape says. What is
added for tables: null is a missing value of a raw column, as JSON has no NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson

from export.serve.bodies import BadRequest, NotFinite, Question, check_shape, flat, numbers, parsed
from export.serve.model import Array, Model, Tensor
from pipeline.values import shown

_DATATYPES = {  # onnxruntime's names
    "tensor(uint8)": "UINT8", "tensor(float)": "FP32", "tensor(double)": "FP64", "tensor(string)": "BYTES",
    "tensor(float16)": "FP16", "tensor(int64)": "INT64", "tensor(int32)": "INT32", "tensor(bool)": "BOOL",
}  # fmt: skip
_DTYPES = {"UINT8": "uint8", "FP32": "float32", "FP64": "float64"}


def metadata(model: Model, *, name: str, version: str) -> dict[str, Any]:
    """Return what the protocol tells of a model; -1 stands where a size may vary."""
    return {
        "name": name,
        "versions": [version],
        "platform": "onnx_onnxruntime",
        "inputs": [_declared(tensor) for tensor in model.inputs],
        "outputs": [_declared(tensor) for tensor in model.outputs],
    }


def _declared(tensor: Tensor) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in tensor.shape]
    return {"name": tensor.name, "datatype": _DATATYPES.get(tensor.type, tensor.type), "shape": shape}


def read(content: bytes, model: Model, *, name: str, version: str) -> Question:
    """Return what a body of /infer asks. Raises BadRequest."""
    body = parsed(content)
    label = body.get("id", "")
    if not isinstance(label, str):
        raise BadRequest("`id` is no text.")
    declared = {tensor.name: _declared(tensor) for tensor in model.inputs}
    given = _by_name(body.get("inputs"), "inputs")
    if set(given) != set(declared):
        raise BadRequest(f"`inputs` has {_listed(given)}, and the model takes {_listed(declared)}.")
    has_words = b"true" in content or b"false" in content
    inputs = [_values(given[key], declared[key], model, may_have_booleans=has_words) for key in declared]
    if len({len(array) for array in inputs}) != 1:
        raise BadRequest("the inputs differ in their number of samples.")
    outputs = _outputs(body, model)
    head = {"model_name": name, "model_version": version, **({"id": label} if label else {})}
    return Question(inputs, outputs, lambda found: _written(head, outputs, found))


def _by_name(items: Any, what: str) -> dict[str, dict[str, Any]]:
    if not isinstance(items, list) or not all(isinstance(item, dict) and isinstance(item.get("name"), str) for item in items):
        raise BadRequest(f"`{what}` is no list of objects with a name.")
    found = {item["name"]: item for item in items}
    if len(found) != len(items):
        raise BadRequest(f"`{what}` has a name twice.")
    return found


def _listed(names: Sequence[str] | dict[str, Any]) -> str:
    first = ", ".join(shown(name) for name in list(names)[:10])
    return first + (f" and {len(names) - 10} more" if len(names) > 10 else "") if names else "nothing"


def _outputs(body: dict[str, Any], model: Model) -> tuple[str, ...]:
    known = [tensor.name for tensor in model.outputs]
    if "outputs" not in body:
        return tuple(known)
    wanted = tuple(_by_name(body["outputs"], "outputs"))
    if not wanted or not set(wanted) <= set(known):
        raise BadRequest(f"`outputs` has {_listed(wanted)}, and the model gives {_listed(known)}.")
    return wanted


def _values(tensor: dict[str, Any], declared: dict[str, Any], model: Model, *, may_have_booleans: bool) -> Array:
    """Return a tensor's data, (N, ...), if it is what the model takes."""
    what, datatype = f"the input {shown(declared['name'])}", declared["datatype"]
    if tensor.get("datatype") != datatype:
        raise BadRequest(f"{what} has the datatype {shown(str(tensor.get('datatype')))}, and the model takes {datatype}.")
    shape, data = tensor.get("shape"), tensor.get("data")
    if not isinstance(shape, list) or not all(type(size) is int and 0 < size < 1 << 31 for size in shape):
        raise BadRequest(f"the shape of {what.removeprefix('the ')} is no list of whole numbers from 1.")
    if not isinstance(data, list):
        raise BadRequest(f"{what} has no list of data.")
    if model.columns:
        if len(shape) != 2 or shape[1] != 1:
            raise BadRequest(f"{what} has the shape {shape}, and the model takes [N, 1].")
    else:
        check_shape(shape, model)
    if datatype == "BYTES":
        return _strings(data, shape, what)
    x = numbers(data, _DTYPES[datatype], may_have_booleans=may_have_booleans, is_missing_taken=bool(model.columns))
    return _shaped(x, shape, what)


def _strings(data: list[Any], shape: list[int], what: str) -> Array:
    texts = ["" if text is None else text for text in flat(data)]
    if not all(isinstance(text, str) for text in texts):
        raise BadRequest(f"{what} holds something that is no text.")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"{what} holds half a character.") from error
    return _shaped(np.array(texts, object), shape, what)


def _shaped(x: Array, shape: list[int], what: str) -> Array:
    if x.size != math.prod(shape) or (x.ndim > 1 and list(x.shape) != shape):
        raise BadRequest(f"{what} has {x.size} values in the shape {list(x.shape)}, and says that its shape is {shape}.")
    return x.reshape(shape)


def _written(head: dict[str, str], names: Sequence[str], outputs: list[Array]) -> bytes:
    found = []
    for name, values in zip(names, outputs, strict=True):
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise NotFinite(f"the output {name} holds what is no number (NaN or infinity).")
        kind = {
            "f": f"FP{8 * values.itemsize}",
            "i": f"INT{8 * values.itemsize}",
            "u": f"UINT{8 * values.itemsize}",
            "b": "BOOL",
        }
        datatype = kind.get(values.dtype.kind, "BYTES")
        found.append({"name": name, "datatype": datatype, "shape": list(values.shape), "data": values.ravel().tolist()})
    return orjson.dumps(head | {"outputs": found})
