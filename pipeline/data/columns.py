"""The columns of a table: raw values, and what the training rows say of them.

Numpy alone, with pyarrow inside functions: `predict` uses this where there is no torch.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.spec import Column, Texts
from pipeline.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    Array = NDArray[Any]

MAX_CATEGORIES = 64
_SAMPLE, _FEW = 10_000, 64  # rows that are looked at for numbers that are few, and how many are
_WORKERS = min(4, os.cpu_count() or 1)  # numpy and pyarrow let go of the interpreter while they compute


def feature_names(columns: Sequence[Column]) -> tuple[str, ...]:
    """Return the D names of the encoded matrix's columns."""
    return tuple(name for column in columns for name in column.feature_names)


def raw_columns(table: pa.Table, columns: Sequence[Column], *, what: str = "input:") -> dict[str, Array]:
    """Return a table's columns by name, each (N,): float64 with NaN for a missing value, or object (str) with "" for one.

    Dates are days since 1970-01-01 UTC, times of day and durations seconds. Raises UserError that begins with `what` where a
    column is not there, or holds what its kind cannot be, or numbers that are infinite, with the row, counted from 1.
    """
    names = table.column_names
    if missing := [column.name for column in columns if column.name not in names]:
        shown = ", ".join(missing[:10]) + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
        raise UserError(f"{what} the table has no column {shown}. Add what is missing; values that are not known may be empty.")
    values = each(lambda column: raw_column(table.column(column.name), column, what=what), columns)
    return {column.name: array for column, array in zip(columns, values, strict=True)}


def raw_column(values: pa.ChunkedArray, column: Column, *, what: str = "input:") -> Array:
    """Return one column as `raw_columns` does."""
    if column.is_category:
        return texts(values)
    import pyarrow as pa

    kind = column.kind
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    read = {"date": _days, "boolean": _truth, "number": _numbers}[kind]
    try:
        array = read(values)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        row, value = _first_bad(values, read)
        wanted = {"date": "a date", "boolean": "true or false", "number": "a number"}[kind]
        raise UserError(
            f"{what} the column {column.name} holds {value!r} in row {row + 1}, which is not {wanted}. Mend it, or leave it "
            "empty."
        ) from error
    if np.isinf(array).any():
        row = int(np.isinf(array).argmax())
        raise UserError(
            f"{what} the column {column.name} holds an infinite number in row {row + 1}. Write a number there, or leave it "
            "empty."
        )
    return array


def texts(values: pa.ChunkedArray) -> Array:
    """Return a column of any flat type as object (str), "" where it is missing; equal texts are one object."""
    return coded(values).array()


def coded(values: pa.ChunkedArray) -> Texts:
    """Return a column of any flat type as texts, in the order in which they come first; "" stands where one is missing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(values.type):
        try:
            return _recoded(values.unify_dictionaries().combine_chunks())
        except pa.ArrowInvalid:  # some with a null, or too long for their numbers when they are one
            values = values.cast(values.type.value_type)
    whole = values if pa.types.is_string(values.type) else values.cast(pa.string())
    encoded = pc.fill_null(whole, "").dictionary_encode().combine_chunks()
    return Texts(encoded.dictionary.to_pylist(), np.asarray(encoded.indices, np.int64))


def _recoded(values: pa.DictionaryArray) -> Texts:
    """Return what is a dictionary already as `coded` does, which may hold a text twice, one of no row, or none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = [text or "" for text in values.dictionary.cast(pa.string()).to_pylist()] + [""]
    codes = np.asarray(pc.fill_null(values.indices.cast(pa.int64()), len(found) - 1))
    first = np.full(len(found), len(codes))
    first[codes[::-1]] = np.arange(len(codes))[::-1]  # of several, the last that is written remains
    places: dict[str, int] = {}
    new = np.empty(len(found), np.int64)
    for code in np.argsort(first, kind="stable")[: np.count_nonzero(first < len(codes))].tolist():
        new[code] = places.setdefault(found[code], len(places))
    return Texts([*places], new[codes])


def _numbers(values: pa.ChunkedArray) -> Array:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = values.type
    per_second = 1
    if pa.types.is_time(kind) or pa.types.is_duration(kind):
        per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
        values = values.cast(pa.int32() if pa.types.is_time32(kind) else pa.int64())
    elif pa.types.is_boolean(kind):
        values = values.cast(pa.int8())
    elif pa.types.is_temporal(kind):
        raise pa.ArrowInvalid("a date")
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        values = pc.if_else(pc.equal(values, ""), None, values)
    if not pa.types.is_float64(values.type):
        values = values.cast(pa.float64(), safe=False)
    array = np.asarray(values.combine_chunks().to_numpy(zero_copy_only=False), np.float64)
    return array / per_second if per_second > 1 else array


def _truth(values: pa.ChunkedArray) -> Array:
    import pyarrow as pa

    array = _numbers(values if not pa.types.is_string(values.type) else values.cast(pa.bool_()))
    if not ((array == 0) | (array == 1) | np.isnan(array)).all():
        raise pa.ArrowInvalid("not true or false")
    return array


