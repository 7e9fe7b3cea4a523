"""TorchScript by tracing, into a compilation unit of its own.

`torch.jit.trace` puts its classes into one unit of the whole process, so that a second export gets other names and
other bytes. It also cannot save a `torch.autograd.Function`, and writes the path of every source line into the file.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from export.module import INPUT, METADATA, ExportError

_CLASS = "__torch__.ExportModule"
_CODE = "code/__torch__.py"
_SKIPPED = ".data/serialization_id"  # the writer makes a new one from the contents


def build(module: nn.Module, example: Tensor, properties: Mapping[str, object]) -> bytes:
    """Return the bytes of a TorchScript file whose `forward(input)` gives the module's tuple, at any batch size.

    The module's tensors become buffers, their names with `_` for `.`. Raises ExportError where tracing or saving fails.
    """
    names = {name.replace(".", "_"): value for name, value in module.state_dict(keep_vars=True).items()}
    backend: Any = torch._C  # its constructors have no types
    script = backend.ScriptModule(_CLASS, backend.CompilationUnit(), False)
    for name, value in names.items():
        script._register_attribute(name, backend.TensorType.get(), value)
    try:
        with torch.no_grad(), _forward_only():
            script._create_method_from_trace("forward", module, (example.clone(),), lambda _: "", True, False, [INPUT], False)
        saved = script.save_to_buffer({METADATA: json.dumps(properties)})
    except RuntimeError as error:
        raise ExportError(f"torchscript: {str(error).strip().splitlines()[0]} Write it with torch operators.") from error
    return _rewrite(saved, list(names))


@contextmanager
def _forward_only() -> Iterator[None]:
    """Make every autograd.Function its plain forward: traced as it is, it becomes a call into Python."""

    def apply(cls: Any, *args: Any) -> Any:
        if cls.setup_context is not torch.autograd.function._SingleLevelFunction.setup_context:
            return cls.forward(*args)  # the newer style, whose forward takes no context
        context: Any = FunctionCtx()  # keeps the notes for the backward, which never comes
        context.needs_input_grad = (False,) * len(args)
        return cls.forward(context, *args)

    function: Any = torch.autograd.Function
    original = function.__dict__["apply"]
    function.apply = classmethod(apply)
    try:
        yield
    finally:
        function.apply = original


def _rewrite(saved: bytes, buffers: list[str]) -> bytes:
    """Return the archive without the records that hold source paths, its attributes declared as buffers.

    As buffers they are in `state_dict` and follow `.to(device)`.
    """
    reader = torch._C.PyTorchFileReader(io.BytesIO(saved))
    result = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(result)
    for name in reader.get_all_records():
        if name == _SKIPPED or name.endswith(".debug_pkl"):
            continue
        record = reader.get_record(name)
        if name == _CODE:
            declared = "".join(f'"{b}", ' for b in buffers)
            record = record.replace(b"__buffers__ = []", f"__buffers__ = [{declared}]".encode(), 1)
        writer.write_record(name, record, len(record))
    writer.write_end_of_file()
    return result.getvalue()
