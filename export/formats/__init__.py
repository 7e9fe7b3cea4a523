"""The formats of exported files, one module of this folder each: what it has is what there is.

A format's module imports nothing of ours, and its libraries only inside of its functions: `export/isolated.py` loads it by its
path, where our packages cannot be imported. It has

    ORDER, FILE                                    its place in reports, and the name of its file in `export/`
    build(program, properties, *, outputs)         the file's bytes, from the captured graph; ValueError where there are none
    import_runtime()                               imports what `load` needs
    load(path, *, num_threads)                     a call, what the file says of itself (facts), and its weights by name

The bytes are the same each time, and hold no path of this machine. A call takes and gives arrays. Facts are JSON values:
`runtime`, `version` and `metadata`; a format whose files declare `inputs` and `outputs` tells them too, and is held to them.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch.export import ExportedProgram


class Builder(Protocol):
    def __call__(self, program: ExportedProgram, properties: Mapping[str, object], *, outputs: tuple[str, ...]) -> bytes: ...


@dataclass(frozen=True)
class Format:
    """`source` is the module's own file, by which an isolated process finds the loader."""

    name: str
    file: str
    build: Builder
    source: Path


def _found() -> Iterator[tuple[int, Format]]:
    for name in (module.name for module in pkgutil.iter_modules(__path__)):
        module = import_module(f"{__name__}.{name}")
        yield module.ORDER, Format(name, module.FILE, module.build, Path(str(module.__file__)))


FORMATS: Mapping[str, Format] = {each.name: each for _, each in sorted(_found(), key=lambda found: (found[0], found[1].name))}
"""By name, in the order of the reports."""
