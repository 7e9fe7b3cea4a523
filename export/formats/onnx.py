"""ONNX: made from the captured graph, and read back with distrust.

The exporter notes the Python stack of every node; all such notes are dropped. A file that comes from elsewhere may
point at other files of this machine, so nothing but its own bytes is ever read.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx
    from google.protobuf.message import Message  # type: ignore[import-untyped]
    from numpy.typing import NDArray
    from torch.export import ExportedProgram

    Array = NDArray[Any]

ORDER = 0
FILE = "model.onnx"
OPSET = 20
_AXES = {0: "batch", 2: "height", 3: "width"}  # the names of those axes of the input that are dynamic
_LARGEST = 2**31 - 1  # bytes in one protobuf message
_OPERATOR = re.compile(r"OpOverload\(op='([\w.]+)'|target=torch\.ops\.([\w.]+)")
_TYPES = {"uint8": "uint8", "float": "float32", "double": "float64", "float16": "float16", "int64": "int64", "string": "object"}


def build(program: ExportedProgram, properties: Mapping[str, object], *, outputs: tuple[str, ...]) -> bytes:
    """Return the bytes of an .onnx file with named input and outputs, dynamic batch and checked in full.

    Raises ValueError with the name of an operator that ONNX has no translation for.
    """
    import onnx
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch 2.11, about lines of its own
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                input_names=list(program.graph_signature.user_inputs),
                output_names=list(outputs),
                verbose=False,
            )
        assert exported is not None
        model = exported.model_proto
        _clean(model)
        model.metadata_props.extend(
            onnx.StringStringEntryProto(key=key, value=json.dumps(value)) for key, value in properties.items()
        )
        content = model.SerializeToString(deterministic=True)
        onnx.checker.check_model(content, full_check=True)
    except Exception as error:  # the exporter, protobuf and the checker have no base class in common
        raise ValueError(f"{_reason(error)} Write it with operators that opset {OPSET} has.") from error
    return content


def _reason(error: BaseException) -> str:
    """Return which operator has no translation, told by the innermost error that names one, or else what was said."""
    names = []
    link: BaseException | None = error
    while link is not None:
        found = _OPERATOR.search(str(link))
        names += [found[1] or found[2]] if found else []
        link = link.__cause__
    if names:
        return f"the operator {names[-1]} cannot be exported."
    return _first_line(error)


def _clean(model: onnx.ModelProto) -> None:
    """Name the dynamic axes, drop all notes, and the types of initializers, over which int8 quantization trips."""
    import onnx

    initializers = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.value_info if value.name not in initializers]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    axes = enumerate(model.graph.input[0].type.tensor_type.shape.dim)
    names = {axis.dim_param: _AXES[index] for index, axis in axes if axis.dim_param}
    for message in _messages(model):
        if message.DESCRIPTOR.fields_by_name.get("metadata_props"):
            message.ClearField("metadata_props")
        if message.DESCRIPTOR.fields_by_name.get("doc_string"):
            message.ClearField("doc_string")
        if isinstance(message, onnx.TensorShapeProto.Dimension) and message.dim_param in names:
            message.dim_param = names[message.dim_param]


def _messages(message: Message) -> Iterator[Message]:
    """Yield a protobuf message and every message inside it."""
    from google.protobuf.message import Message

    yield message
    for _, value in message.ListFields():
        if isinstance(value, Message):
            yield from _messages(value)
        elif not isinstance(value, (str, bytes, int, float)):
            for item in value:
                if not isinstance(item, Message):
                    break
                yield from _messages(item)


def read(path: Path, *, what: str) -> bytes:
    """Return the bytes of an .onnx file that is complete in itself; `what` names it in errors.

    Raises ValueError if it is missing, no ONNX file, or keeps tensors in other files, which are not opened.
    """
    import onnx
    from google.protobuf.message import DecodeError
    from onnx import TensorProto

    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"{what} has more than 2 GiB, which no single ONNX file can have. Give another file.")
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{what} cannot be read ({error.strerror}). Give an .onnx file.") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        raise ValueError(f"{what} is not an ONNX file: it cannot be decoded. Give another file.") from None
    if not model.ir_version or not model.opset_import or not model.graph.output:
        raise ValueError(f"{what} is not an ONNX file: it holds no graph. Give another file.")
    outside = [t.name for t in _messages(model) if isinstance(t, TensorProto) and t.data_location == TensorProto.EXTERNAL]
    if outside:
        raise ValueError(
            f"{what} keeps {len(outside)} tensors in other files ({outside[0]!r} is one), which are not opened. "
            "Save it as one file (external_data=False)."
        )
    return content


def import_runtime() -> None:
    """Import what `load` needs, which takes longer than to load a small file."""
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401


def load(path: Path, *, num_threads: int) -> tuple[Callable[[Array], list[Array]], dict[str, Any], dict[str, Array]]:
    """Return a call, what the file says of itself, and its floating-point weights by name."""
    import onnx
    import onnxruntime

    content, checker = path.read_bytes(), ""
    try:
        onnx.checker.check_model(content, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        checker = f"{type(error).__name__}: {_first_line(error)}"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()
    if not inputs:
        raise ValueError("it has no input")
    name, dtype = inputs[0].name, _TYPES.get(inputs[0].type[len("tensor(") : -1], "")
    model = onnx.load_model_from_string(content)
    facts = {
        "weight_types": sorted(
            {onnx.TensorProto.DataType.Name(tensor.data_type).lower() for tensor in model.graph.initializer}
        ),
        "runtime": "onnxruntime",
        "version": onnxruntime.__version__,
        "opset": max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0),
        "checker": checker,
        "inputs": [{"name": i.name, "dtype": _TYPES.get(i.type[7:-1], i.type), "shape": i.shape} for i in inputs],
        "outputs": [{"name": o.name, "shape": o.shape} for o in session.get_outputs()],
        "metadata": {key: _value(text) for key, text in session.get_modelmeta().custom_metadata_map.items()},
    }

    def call(x: Array | dict[str, Array]) -> list[Array]:
        if isinstance(x, dict):  # the columns of a table
            return session.run(None, x)
        return session.run(None, {name: x.astype(dtype, copy=False) if dtype else x})

    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
    kept = [tensor for tensor in model.graph.initializer if tensor.data_type in floats]
    return call, facts, {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in kept}


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:  # somebody else's entry
        return text


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "")
