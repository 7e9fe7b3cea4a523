"""A folder of shards: on this machine, or `s3://bucket/prefix`. Arrow's own file systems, which let other threads work.

The address of a server other than Amazon's stands in AWS_ENDPOINT_URL, and its keys where AWS's own programs look for them. A
file appears under its name when all of it is there, in a bucket as on a disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import files
from pipeline.errors import UserError

_CONNECT, _REQUEST = 5.0, 30.0  # s that a server may take
_PART = 1 << 24  # bytes that are read at a time: each is a request to a bucket


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

    def read(self, name: str) -> bytes:
        """Return a file. Raises FileNotFoundError, or OSError as the store says it."""
        return b"".join(self.parts(name))

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
        with system.open_output_stream(f"{root}/{name}") as stream:
            stream.write(content)

    def size(self, name: str) -> int:
        """Return the bytes of a file; -1 where there is none. Raises OSError as the store says it."""
        if self.local:
            return (self.local / name).stat().st_size if (self.local / name).is_file() else -1
        from pyarrow import fs

        system, root = _remote(self.address)
        found = system.get_file_info(f"{root}/{name}")
        return int(found.size) if found.type == fs.FileType.File else -1


def _remote(address: str) -> tuple[Any, str]:
    """Return Arrow's file system of an address, and the folder there. Raises UserError for one that Arrow does not know."""
    from pyarrow import fs

    scheme, _, path = address.partition("://")
    if scheme != "s3" or not path.strip("/"):
        raise UserError(f"{address} is no place for shards. Give a folder, or s3://BUCKET/FOLDER.")
    options: dict[str, Any] = {"connect_timeout": _CONNECT, "request_timeout": _REQUEST}
    if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
        protocol, _, host = endpoint.rpartition("://")
        options |= {"endpoint_override": host.rstrip("/"), "scheme": protocol or "https"}
    options["region"] = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return fs.S3FileSystem(**options), path.rstrip("/")
