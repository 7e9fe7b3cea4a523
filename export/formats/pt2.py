"""torch.export: the graph that .pt2 holds and ONNX is converted from.

Saved as it comes, every node of the file would carry the stack of Python lines that made it, with this machine's paths.
"""

from __future__ import annotations

import io
import json
import traceback
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from export.module import BATCH, METADATA, ExportError

DYNAMIC = ({0: torch.export.Dim(BATCH)},)


def capture(module: nn.Module, example: Tensor) -> ExportedProgram:
    """Return the graph of `module` with a dynamic batch.

    Raises ExportError, with the line of the model, where it is not made of torch operators alone.
    """
    try:
        with torch.no_grad():
            program = torch.export.export(module, (example.clone(),), dynamic_shapes=DYNAMIC)
    except Exception as error:  # torch.export raises whatever its tracing meets, of every type
        raise ExportError(f"pt2: {_reason(error)}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _reason(error: Exception) -> str:
    """Return what is wrong and where: at the innermost line that is not torch's own."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if lines[0].startswith("Constraints violated"):  # told at the end of the capture, of no line in particular
        return (
            f"the batch cannot vary: {lines[1].split('. ')[0]}. "
            "Take its size from a tensor's own shape (flatten, -1, shape[0]), and set it no limit."
        )
    torch_folder = str(Path(torch.__file__).parent)
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if not f.filename.startswith((torch_folder, "<", __file__))]
    where = f"`{ours[-1].line}` ({Path(ours[-1].filename).name}:{ours[-1].lineno})" if ours else "the model"
    return (
        f"torch.export cannot capture {where}: {lines[0].rstrip('.')}. "
        "Write it with torch operators, without a branch or a conversion that depends on a tensor's values."
    )


def build(program: ExportedProgram, properties: Mapping[str, object]) -> bytes:
    """Return the bytes of a .pt2 file: the same for the same program, whatever it will be called."""
    buffer = io.BytesIO()  # a path would put the file's name into the archive
    torch.export.save(program, buffer, extra_files={METADATA: json.dumps(properties)})
    return buffer.getvalue()
