"""The formats of exported files, one module of this folder each: what it has is what there is.

A format that is made from the captured graph has a module that imports nothing of ours, and its libraries only inside of its
functions: `export/isolated.py` loads it by its path, where our packages cannot be imported. It has

    ORDER, FILE                                    its place in reports, and the name of its file in `export/`
    build(program, properties, *, outputs)         the file's bytes, from the captured graph; ValueError where there are none
    import_runtime()                               imports what `load` needs
    load(path, *, num_threads)                     a call, what the file says of itself (facts), and its weights by name

A format that is derived from another one's file, and loaded as that is, is called `<that one>-<module>`, and has

    ORDER, FILE, BASE                              as above, and the name of the format that it is made from
    derivation(content, samples)                   a `graph.Derivation`: which layers there are, and the bytes without some

It loses something, so it is held to what matters for it (`export/gates.py`) instead of to each number.

The bytes are the same each time, and hold no path of this machine. A call takes and gives arrays. Facts are JSON values:
`runtime`, `version` and `metadata`; a format whose files declare `inputs` and `outputs` tells them too, and is held to them.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch.export import ExportedProgram

    from export.graph import Derivation


class Builder(Protocol):
    def __call__(self, program: ExportedProgram, properties: Mapping[str, object], *, outputs: tuple[str, ...]) -> bytes: ...


class Deriver(Protocol):
    def __call__(self, content: bytes, samples: NDArray[Any]) -> Derivation: ...


@dataclass(frozen=True)
class Format:
    """`source` is the file of the module that has its loader, by which an isolated process finds it.

    It is made by `build`, or derived by `derivation` from the file of the format `base`.
    """

    name: str
    file: str
    source: Path
    build: Builder | None = None
    base: str = ""
    derivation: Deriver | None = None


def _found() -> Iterator[tuple[int, Format]]:
    for name in (module.name for module in pkgutil.iter_modules(__path__)):
        module = import_module(f"{__name__}.{name}")
        if base := getattr(module, "BASE", ""):
            source = Path(str(import_module(f"{__name__}.{base}").__file__))
            yield module.ORDER, Format(f"{base}-{name}", module.FILE, source, base=base, derivation=module.derivation)
        else:
            yield module.ORDER, Format(name, module.FILE, Path(str(module.__file__)), build=module.build)


FORMATS: Mapping[str, Format] = {each.name: each for _, each in sorted(_found(), key=lambda found: (found[0], found[1].name))}
"""By name, in the order of the reports; a derived one stands behind its base."""
