"""A disk that is small, for real: a file system in memory. Needs root to mount it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, timeout=20, capture_output=True)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Yield a file system of 24 MB, or skip the test where nothing can be mounted."""
    folder.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"nothing can be mounted here: {error}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=20)


def fill(disk: Path, *, leaving: int = 0) -> None:
    """Write `ballast` until only so many bytes are free."""
    found = os.statvfs(disk)
    with (disk / "ballast").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        file.write(bytes(max(0, found.f_bavail * found.f_frsize - leaving)))
