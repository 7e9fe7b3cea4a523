"""Files that appear under their name only when they are complete, their hashes, and the lock that keeps two processes apart."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_TEMPORARY = re.compile(r"\.(.+)\.[a-z0-9_]{8}")  # what `tempfile` makes of the prefix `.name.`
_POLL = 0.1  # s


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


def read_json(path: Path) -> Any:
    """Return what a JSON file holds. Raises ValueError where it is none, also where its brackets are nested too deeply."""
    try:
        return json.loads(path.read_text())
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error


def digest_of(values: dict[str, Any]) -> str:
    """Return the hex SHA-256 of JSON values, for a file that carries its own."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


class Locked(OSError):
    """Another process holds a lock."""


@contextmanager
def locked(path: Path, *, wait: float = math.inf) -> Iterator[None]:
    """Hold the lock that is the file `path`; the system lets go of it however the process ends.

    Raises Locked where another process still holds it after `wait` seconds. The system lets go, too, as soon as this
    process closes any other handle of that file, so it must not ask for a lock that it holds.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + wait
    try:
        while True:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except (BlockingIOError, PermissionError) as error:  # held; any other error is that of a system without locks
                if time.monotonic() >= deadline:
                    raise Locked(f"{path} is locked") from error
                time.sleep(_POLL)
        yield
    finally:
        os.close(handle)


def is_locked(path: Path) -> bool:
    """Tell whether another process holds a lock; never ask for one that this process holds."""
    if not path.exists():
        return False
    try:
        with locked(path, wait=0):
            return False
    except Locked:
        return True
