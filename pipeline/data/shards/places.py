"""A folder of shards: on this machine, or `s3://bucket/prefix`. Arrow's own file systems, which let other threads work.

The address of a server other than Amazon's stands in AWS_ENDPOINT_URL, and its keys where AWS's own programs look for them. A
file appears under its name when all of it is there, in a bucket as on a disk. What breaks off is asked for again.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pipeline import files
from pipeline.errors import UserError

_CONNECT, _REQUEST = 5.0, 30.0  # s that a server may take
_TRIES = 6  # of one question
_PAUSE = 0.2  # s before the second try, twice as long before each one after it
FULL = (errno.ENOSPC, errno.EDQUOT)
_PART = 1 << 24  # bytes that are read at a time: each is a request to a bucket


Found = TypeVar("Found")


def is_remote(address: str) -> bool:
    """Tell an address from a path."""
    return "://" in address


@dataclass(frozen=True)
class Place:
    """A folder for shards, by its path or its address."""

    address: str

    @property
    def local(self) -> Path | None:
        """The folder on this machine, or None."""
        return None if is_remote(self.address) else Path(self.address)

    def read(self, name: str, most: int = -1) -> bytes:
        """Return a file, or its first `most` bytes. Raises FileNotFoundError, or OSError as the store says it."""
        if self.local:
            return b"".join(self.parts(name))[: None if most < 0 else most]
        system, root = _remote(self.address)

        def ask() -> bytes:
            if most < 0:
                return b"".join(self.parts(name))
            with system.open_input_file(f"{root}/{name}") as file:
                return bytes(file.read(most))

        return answered(ask)

    def stat(self, name: str) -> tuple[int, int]:
        """Return the bytes of a file in a bucket, and when it was written, in ns. Raises FileNotFoundError, OSError."""
        from pyarrow import fs

        system, root = _remote(self.address)
        found = answered(lambda: system.get_file_info(f"{root}/{name}"))
        if found.type != fs.FileType.File:
            raise FileNotFoundError(name)
        return int(found.size), int(found.mtime_ns or 0)

    def listing(self) -> dict[str, tuple[int, int]]:
        """Return the files below a folder of a bucket by name, as `stat` does; none where there is no such folder."""
        from pyarrow import fs

        system, root = _remote(self.address)
        found = answered(lambda: system.get_file_info(fs.FileSelector(root, allow_not_found=True, recursive=True)))
        return {
            each.path.removeprefix(f"{root}/"): (int(each.size), int(each.mtime_ns or 0))
            for each in found
            if each.type == fs.FileType.File
        }

    def parts(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of a file, some at a time. Raises as `read`."""
        if self.local:
            with (self.local / name).open("rb") as file:
                while part := file.read(_PART):
                    yield part
            return
        system, root = _remote(self.address)
        with system.open_input_stream(f"{root}/{name}") as stream:
            while part := stream.read(_PART):
                yield part

    def write(self, name: str, content: bytes) -> None:
        """Write a file as a whole. Raises OSError as the store says it."""
        if self.local:
            with files.atomic(self.local / name) as temporary:
                temporary.write_bytes(content)
            return
        system, root = _remote(self.address)

        def ask() -> None:
            with system.open_output_stream(f"{root}/{name}") as stream:
                stream.write(content)

        answered(ask)

    def size(self, name: str) -> int:
        """Return the bytes of a file; -1 where there is none. Raises OSError as the store says it."""
        if self.local:
            return (self.local / name).stat().st_size if (self.local / name).is_file() else -1
        from pyarrow import fs

        system, root = _remote(self.address)
        found = answered(lambda: system.get_file_info(f"{root}/{name}"))
        return int(found.size) if found.type == fs.FileType.File else -1


def answered(ask: Callable[[], Found]) -> Found:
    """Return what a store answers, asked again where a connection breaks, or a ValueError says that the answer is wrong.

    Raises what the last answer raises; what asking again cannot mend, a file that is not there or a full disk, at once.
    """
    for attempt in range(_TRIES - 1):
        try:
            return ask()
        except (OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError) or getattr(error, "errno", 0) in FULL:
                raise
            time.sleep(_PAUSE * 2**attempt)
    return ask()


def _remote(address: str) -> tuple[Any, str]:
    """Return Arrow's file system of an address, and the folder there. Raises UserError for one that Arrow does not know."""
    scheme, _, path = address.partition("://")
    if scheme != "s3" or not path.strip("/"):
        raise UserError(f"{address} is no place for shards. Give a folder, or s3://BUCKET/FOLDER.")
    options: dict[str, Any] = {"connect_timeout": _CONNECT, "request_timeout": _REQUEST}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        protocol, _, host = endpoint.rpartition("://")
        options |= {"endpoint_override": host.rstrip("/"), "scheme": protocol or "https"}
    options["region"] = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return _system(os.getpid(), **options), path.rstrip("/")


@lru_cache(4)
def _system(process: int, **options: Any) -> Any:
    """Return a client, which keeps its connections; that of another process cannot be used."""
    from pyarrow import fs

    return fs.S3FileSystem(**options)
