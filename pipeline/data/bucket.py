"""Raw data in a bucket, which `prepare --shards` makes shards of: images are read where they lie, one file is brought here.

Of images this process holds names, sizes and times; their headers are read to be looked at, and their bytes by whom their
shard belongs to. A table, a Parquet file with images or an .npz file is read whole, as it is from a disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipeline.data.decoding import Stamp
from pipeline.data.shards.places import Place
from pipeline.errors import Failure, UserError
from pipeline.files import digest_of

_FILES = (".csv", ".tsv", ".parquet", ".feather", ".arrow", ".npz")
_brought: dict[str, tempfile.TemporaryDirectory[str]] = {}  # by address; they go with this process


@dataclass(frozen=True)
class Bucket:
    """A folder of a bucket, and the stamps of the files below it by name, as they were when it was listed."""

    place: Place
    stamps: Mapping[str, Stamp] = field(compare=False, default_factory=dict)

    def stamp(self, name: str) -> Stamp:
        """Return what a file is now. Raises OSError."""
        size, modified = self.place.stat(name)
        return Stamp(size, modified, 0)

    def read(self, name: str, most: int = -1) -> bytes:
        """Return a file, or its first bytes. Raises Failure where it cannot be had."""
        try:
            return self.place.read(name, most)
        except OSError as error:
            reason = "it is not there" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0][:200]
            said = f"dataset={self.place.address}: {name} cannot be had: {reason}. Start the same command again."
            raise Failure(said) from error

    @property
    def digest(self) -> str:
        """A SHA-256 of the names, sizes and times of all files."""
        return digest_of({name: [*stamp] for name, stamp in self.stamps.items()})

    def __str__(self) -> str:
        return self.place.address


def is_file(address: str) -> bool:
    """Tell a file that is read whole from a folder of images."""
    return PurePosixPath(address).suffix.lower() in _FILES


def listed(address: str) -> Bucket:
    """Return the folder at an address. Raises UserError where nothing lies there."""
    try:
        found = Place(address).listing()
    except OSError as error:
        raise UserError(f"dataset={address} cannot be read ({str(error).splitlines()[0][:200]}).") from error
    if not found:
        raise UserError(
            f"dataset={address} has no index.json, and no image either. Write shards first: prepare --shards 256MB "
            "--output_dir PLACE."
        )
    return Bucket(Place(address), {name: Stamp(size, modified, 0) for name, (size, modified) in found.items()})


def brought(address: str) -> Path:
    """Return a file's copy on this machine, as long as this process lives. Raises UserError where it cannot be had."""
    parent, _, name = address.rpartition("/")
    if address not in _brought:
        made = tempfile.TemporaryDirectory(prefix="trainyard-")
        try:
            (Path(made.name) / name).write_bytes(Place(parent).read(name))
        except FileNotFoundError:
            raise UserError(f"dataset={address} is not there. Give a file or a folder of the bucket.") from None
        except OSError as error:
            raise UserError(f"dataset={address} cannot be read ({str(error).splitlines()[0][:200]}).") from error
        _brought[address] = made
    return Path(_brought[address].name) / name
