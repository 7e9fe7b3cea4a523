"""Which modules of ours a module imports, and a digest of the bytes of each: what a result was computed by.

Imports are found in the text, at a tenth of the time that a syntax tree takes, as every command asks. What only looks like one,
in a docstring, counts too, which costs a comparison and no mistake; a test holds the rest against the syntax tree.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_OURS = ("models", "pipeline", "export")
_IMPORT = re.compile(r"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]+(\([^)]*\)|[^\n#]+)|import[ \t]+([^\n#]+))", re.MULTILINE)
_NAME = re.compile(r"([\w.]+)(?:[ \t]+as[ \t]+\w+)?")
_LENGTH = 12  # hexadecimal digits: enough to tell two versions of one file apart


def digests(*modules: str) -> dict[str, str]:
    """Return the first digits of the SHA-256 of each of `modules` and of all that they import of ours, by module, sorted.

    Those within functions and for types count too, and the packages around them.
    """
    found: dict[str, str] = {}
    waiting = [*modules]
    while waiting:
        if (name := waiting.pop()) not in found:
            found[name], imported = _look(name)
            waiting += imported
    return dict(sorted(found.items()))


def modules_of(package: str) -> tuple[str, ...]:
    """Return the modules of a package of ours that are loaded by their names, which no import tells."""
    folder = _ROOT.joinpath(*package.split("."))
    return tuple(f"{package}.{path.stem}" for path in sorted(folder.glob("*.py")) if path.stem != "__init__")


@cache
def _look(module: str) -> tuple[str, tuple[str, ...]]:
    content = _path(module).read_bytes()
    around = [module.rpartition(".")[0]] if "." in module else []
    return hashlib.sha256(content).hexdigest()[:_LENGTH], (*around, *imports(content.decode()))


def imports(source: str) -> Iterator[str]:
    """Yield the modules of ours that a source imports."""
    for package, names, plain in _IMPORT.findall(source):
        for name in _NAME.findall(names or plain):
            whole = f"{package}.{name}" if package else name
            if whole.partition(".")[0] in _OURS:
                yield whole if _path(whole).is_file() else package or whole


@cache
def _path(module: str) -> Path:
    place = _ROOT.joinpath(*module.split("."))
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
