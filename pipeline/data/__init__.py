"""Data: what is there, prepared tensors, and batches. `find` is the only door to a data set, by its name or by its path."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.builtin import SOURCES
from pipeline.data.spec import DataOptions, DataSpec, Source
from pipeline.errors import UserError
from pipeline.files import sha256

if TYPE_CHECKING:
    from pipeline.config import RunConfig

_TABLES = (".csv", ".tsv", ".parquet", ".feather", ".arrow")
_KEPT = 4  # answers of one data set, which may fill the memory
_known: dict[tuple[str, DataOptions], tuple[dict[str, tuple[int, ...]], Source]] = {}  # with what it was made from
_OWN = "a folder of images, a table (.csv, .tsv, .parquet, .feather), an .npz file, or file.py:function"


def address(name: str) -> str:
    """Return a data set's name, or the whole path of one that is given by its path."""
    return name if name in SOURCES or not name or "://" in name else os.path.abspath(os.path.expanduser(name))


def find(name: str, options: DataOptions | None = None) -> Source:
    """Return the data set that `--dataset` names: one that comes with Trainyard, a folder, a file or `file.py:function`.

    Raises UserError where there is none, or where it cannot be read as `options` say.
    """
    if name in SOURCES:
        return SOURCES[name]
    path = Path(os.path.expanduser(name))
    if "://" in name:
        return _own(name, options or DataOptions())
    if name and (name.rpartition(":")[0].endswith(".py") or os.path.exists(path)):
        whole = address(name)
        try:
            return _own(whole, options or DataOptions())
        except UserError as error:  # it says what was given
            raise UserError(*(message.replace(whole, str(path)) for message in error.messages)) from error
    if "/" in name or path.suffix:
        raise UserError(f"dataset={name} is not there. Give {_OWN}, or one of: {', '.join(SOURCES)}.")
    near = get_close_matches(name, SOURCES, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(f"dataset={name} is not known.{hint} Choose one of: {', '.join(SOURCES)}; or give {_OWN}.")


def _own(name: str, options: DataOptions) -> Source:
    """Return what lies at a whole path, which is read once in a process as long as it does not change.

    A file has changed where its size or times have; a function where its own file has, whatever else it imports or reads; a
    folder of images where one in it was added, taken away or renamed, which the times of the folders tell. An image written
    anew in its place is noticed when it is decoded, which fails; `prepare` then has all looked at again when it is next asked.
    """
    key = (name, options)
    if key in _known:
        made_from, source = _known[key]
        if all(_stamp(part) == stamp for part, stamp in made_from.items()):
            return source
    made_from = {part: _stamp(part) for part in _parts(name)}  # before it is read: what changes meanwhile is noticed
    for other in [k for k in _known if k[0] != name or k == key]:
        del _known[other]
    source = dataclasses.replace(_read(name, options), is_own=True)
    _known[key] = made_from, source
    if len(_known) > _KEPT:
        del _known[next(iter(_known))]
    return source


def forget() -> None:
    """Have what was read be read anew when it is next asked for."""
    _known.clear()


def _parts(name: str) -> list[str]:
    """Return the paths whose times tell that a data set has changed."""
    if os.path.isdir(name):
        from pipeline.data import layout

        return layout.folders(Path(name))
    file = name.rpartition(":")[0]
    return [file if file.endswith(".py") else name]


def _stamp(path: str) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(name: str, options: DataOptions) -> Source:
    from pipeline.data.shards import source as shards

    if shards.is_place(name):
        return shards.source(name, options)
    return _in_bucket(name, options) if "://" in name else _at_path(name, options)


def _in_bucket(name: str, options: DataOptions) -> Source:
    from pipeline.data import bucket

    if not bucket.is_file(name):
        from pipeline.data import folder

        there = bucket.listed(name)
        return dataclasses.replace(folder.source(there, options), files=None, digest=there.digest, is_remote=True)
    path = bucket.brought(name)
    try:
        found = _at_path(str(path), options)
    except UserError as error:
        raise UserError(*(message.replace(str(path), name) for message in error.messages)) from error
    return dataclasses.replace(found, files=None, digest=sha256(path), is_remote=True)


def _at_path(name: str, options: DataOptions) -> Source:
    path = Path(name)
    if path.is_dir():
        from pipeline.data import folder

        return folder.source(path, options)
    if path.suffix.lower() in _TABLES:
        from pipeline.data import image_table, table

        if image_table.column_of(path):
            return image_table.source(path, options)

        return table.source(path, options)
    from pipeline.data import arrays

    return arrays.source(name, options)


def options_of(fields: Mapping[str, Any]) -> DataOptions:
    """Return how data is to be read, from the fields of a configuration."""
    values = {option.name: fields[option.name] for option in dataclasses.fields(DataOptions) if option.name != "args"}
    values["task"] = "" if values["task"] == "auto" else values["task"]
    return DataOptions(**values, args=json.dumps(dict(fields["data_args"]), sort_keys=True))


def source_of(config: RunConfig) -> Source:
    """Return the data set of a configuration. Raises UserError."""
    return find(config.dataset, options_of(vars(config)))


def matching(fits: Callable[[DataSpec], bool] = lambda spec: True) -> list[str]:
    """Return the names of the data sets that come with Trainyard and that `fits` takes."""
    return [name for name, source in SOURCES.items() if fits(source.spec)]
