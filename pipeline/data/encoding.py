"""The float32 matrix that a network takes, from a table's columns.

The surprise: a value is centred and scaled in float64 and only then cast, once, to float32, so whole numbers beyond 2^24 keep
their differences; the ONNX front (`export/columns.py`) does the same sums in the same order and gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data.columns import dictionary, each
from pipeline.data.spec import Column, Texts

Array = NDArray[Any]

_ROWS = 1 << 13  # of the columns that are packed together, so that they stay in the cache of a core
_BLOCK = 1 << 19  # bytes of the matrix that are spread together, for the same reason
_PART = 1 << 22  # bytes of it that are in memory together, where it is not wanted whole


class Packed(NamedTuple):
    """The rows of a matrix (N, D) in short, each in one place of memory, so that any of them are quickly gathered.

    `values` are the columns of it that are not of categories, float32 (N, V); each of `spans` is the first column that some of
    them have in the matrix, the first in `values`, and their number. `slots`, int32 (N, C), has for each category the column
    that is 1.
    """

    values: NDArray[np.float32]
    slots: NDArray[np.int32]
    spans: tuple[tuple[int, int, int], ...]
    width: int


def pack(raw: Mapping[str, Array | Texts], columns: Sequence[Column]) -> Packed:
    """Return raw columns, each (N,) or (N, 1), as rows.

    A missing number is `fill`; a missing category where none was in training is "other".
    """
    num_rows = _size(raw[columns[0].name]) if columns else 0
    numbers, categories = [], []
    spans: list[tuple[int, int, int]] = []
    first = num_values = 0
    for column in columns:
        if column.is_category:
            categories.append((column, first))
        else:
            numbers.append((column, num_values, np.asarray(raw[column.name], np.float64).reshape(-1)))
            if spans and spans[-1][0] + spans[-1][2] == first:
                spans[-1] = (*spans[-1][:2], spans[-1][2] + column.width)
            else:
                spans.append((first, num_values, column.width))
            num_values += column.width
        first += column.width
    values, slots = np.empty((num_rows, num_values), np.float32), np.empty((num_rows, len(categories)), np.int32)

    def fill(start: int) -> None:
        rows = slice(start, start + _ROWS)
        with np.errstate(over="ignore"):  # beyond float32: infinite, as in onnxruntime
            for column, place, given in numbers:
                some = given[rows] - column.center
                missing = np.isnan(some)
                if column.has_missing:
                    values[rows, place + 1] = missing
                if missing.any():
                    some[missing] = column.fill - column.center
                some /= column.scale
                values[rows, place] = some

    def find(place: int) -> None:
        column, start = categories[place]
        slots[:, place] = _slots(raw[column.name], column, start)

    each(fill, range(0, num_rows if numbers else 0, _ROWS))
    each(find, range(len(categories)))
    return Packed(values, slots, tuple(spans), first)


def spread(packed: Packed, rows: NDArray[np.int64], out: NDArray[np.float32]) -> None:
    """Write rows of the matrix into `out`, which is contiguous; `rows` are their numbers."""
    step = max(512, _BLOCK // (4 * max(1, packed.width)))

    def fill(start: int) -> None:
        block, some = out[start : start + step], rows[start : start + step]
        if packed.slots.shape[1]:
            block[:] = 0
            ones = np.arange(0, block.size, packed.width)[:, None] + packed.slots.take(some, axis=0)
            block.reshape(-1)[ones] = 1
        values = packed.values.take(some, axis=0)
        for first, place, width in packed.spans:
            block[:, first : first + width] = values[:, place : place + width]

    each(fill, range(0, len(out), step))


def encode(raw: Mapping[str, Array | Texts], columns: Sequence[Column]) -> NDArray[np.float32]:
    """Return (N, D) float32 for raw columns, as `pack` takes them: what the network takes, and what the ONNX front computes."""
    packed = pack(raw, columns)
    matrix = np.empty((len(packed.values), packed.width), np.float32)
    spread(packed, np.arange(len(matrix)), matrix)
    return matrix


def parts_of(packed: Packed, rows: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    """Yield these rows of the matrix, some at a time, in their order; a part lies where the last but one did."""
    step = max(512, _PART // (4 * max(1, packed.width)))
    room = np.empty((2, min(step, len(rows)), packed.width), np.float32)
    for number, start in enumerate(range(0, len(rows), step)):
        of_part = rows[start : start + step]
        part = room[number % 2, : len(of_part)]
        spread(packed, of_part, part)
        yield part


def _size(values: Array | Texts) -> int:
    return len(values.codes) if isinstance(values, Texts) else np.asarray(values).size


def _slots(values: Array | Texts, column: Column, first: int) -> NDArray[np.int32]:
    """Return the matrix's column for each text (N,), where the first one of them is `first`."""
    found, codes = dictionary(values if isinstance(values, Texts) else np.asarray(values).reshape(-1))
    places = {category: place for place, category in enumerate(column.categories)}
    other = len(places)
    places |= dict.fromkeys(column.missing_texts, other + 1)
    return np.array([*(first + places.get(text, other) for text in found), 0], np.int32)[codes]
