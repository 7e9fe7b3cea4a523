"""ONNX: made from the captured graph, and read back with distrust.

The exporter notes the Python stack of every node; all such notes are dropped. A file that comes from elsewhere may
point at other files of this machine, so nothing but its own bytes is ever read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from numpy.typing import NDArray
from onnx import TensorProto
from torch.export import ExportedProgram

from export.module import BATCH, INPUT, ExportError
from pipeline.config import UserError

OPSET = 20
_LARGEST = 2**31 - 1  # bytes in one protobuf message
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_OPERATOR = re.compile(r"OpOverload\(op='([\w.]+)'|target=torch\.ops\.([\w.]+)")


def build(program: ExportedProgram, properties: Mapping[str, object], *, outputs: tuple[str, ...]) -> bytes:
    """Return the bytes of an .onnx file with named input and outputs, dynamic batch and checked in full.

    Raises ExportError with the name of an operator that ONNX has no translation for.
    """
    try:
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            input_names=[INPUT],
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
        raise ExportError(f"onnx: {_reason(error)} Write it with operators that opset {OPSET} has.") from error
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
    return str(error).strip().splitlines()[0]


def _clean(model: onnx.ModelProto) -> None:
    """Name the batch axis, drop all notes, and the types of initializers, over which int8 quantization trips."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    kept = [value for value in model.graph.value_info if value.name not in initializers]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    symbol = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for message in _messages(model):
        if message.DESCRIPTOR.fields_by_name.get("metadata_props"):
            message.ClearField("metadata_props")
        if message.DESCRIPTOR.fields_by_name.get("doc_string"):
            message.ClearField("doc_string")
        if isinstance(message, onnx.TensorShapeProto.Dimension) and message.dim_param == symbol:
            message.dim_param = BATCH


def _messages(message: Message) -> Iterator[Message]:
    """Yield a protobuf message and every message inside it."""
    yield message
    for _, value in message.ListFields():
        if isinstance(value, Message):
            yield from _messages(value)
        elif not isinstance(value, (str, bytes, int, float)):
            for item in value:
                if not isinstance(item, Message):
                    break
                yield from _messages(item)


def read(path: Path, *, what: str) -> tuple[bytes, onnx.ModelProto]:
    """Return the bytes and the message of an .onnx file that is complete in itself; `what` names it in errors.

    Raises UserError if it is missing, no ONNX file, or keeps tensors in other files, which are not opened.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise UserError(f"{what} has more than 2 GiB, which no single ONNX file can have. Give another file.")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{what} cannot be read ({error.strerror}). Give an .onnx file.") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError:
        raise UserError(f"{what} is not an ONNX file: it cannot be decoded. Give another file.") from None
    if not model.ir_version or not model.opset_import or not model.graph.output:
        raise UserError(f"{what} is not an ONNX file: it holds no graph. Give another file.")
    outside = [t.name for t in _messages(model) if isinstance(t, TensorProto) and t.data_location == TensorProto.EXTERNAL]
    if outside:
        raise UserError(
            f"{what} keeps {len(outside)} tensors in other files ({outside[0]!r} is one), which are not opened. "
            "Save it as one file (external_data=False)."
        )
    return content, model


def initializers(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Return the floating-point weights that a model holds, by name."""
    kept = [tensor for tensor in model.graph.initializer if tensor.data_type in _FLOATS]
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in kept}


def opset(model: onnx.ModelProto) -> int:
    """Return the version of the standard operators that a model is written in."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