def _days(values: pa.ChunkedArray) -> Array:
    import pyarrow as pa

    kind = values.type
    if pa.types.is_null(kind) or pa.types.is_string(kind):
        values = values.cast(pa.timestamp("us"))
    elif not (pa.types.is_date(kind) or pa.types.is_timestamp(kind)):
        raise pa.ArrowInvalid("no date")
    kind = values.type
    if pa.types.is_date32(kind):
        return _numbers(values.cast(pa.int32()))
    unit = "ms" if pa.types.is_date64(kind) else kind.unit
    per_day = 86_400 * {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    return _numbers(values.cast(pa.int64())) / per_day


def _first_bad(values: pa.ChunkedArray, read: Callable[[pa.ChunkedArray], Array]) -> tuple[int, Any]:
    """Return the row and value that `read` fails on first, by halves."""
    import pyarrow as pa

    start, stop = 0, len(values)
    while stop - start > 1:
        middle = (start + stop) // 2
        try:
            read(values.slice(start, middle - start))
            start = middle
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
            stop = middle
    return start, values[start].as_py() if len(values) else None


def fit(
    raw: Mapping[str, Array | Texts], columns: Sequence[Column], rows: NDArray[np.int64] | None = None
) -> tuple[Column, ...]:
    """Return the columns with what the training rows say of them: `rows` of `raw`, whose columns are (N,), or all.

    Of `columns`, name and kind are used.

    `fill` is the median, `center` and `scale` are mean and deviation of the values that are there, in float64; a constant has
    the scale 1, and booleans stay 0 and 1. Categories are those with two rows or more, at most the 64 most frequent (of equally
    frequent ones the first by name), sorted by name: so "other" is learnt from the rare ones.
    """

    def fitted(column: Column) -> Column:
        values = raw[column.name]
        if rows is not None:
            values = values.of(rows) if isinstance(values, Texts) else values.take(rows)
        return _fitted(values, column)

    return tuple(each(fitted, columns))


def _fitted(values: Any, column: Column) -> Column:
    plain = Column(name=column.name, kind=column.kind)
    if column.is_category:
        found, codes = dictionary(values)
        counts = dict(zip(found, np.bincount(codes, minlength=len(found)).tolist(), strict=True))
        has_missing = counts.pop("", 0) > 0
        return dataclasses.replace(plain, categories=frequent(counts), has_missing=has_missing)
    missing = np.isnan(values)
    has_missing = bool(missing.any())
    present = values[~missing] if has_missing else values
    if not len(present):
        return dataclasses.replace(plain, has_missing=has_missing)
    fill = _median(present)
    center, scale = (0.0, 1.0) if column.kind == "boolean" else _moments(present)
    return dataclasses.replace(plain, center=center, scale=scale, fill=fill, has_missing=has_missing)


def frequent(counts: Mapping[str, int]) -> tuple[str, ...]:
    """Return the categories that get a slot of their own, sorted, from the number of rows of each."""
    ranked = sorted((-count, name) for name, count in counts.items() if count > 1)
    return tuple(sorted(name for _, name in ranked[:MAX_CATEGORIES]))


def _median(values: Array) -> float:
    half = len(values) // 2
    upper = np.partition(values, half)  # np.median would look for NaN and copy once more
    value = float(upper[half]) if len(values) % 2 else float(upper[:half].max()) / 2 + float(upper[half]) / 2
    return value if np.isfinite(value) else float(upper[half])


def _moments(values: Array) -> tuple[float, float]:
    """Return mean and deviation, which are finite for all finite values."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        return low, 1.0
    size = max(abs(low), abs(high))
    if 1e-100 < size < 1e100:
        mean, deviation = float(values.mean()), float(values.std())
    else:  # squares and sums would leave float64
        mean, deviation = size * float((values / size).mean()), size * float((values / size).std())
    mean = min(max(mean, low), high)
    return (mean, deviation) if np.finfo(np.float64).tiny < deviation < np.inf else (mean, 1.0)


def dictionary(values: Array | Texts) -> Texts:
    """Return the distinct texts of (N,), and for each value its place among them."""
    if isinstance(values, Texts):
        return values
    import pyarrow as pa

    encoded = pa.array(values, pa.large_string()).dictionary_encode()
    return Texts(encoded.dictionary.to_pylist(), np.asarray(encoded.indices, np.int64))


def distinct(values: Array) -> tuple[list[Any], NDArray[np.int64]]:
    """Return the distinct values of (N,), sorted, and for each value its place among them; texts are not copied."""
    if values.dtype != object:
        few = np.unique(values[:_SAMPLE])
        if len(few) <= _FEW:  # as of classes: found without sorting all
            places = np.searchsorted(few, values)
            if np.array_equal(few.take(places, mode="clip"), values):
                return few.tolist(), places.astype(np.int64, copy=False)
        numbers, codes = np.unique(values, return_inverse=True)
        return numbers.tolist(), codes.astype(np.int64)
    found, codes = dictionary(values)
    order = sorted(range(len(found)), key=found.__getitem__)
    places = np.empty(len(found), np.int64)
    places[order] = np.arange(len(found))
    return [found[k] for k in order], places[codes]


def each(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """Return `function` of each item, several at a time, in their order."""
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(_WORKERS) as pool:
        return list(pool.map(function, items))
