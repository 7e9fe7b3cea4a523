"""A table as a data set: which column is what, how its samples are split, and what ought to be told of it.

A table is read whole when it is first asked for, since no header says whether a target is missing somewhere. Rows are counted
from 1, without the row of names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data import table_file
from pipeline.data.columns import Column, coded, distinct, each, raw_columns, texts
from pipeline.data.spec import DataOptions, DataSpec, Samples, Source, Texts
from pipeline.data.table_file import listed
from pipeline.data.table_notes import duplicates, profiles, told
from pipeline.data.table_target import Target, find_target
from pipeline.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    Array = NDArray[Any]

SUFFIXES = table_file.SUFFIXES
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_UNNAMED = ("", "__index_level_0__")  # the index that pandas writes to CSV, and to Parquet
USUAL_TARGETS = ("target", "label", "labels", "class", "y")


@dataclass(frozen=True)
class _Roles:
    """The names of the columns by what they are for; those in no role are left out."""

    targets: tuple[str, ...]
    features: tuple[str, ...]
    group: str
    split: str

    @property
    def used(self) -> list[str]:
        return [name for name in (*self.targets, *self.features, self.group, self.split) if name]


def source(path: Path, options: DataOptions) -> Source:
    """Return a table (.csv, .tsv, .parquet, .feather, .arrow) as a data set, whose features are `Samples.raw`.

    `spec.columns` has names and kinds; `spec.sample_shape` is (D,) as all rows together would give it, while the training rows
    alone decide. Raises UserError.
    """
    what = f"dataset={path}"
    names = table_file.names(path)
    roles = _roles(names, options, what)
    table = table_file.read(path, skip={*names} - {*roles.used})
    _refuse_nested(table, what)
    target = find_target([table.column(name) for name in roles.targets], roles.targets, options.task)
    columns = [Column(name=name, kind=kind_of(table.schema.field(name).type)) for name in roles.features]
    raw = _columns(table, columns, what)
    split = _split(table.column(roles.split), roles.split) if roles.split else None
    groups = _groups(table.column(roles.group), roles.group, split) if roles.group else None
    types = {name: str(table.schema.field(name).type) for name in roles.features}
    del table
    found = profiles(raw, columns, types=types, targets=dict(zip(roles.targets, target.values, strict=True)))
    kept = [column for column, profile in zip(columns, found, strict=True) if not profile.why_left_out]
    notes = [*target.notes, *_unnamed(names), *told(found)]
    if not kept:
        raise UserError(
            f"{what} has no column to learn from beside {listed(roles.targets)}. {' '.join(notes)}".rstrip()
            + " Give a table with columns that tell something."
        )
    raw = {column.name: raw[column.name] for column in kept}
    compared = [raw[p.column.name] for p in found if p.column.name in raw and not p.is_row_number]
    groups, more = duplicates(compared or list(raw.values()), groups, split)
    notes += [*more, *_classes_without_training(target, split)]
    spec = DataSpec(
        name=path.stem, task=target.task, classes=target.classes, targets=target.targets, columns=tuple(kept),
        sample_shape=(sum(profile.width for profile in found if not profile.why_left_out),),
    )  # fmt: skip
    samples = Samples(np.zeros((len(target.y), 0), np.float32), target.y, split=split, groups=groups, raw=raw)
    there = set() if split is None else set(np.unique(split).tolist())
    return Source(
        summary=f"{len(target.y)} rows, {len(kept)} columns to learn {listed(roles.targets)} from ({path.name})",
        spec=spec, num_train=len(target.y) if split is None else int((split == "train").sum()), has_target=True,
        load=partial(_load, samples), files=partial(_files, path), notes=tuple(notes), has_val_set="val" in there,
        has_test_set="test" in there,
    )  # fmt: skip


def _columns(table: pa.Table, columns: Sequence[Column], what: str) -> dict[str, Array | Texts]:
    """Return a table's columns by name, each (N,): float64, or its texts."""
    numbers = raw_columns(table, [column for column in columns if not column.is_category], what=what)
    names = [column.name for column in columns if column.is_category]
    words = dict(zip(names, each(lambda name: coded(table.column(name)), names), strict=True))
    return {column.name: (words if column.is_category else numbers)[column.name] for column in columns}


def _load(samples: Samples, /, data_dir: Path, seed: int) -> Samples:
    return samples


def _files(path: Path, /, data_dir: Path) -> list[Path]:
    return [path]


