"""TorchScript: compiled from the captured graph, whose sizes are symbols, and saved as one class.

A trace of that graph would keep each size that the model computes with as the number it had, and a trace of the model could not
be saved where it has an autograd.Function. As torch saves it, the archive also names the source of every line, and calls the
class by how many this process has made before.
"""

from __future__ import annotations

import io
import json
import operator
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor
    from torch.export import ExportedProgram

    Array = NDArray[Any]

ORDER = 1
FILE = "model.torchscript.pt"
_METADATA = "metadata.json"  # its name inside the archive
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip archive can tell
_MANGLED = re.compile(rb"[./]___torch_mangle_\d+")  # behind the module of a class whose name this process has used before
_SKIPPED = re.compile(r".*(\.debug_pkl|/\.data/serialization_id)$")  # source paths, and a hash of them
_RELEASED = re.compile(r";  [\w =]+ = None$", re.MULTILINE)  # fx sets what is not needed any more to None
_INFINITE = re.compile(r"(?<![\w.])(inf|nan)\b")
_SYMBOLIC: Mapping[str, Callable[..., Any]] = {"sym_float": float, "sym_int": int, "sym_max": max, "sym_min": min}
_REMEDY = "Write it with torch operators."


def build(program: ExportedProgram, properties: Mapping[str, object], *, outputs: tuple[str, ...]) -> bytes:
    """Return the bytes of a TorchScript file whose `forward(input)` gives the program's tuple, at any batch size.

    The program's tensors become buffers, their names with `_` for `.`: they are in `state_dict` and follow `.to(device)`. The
    outputs have no names there. Raises ValueError with what TorchScript cannot express.
    """
    import torch

    class ExportModule(torch.jit.ScriptModule):
        """A class of its own for each build: those of one class share their compiled methods."""

        def __init__(self, tensors: Mapping[str, Tensor]) -> None:
            super().__init__()
            for name, value in tensors.items():
                self.register_buffer(name, value.detach())

    saved = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, and one of the formats on purpose
        try:
            tensors, source = _source(program)
            module = ExportModule(tensors).eval()
            module.define(source)
            torch.jit.save(module, saved, _extra_files={_METADATA: json.dumps(properties)})
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise ValueError(f"{lines[0].rstrip('.')}. {_REMEDY}") from error
    return _rewrite(saved)


def _source(program: ExportedProgram) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a program by their names in the file, and its graph as TorchScript."""
    import torch
    from torch import fx
    from torch.fx.node import map_aggregate

    if any(isinstance(child, fx.GraphModule) for child in program.graph_module.children()):
        program = program.run_decompositions({})  # writes out what stands under no_grad or autocast
    captured = program.module(check_guards=False)
    tensors = {_flat(name): value for name, value in program.state_dict.items()}
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}

    def written(value: Any) -> Any:
        return str(value) if isinstance(value, torch.device) else value

    for node in captured.graph.nodes:
        name = getattr(node.target, "__name__", "")
        if name.startswith("_assert"):
            continue  # that the input is on the CPU, for one, which `.to(device)` changes
        copy = copies[node] = graph.node_copy(node, copies.__getitem__)
        copy.args = map_aggregate(copy.args, written)
        copy.kwargs = map_aggregate(copy.kwargs, written)
        if node.op == "get_attr":
            copy.target, value = _flat(node.target), operator.attrgetter(node.target)(captured)
            if not isinstance(value, torch.Tensor):
                raise ValueError(f"the operator {next(iter(node.users)).target} cannot be exported. {_REMEDY}")
            tensors.setdefault(copy.target, value)
        if node.op == "call_function":  # without the overload, which TorchScript chooses by the types
            copy.target = _SYMBOLIC.get(name) or getattr(node.target, "overloadpacket", node.target)
    return tensors, _INFINITE.sub(r'float("\1")', _RELEASED.sub("", graph.python_code("self").src))


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _rewrite(saved: io.BytesIO) -> bytes:
    """Return an archive without the records that differ from process to process, each class under its plain name."""
    result = io.BytesIO()
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(result, "w") as archive:
        for name in source.namelist():
            if _SKIPPED.match(name):
                continue
            record = source.read(name)
            if name.endswith((".py", "/data.pkl")):
                record = _MANGLED.sub(b"", record)
            archive.writestr(zipfile.ZipInfo(_MANGLED.sub(b"", name.encode()).decode(), _DATE), record)
    return result.getvalue()


def import_runtime() -> None:
    """Import what `load` needs, which takes longer than to load a small file."""
    import torch  # noqa: F401


def load(path: Path, *, num_threads: int) -> tuple[Callable[[Array], list[Array]], dict[str, Any], dict[str, Array]]:
    """Return a call, what the file says of itself, and its tensors by name."""
    import torch

    torch.set_num_threads(num_threads)
    extra = {_METADATA: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module = torch.jit.load(path, map_location="cpu", _extra_files=extra)

    def call(x: Array) -> list[Array]:
        with torch.inference_mode():
            return [output.numpy() for output in module(torch.from_numpy(x))]

    facts = {"runtime": "torch.jit", "version": torch.__version__, "metadata": json.loads(extra[_METADATA] or "{}")}
    return call, facts, {name: value.detach().numpy() for name, value in module.state_dict().items()}
