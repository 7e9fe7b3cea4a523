"""Data: what is there, prepared tensors, and batches. `find` is the only door to a data set, by its name or by its path."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.data.builtin import SOURCES
from pipeline.data.spec import DataOptions, DataSpec, Source
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.config import RunConfig

_TABLES = (".csv", ".tsv", ".parquet", ".feather", ".arrow")
_OWN = "a folder of images, a table (.csv, .tsv, .parquet, .feather), an .npz file, or file.py:function"


def address(name: str) -> str:
    """Return a data set's name, or the whole path of one that is given by its path."""
    return name if name in SOURCES or not name else os.path.abspath(os.path.expanduser(name))


def find(name: str, options: DataOptions | None = None) -> Source:
    """Return the data set that `--dataset` names: one that comes with Trainyard, a folder, a file or `file.py:function`.

    Raises UserError where there is none, or where it cannot be read as `options` say.
    """
    if name in SOURCES:
        return SOURCES[name]
    path = Path(os.path.expanduser(name))
    if name and (name.rpartition(":")[0].endswith(".py") or os.path.exists(path)):
        return dataclasses.replace(_own(str(path), options or DataOptions()), is_own=True)
    if "/" in name or path.suffix:
        raise UserError(f"dataset={name} is not there. Give {_OWN}, or one of: {', '.join(SOURCES)}.")
    near = get_close_matches(name, SOURCES, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UserError(f"dataset={name} is not known.{hint} Choose one of: {', '.join(SOURCES)}; or give {_OWN}.")


@lru_cache(maxsize=8)
def _own(name: str, options: DataOptions) -> Source:
    """Read what is there once in a process."""
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