def _roles(names: Sequence[str], options: DataOptions, what: str) -> _Roles:
    """Return what each column is for. Raises UserError with a sentence for each flag that does not fit."""
    problems: list[str] = []
    named = [name for name in names if name]

    def find(flag: str, given: str, *, several: bool = False) -> tuple[str, ...]:
        if not given:
            return ()
        asked = [given] if given in names or not several else [part.strip() for part in given.split(",") if part.strip()]
        for name in asked:
            if name not in names:
                near = get_close_matches(name, named, n=1) or [n for n in named if n.lower() == name.lower()][:1]
                hint = f"Did you mean {near[0]}?" if near else f"It has: {listed(named, 20)}."
                problems.append(f"{flag}={given}: {what} has no column {name}. {hint}")
        if repeated := sorted({name for name in asked if asked.count(name) > 1}):
            problems.append(f"{flag}={given} names {listed(repeated)} twice. Name each column once.")
        return tuple(asked)

    targets = find("target", options.target, several=True)
    ignored = find("ignore_columns", options.ignore_columns, several=True)
    group, split = (
        (*find(flag, given), "")[0]
        for flag, given in (("group_column", options.group_column), ("split_column", options.split_column))
    )
    if not targets:
        usual = [name for name in named if name.lower() in USUAL_TARGETS]
        hint = f" Is it {usual[0]}?" if usual else ""
        problems.append(
            f"target: {what} is a table. Say which column is to be learnt, --target NAME.{hint} It has: {listed(named, 20)}."
        )
    uses = {"target": targets, "ignore_columns": ignored, "group_column": (group,), "split_column": (split,)}
    flags = list(uses)
    for k, flag in enumerate(flags):
        for other in flags[k + 1 :]:
            if both := sorted({*uses[flag]} & {*uses[other]} - {""}):
                problems.append(f"{other}={getattr(options, other)}: {both[0]} is the {flag} too. Name it in one of them.")
    if problems:
        raise UserError(*problems)
    taken = {*targets, *ignored, group, split, *_UNNAMED}
    return _Roles(targets, tuple(name for name in names if name not in taken), group, split)


def _unnamed(names: Sequence[str]) -> list[str]:
    if not {*names} & {*_UNNAMED}:
        return []
    return ["The column without a name is left out, as it seems to be an index. Name it to have it used."]


def _refuse_nested(table: pa.Table, what: str) -> None:
    wrong = [f"{field.name} ({field.type})" for field in table.schema if kind_of(field.type) == ""]
    if wrong:
        ignored = ",".join(f.name for f in table.schema if kind_of(f.type) == "")
        raise UserError(
            f"{what} has columns that are neither numbers, text nor dates: {listed(wrong)}. Leave them out: --ignore_columns "
            f"{ignored[:200]}"
        )


def kind_of(kind: pa.DataType) -> str:
    """Return what a column of a pyarrow type is, or "" where it cannot be learnt from."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return "category" if kind_of(kind.value_type) else ""
    tests = {
        "boolean": (types.is_boolean,),
        "number": (types.is_integer, types.is_floating, types.is_decimal, types.is_null, types.is_time, types.is_duration),
        "date": (types.is_date, types.is_timestamp),
        "category": (types.is_string, types.is_large_string, types.is_string_view),
    }
    return next((name for name, each in tests.items() if any(test(kind) for test in each)), "")


def _split(values: pa.ChunkedArray, name: str) -> Array:
    """Return (N,) of train, val and test."""
    found = texts(values)
    given, codes = distinct(found)
    if unknown := [k for k, text in enumerate(given) if text.strip().lower() not in _SPLITS]:
        row = int(np.isin(codes, unknown).argmax())
        value = f"is {found[row]!r}" if found[row] else "is empty"
        raise UserError(
            f"split_column={name} {value} in row {row + 1}. It may hold {', '.join(_SPLITS)}: mend it, or leave "
            "--split_column out."
        )
    split = np.array([_SPLITS[text.strip().lower()] for text in given])[codes]
    if "train" not in split:
        raise UserError(f"split_column={name} has no row of train. Say which rows to train on, or leave --split_column out.")
    return split


def _groups(values: pa.ChunkedArray, name: str, split: Array | None) -> Array:
    """Return the number of each row's group, int64 (N,)."""
    found = texts(values)
    if (missing := found == "").any():
        raise UserError(
            f"group_column={name} is empty in {int(missing.sum())} rows, first in row {int(missing.argmax()) + 1}. Give each "
            "row a group."
        )
    given, groups = distinct(found)
    if len(given) == 1:
        raise UserError(f"group_column={name} has one group only, which cannot be split. Leave --group_column out.")
    if split is not None:
        pairs = np.unique(np.stack([groups, np.unique(split, return_inverse=True)[1]]), axis=1)
        places = np.bincount(pairs[0])
        if (places > 1).any():
            raise UserError(
                f"group_column={name}: {int((places > 1).sum())} groups lie in several splits of --split_column, first "
                f"{given[int((places > 1).argmax())]}. Mend the splits, or leave one of the two flags out."
            )
    return groups


def _classes_without_training(target: Target, split: Array | None) -> list[str]:
    if split is None or not target.classes or target.y.ndim > 1:
        return []
    counts = np.bincount(target.y[split == "train"], minlength=len(target.classes))
    if not (missing := [target.classes[k] for k in np.flatnonzero(counts == 0)]):
        return []
    return [f"No training row is of {listed(missing)}: a model cannot learn it."]
