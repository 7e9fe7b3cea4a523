"""torch.export: the graph that .pt2 holds, and that every other format is made from.

Saved as it comes, every node of the file would carry the stack of Python lines that made it, with this machine's paths.
"""

from __future__ import annotations

import io
import json
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    Array = NDArray[Any]

ORDER = 2
FILE = "model.pt2"
_METADATA = "metadata.json"  # its name inside the archive


def capture(module: nn.Module, example: Tensor, *, any_size: bool = False) -> ExportedProgram:
    """Return the graph of `module` with a dynamic batch; with `any_size`, height and width (axes 2 and 3) are dynamic too.

    Raises ValueError, with the line of the model, where it is not made of torch operators alone.
    """
    import torch

    names = {0: "batch"} | ({2: "height", 3: "width"} if any_size else {})
    axes = {axis: torch.export.Dim(name) for axis, name in names.items()}
    try:
        with torch.no_grad():
            program = torch.export.export(module, (example.clone(),), dynamic_shapes=(axes,))
    except Exception as error:  # torch.export raises whatever its tracing meets, of every type
        raise ValueError(_reason(error, torch_folder=str(Path(torch.__file__).parent))) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _reason(error: Exception, *, torch_folder: str) -> str:
    """Return what is wrong and where: at the innermost line that is not torch's own."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if lines[0].startswith("Constraints violated"):  # told at the end of the capture, of no line in particular
        return (
            f"the batch cannot vary: {lines[1].split('. ')[0]}. "
            "Take its size from a tensor's own shape (flatten, -1, shape[0]), and set it no limit."
        )
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if not f.filename.startswith((torch_folder, "<", __file__))]
    where = f"`{ours[-1].line}` ({Path(ours[-1].filename).name}:{ours[-1].lineno})" if ours else "the model"
    return (
        f"torch.export cannot capture {where}: {lines[0].rstrip('.')}. "
        "Write it with torch operators, without a branch or a conversion that depends on a tensor's values."
    )


def build(program: ExportedProgram, properties: Mapping[str, object], *, outputs: tuple[str, ...]) -> bytes:
    """Return the bytes of a .pt2 file: the same for the same program, whatever it will be called. They name no output."""
    import torch

    buffer = io.BytesIO()  # a path would put the file's name into the archive
    torch.export.save(program, buffer, extra_files={_METADATA: json.dumps(properties)})
    return buffer.getvalue()


def import_runtime() -> None:
    """Import what `load` needs, which takes longer than to load a small file."""
    import torch.export

    with suppress(ImportError):  # where torch 2.15 has all that loading imports, most of it late
        import torch.export.pt2_archive  # noqa: F401


def load(path: Path, *, num_threads: int) -> tuple[Callable[[Array], list[Array]], dict[str, Any], dict[str, Array]]:
    """Return a call, what the file says of itself, and its tensors by name."""
    import torch

    torch.set_num_threads(num_threads)
    extra = {_METADATA: ""}
    module = torch.export.load(path, extra_files=extra).module()

    def call(x: Array) -> list[Array]:
        with torch.inference_mode():
            return [output.numpy() for output in module(torch.from_numpy(x))]

    facts = {"runtime": "torch.export", "version": torch.__version__, "metadata": json.loads(extra[_METADATA] or "{}")}
    return call, facts, {name: value.detach().numpy() for name, value in module.state_dict().items()}
