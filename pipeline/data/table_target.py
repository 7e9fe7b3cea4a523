"""What a table is to teach: the task, the classes and the values that follow from its target columns.

Text and booleans are classes. Whole numbers are, if there are at most 20 and each is there twice: the surprise that is told, as
`--task regression` takes them as numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.columns import Column, distinct, raw_column, texts
from pipeline.data.table_file import listed
from pipeline.errors import UserError
from pipeline.task import TASKS, of_classes

if TYPE_CHECKING:
    import pyarrow as pa

    Array = NDArray[Any]

MAX_WHOLE_NUMBERS = 20  # distinct ones that are taken for classes
_MAX_CLASSES = 1000
_LOOK_MISSING = {"NA", "N/A", "n/a", "NaN", "nan", "null", "NULL", "None", "?", "-"}


@dataclass(frozen=True)
class Target:
    """`y` is int64 (N,), or float32 (N, T) for regression and (N, K) of 0 and 1 for multilabel.

    `values` are the columns as they were, float64 or object (str).
    """

    task: str
    y: Array
    values: tuple[Array, ...]
    classes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def find_target(columns: Sequence[pa.ChunkedArray], names: Sequence[str], task: str) -> Target:
    """Return what the columns `names` are to teach; `task` is what the user says of it, or nothing. Raises UserError."""
    values = [_values(column, name) for column, name in zip(columns, names, strict=True)]
    is_bool = [str(column.type) == "bool" for column in columns]
    for name, each in zip(names, values, strict=True):
        missing = each == "" if each.dtype == object else np.isnan(each)
        if missing.any():
            raise UserError(
                f"target={name} is missing in {int(missing.sum())} of {len(each)} rows, first in row "
                f"{int(missing.argmax()) + 1}. Fill it, or leave these rows out of the table."
            )
    if len(values) > 1:
        return _several(values, names, task)
    return _single(values[0], names[0], task, is_bool=is_bool[0])


def _values(column: pa.ChunkedArray, name: str) -> Array:
    import pyarrow as pa

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_date = pa.types.is_date(kind) or pa.types.is_timestamp(kind)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return texts(column)
    return raw_column(column, Column(name=name, kind="date" if is_date else "number"), what=f"target={name}:")


def _single(values: Array, name: str, task: str, *, is_bool: bool) -> Target:
    found, codes = distinct(values)
    counts = np.bincount(codes)
    given = f"task={task}: target={name}" if task else f"target={name}"
    if len(found) == 1:
        raise UserError(f"target={name} is {_named(found[0])!r} in all {len(values)} rows: there is nothing to learn.")
    kind = TASKS[task] if task else None
    if kind and kind.has_labels:
        raise UserError(f"{given} is one column, and multilabel needs one for each label, of 0 and 1. Give --target a,b.")
    is_text = values.dtype == object
    is_whole = not is_text and all(value == round(value) and abs(value) < 2**53 for value in found)
    notes = []
    is_numbers = kind is not None and not kind.has_decisions
    if not kind:
        few = is_whole and len(found) <= MAX_WHOLE_NUMBERS
        is_numbers = not (is_text or is_bool or (few and counts.min() > 1))
        if few and is_numbers:
            notes.append(f"{name} is taken as numbers, as {_named(found[int(counts.argmin())])} is there once only.")
        if few and not is_bool and not is_numbers and found != [0, 1]:
            notes.append(
                f"{name} has {len(found)} whole numbers, which are taken as classes; --task regression takes them as numbers."
            )
    if is_numbers:
        if is_text:
            raise UserError(
                f"{given} is text ({listed([repr(text) for text in found], 3)}), and regression needs numbers. Leave --task "
                "out."
            )
        return _regression([values], [name], notes)
    if is_bool:
        classes = tuple("true" if value else "false" for value in found)
    elif is_text or is_whole:
        classes = tuple(_named(value) for value in found)
    else:
        raise UserError(f"{given} holds fractions, which are no classes. Use --task regression.")
    if kind and not kind.takes_classes(len(classes)):
        raise UserError(f"{given} has {len(classes)} classes, and {task} is of two. Use --task multiclass.")
    if len(classes) > _MAX_CLASSES or (len(values) > 20 and len(classes) > len(values) / 2):
        is_number = is_text and sum(_reads_as_number(text) for text in classes) > len(classes) / 2
        hint = (
            "They look like numbers: write them without units and separators of thousands"
            if is_number
            else "Choose another target"
        )
        raise UserError(f"{given} has {len(classes)} different values in {len(values)} rows, which are no classes. {hint}.")
    if is_text and (odd := sorted({*classes} & _LOOK_MISSING)):
        notes.append(
            f"{listed([repr(text) for text in odd])} is a class of {name}: in a column of text only an empty field is missing."
        )
    return Target(task or of_classes(len(classes)), codes, (values,), classes=classes, notes=tuple(notes))


def _several(values: Sequence[Array], names: Sequence[str], task: str) -> Target:
    given = f"target={','.join(names)}"
    kind = TASKS[task] if task else None
    if kind and kind.has_strata:
        raise UserError(f"task={task}: {given} are {len(names)} columns, and {task} is of one. Give one, or leave --task out.")
    if text := [name for name, each in zip(names, values, strict=True) if each.dtype == object]:
        raise UserError(
            f"{given}: {listed(text)} is text. Several targets are numbers, or labels of 0 and 1; give one target alone."
        )
    wrong = [name for name, each in zip(names, values, strict=True) if not ((each == 0) | (each == 1)).all()]
    if kind and kind.has_labels and wrong:
        raise UserError(
            f"task=multilabel: {given}: {listed(wrong)} holds other values than 0 and 1. Mend it, or leave --task out."
        )
    constant = [name for name, each in zip(names, values, strict=True) if each.min() == each.max()]
    if len(constant) == len(names):
        raise UserError(f"{given}: each has the same value in all rows: there is nothing to learn.")
    notes = [f"{listed(constant)} has the same value in all rows: there is nothing to learn."] if constant else []
    if wrong or (kind and not kind.has_decisions):
        return _regression(values, names, notes)
    return Target("multilabel", np.stack(values, 1).astype(np.float32), tuple(values), classes=tuple(names), notes=tuple(notes))


def _regression(values: Sequence[Array], names: Sequence[str], notes: Sequence[str]) -> Target:
    told = [*notes]
    for name, each in zip(names, values, strict=True):
        if np.abs(each).max() > np.finfo(np.float32).max:
            row = int(np.abs(each).argmax())
            raise UserError(
                f"target={name} is {each[row]:g} in row {row + 1}, beyond what float32 holds. Scale it, or take its logarithm."
            )
        some = np.unique(each[:100_000])
        if lost := len(some) - len(np.unique(some.astype(np.float32))):
            told.append(
                f"{name} is learnt as float32, in which {lost} of {len(some)} different values become equal to others: take "
                "something away from it that is common to all."
            )
    return Target("regression", np.stack(values, 1).astype(np.float32), tuple(values), targets=tuple(names), notes=tuple(told))


def _named(value: Any) -> str:
    """Return the name of a class: a whole number without its fraction."""
    return str(int(value)) if isinstance(value, float) and value == round(value) else str(value)


def _reads_as_number(text: str) -> bool:
    try:
        float(text.replace(",", "").replace(" ", "").strip("$€£%"))
    except ValueError:
        return False
    return True
