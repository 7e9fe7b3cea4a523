"""Files that appear under their name only when they are complete, and what a killed write leaves behind instead of one."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}")  # what `tempfile` makes of the prefix `.name.`


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there takes its name at the end, or is removed on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: object) -> None:
    """Write JSON that a person can read, atomically. NaN and infinity are refused: they are not JSON."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")


def written_as(name: str) -> str:
    """Return the name that a temporary file of `atomic` was meant to get; empty for a name that is none of a temporary file."""
    found = _TEMPORARY.fullmatch(name)
    return found[1] if found else ""


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder. What is gone already, or cannot be removed, is left as it is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
