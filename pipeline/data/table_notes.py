"""What ought to be told of a table's columns before it is learnt from, and which rows are the same sample.

The surprise: a column that gives the target away is kept. Only its owner can know whether it will be there when the model
is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.columns import MAX_CATEGORIES, Column, dictionary, distinct, each, frequent
from pipeline.data.spec import Texts
from pipeline.data.table_file import listed

Array = NDArray[Any]

_SAMPLE = 10_000  # rows on which a relation is looked for, before it is looked for on all
_ROWS = 1 << 14  # that are hashed together, so that they stay in the cache of a core
_FIRST = 8  # columns that nearly always tell all rows apart, where they differ
_MOST_EQUAL = 0.5  # above this share of rows that equal another, being equal is how these data are


@dataclass(frozen=True)
class Profile:
    """What was found of one column: why it is left out (or nothing), its width when encoded, and notes by their subject."""

    column: Column
    width: int
    why_left_out: str = ""
    is_row_number: bool = False
    copy_of: str = ""
    notes: tuple[str, ...] = ()


def profiles(
    raw: Mapping[str, Array | Texts], columns: Sequence[Column], *, types: Mapping[str, str], targets: Mapping[str, Array]
) -> list[Profile]:
    """Return a profile of each column (N,); `types` are theirs as pyarrow calls them, `targets` are float64 or object (str)."""
    known = {name: dictionary(target) if target.dtype == object else target for name, target in targets.items()}

    def profile(column: Column) -> Profile:
        values = raw[column.name]
        found = _of_text(values, column) if isinstance(values, Texts) else _of_numbers(values, column, types[column.name])
        if found.why_left_out:
            return found
        copied = next((name for name, target in known.items() if _is_copy(values, target)), "")
        return replace(found, copy_of=copied)

    return each(profile, columns)


def _of_numbers(values: Array, column: Column, kind: str) -> Profile:
    missing = np.isnan(values)
    has_missing = bool(missing.any())
    present = values[~missing] if has_missing else values
    width = 1 + has_missing
    if not len(present):
        return Profile(column, width, "empty")
    low, high = float(present.min()), float(present.max())
    is_whole = kind.startswith(("int", "uint"))
    if low == high and not has_missing:
        why = (
            f"{column.name} holds whole numbers about {high:.0f}, which float64 cannot tell apart if they differ by little. "
            "Take the smallest away from all of them."
        )
        return Profile(column, width, "constant", notes=(why,) if is_whole and max(abs(low), abs(high)) >= 2**53 else ())
    is_row_number = (
        is_whole and not has_missing and len(values) > 10 and high - low == len(values) - 1
        and len(np.unique(values)) == len(values)
    )  # fmt: skip
    notes = []
    if kind.startswith(("time32", "time64", "duration")):
        notes.append("seconds")
    if is_whole and max(abs(low), abs(high)) > 2**24 and low < high:
        notes.append(_of_large(present, column.name, max(abs(low), abs(high))))
    return Profile(column, width, is_row_number=is_row_number, notes=tuple(notes))


def _of_large(values: Array, name: str, size: float) -> str:
    """Say what becomes of whole numbers that float32 cannot hold as they are."""
    distinct = np.unique(values)
    scaled = ((distinct - distinct.mean()) / (distinct.std() or 1.0)).astype(np.float32)
    lost = len(distinct) - len(np.unique(scaled))
    end = (
        f"{lost} of {len(distinct)} different values then become equal to others"
        if lost
        else "they then still differ from each other"
    )
    more = ", and beyond 2^53, where float64 has only every second number or fewer" if size > 2**53 else ""
    return (
        f"{name} holds whole numbers up to {size:.0f}, beyond the 2^24 that float32 holds{more}. They are centred and scaled "
        f"in float64 first; {end}."
    )


def _of_text(values: Texts, column: Column) -> Profile:
    found, codes = values
    counts = dict(zip(found, np.bincount(codes, minlength=len(found)).tolist(), strict=True))
    num_missing = counts.pop("", 0)
    kept = frequent(counts)
    width = len(kept) + 1 + (num_missing > 0)
    numbers = {text for text in counts if _is_number(text)}
    notes = []
    num_present = len(codes) - num_missing
    if num_present and (num_numbers := sum(counts[text] for text in numbers)) >= num_present / 2:
        others = sorted((text for text in counts if text not in numbers), key=lambda text: (-counts[text], text))
        why = (
            f", for {num_present - num_numbers} are not ({listed([repr(t) for t in others], 3)})"
            if others
            else ", stored as text"
        )
        notes.append(
            f"{column.name} is read as text, though {num_numbers} of its {num_present} values are numbers{why}. Empty fields "
            "in their place would make it a column of numbers."
        )
    if not counts:
        return Profile(column, width, "empty")
    if len(counts) == 1 and not num_missing:
        return Profile(column, width, "constant")
    if len(counts) == num_present and num_present > 2:
        return Profile(column, width, "all different", notes=tuple(notes))
    if len(kept) == MAX_CATEGORIES and (rest := len(counts) - len(kept)):
        share = sum(counts[text] for text in kept) / num_present
        notes.append(
            f"{column.name} has {len(counts)} categories: the {MAX_CATEGORIES} most frequent ({share:.0%} of the rows) have a "
            f"place of their own, the other {rest} share one."
        )
    if "NA" in counts or "NaN" in counts or "null" in counts:
        odd = [text for text in ("NA", "NaN", "null") if text in counts]
        notes.append(
            f"{listed([repr(text) for text in odd])} is a category of {column.name}: in text only an empty field is missing."
        )
    return Profile(column, width, notes=tuple(notes))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _is_copy(values: Array | Texts, target: Array | Texts) -> bool:
    """Tell whether each of two columns, both (N,), says what the other is: equal, rising or falling with it, or one to one."""
    is_text = isinstance(values, Texts) or isinstance(target, Texts)
    a, b = (each.codes if isinstance(each, Texts) else each for each in (values, target))
    return all(_tell_each_other(a[rows], b[rows], is_text=is_text) for rows in (slice(None, _SAMPLE), slice(None)))


def _tell_each_other(values: Array, target: Array, *, is_text: bool) -> bool:
    num_values = len(np.unique(values))
    if num_values < 2 or num_values != len(np.unique(target)):
        return False
    codes, target_codes = (distinct(each)[1] for each in (values, target))
    if len(np.unique(codes * num_values + target_codes)) != num_values:
        return False
    if num_values <= len(values) / 2:
        return True
    if is_text:
        return False  # all of them differ, so that each tells the other by chance
    steps = np.diff(target[np.argsort(values, kind="stable")])  # only numbers that rise or fall together are one thing
    return bool((steps >= 0).all() or (steps <= 0).all())


def told(found: Sequence[Profile]) -> list[str]:
    """Return the sentences for all columns; what many have in common is said once."""

    def names(test: Callable[[Profile], bool]) -> list[str]:
        return [profile.column.name for profile in found if test(profile)]

    lines = []
    for profile in found:
        if profile.copy_of:
            name = profile.column.name
            lines.append(
                f"ATTENTION: {name} gives {profile.copy_of} away, one to one. If it is not known before {profile.copy_of} is, "
                f"the figures will be too good to be true: --ignore_columns {name}"
            )
    for reason, text in (
        ("constant", "{} left out: the same value in all rows."),
        ("empty", "{} left out: no value in any row."),
        ("all different", "{} left out: text that is different in each row, as a name or a number of a sample is."),
    ):
        if left := names(lambda p, reason=reason: p.why_left_out == reason):  # type: ignore[misc]
            lines.append(text.format(f"{listed(left)} {'is' if len(left) == 1 else 'are'}"))
    if dates := names(lambda p: p.column.kind == "date" and not p.why_left_out):
        lines.append(f"{listed(dates)}: dates are read as days since 1970-01-01 (UTC).")
    if times := names(lambda p: "seconds" in p.notes):
        lines.append(f"{listed(times)}: times are read as seconds.")
    if numbered := names(lambda p: p.is_row_number):
        lines.append(
            f"{listed(numbered)} numbers the rows, and is kept; where it only tells samples apart: --ignore_columns "
            f"{','.join(numbered)}"
        )
    return lines + [note for profile in found for note in profile.notes if note != "seconds"]


def duplicates(features: Sequence[Array | Texts], groups: Array | None, split: Array | None) -> tuple[Array | None, list[str]]:
    """Return the rows' groups, int64 (N,), in which rows with equal features are together, and sentences that say so.

    Rows of one of `groups` stay together too. Where more than half of the rows equal another, equal rows are not kept together,
    as there may be too few different ones to split.
    """
    hashes = np.zeros(len(features[0].codes if isinstance(features[0], Texts) else features[0]), np.uint64)
    for some in (features[:_FIRST], features[_FIRST:]):  # rows that differ in the first columns need no look at the others
        _hash(hashes, some)
        ordered = np.sort(hashes)
        if not (ordered[1:] == ordered[:-1]).any():
            return groups, []
    _, same, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    num_equal = len(same) - len(counts)
    crossing = 0
    if split is not None:
        others = np.isin(same, np.unique(same[split == "train"])) & (split != "train")
        crossing = int(others.sum())
    notes = [f"{crossing} rows of val and test equal a row of train in all that is learnt from."] if crossing else []
    if num_equal > _MOST_EQUAL * len(same):
        text = "have the same features as another, so many that equal rows may lie in different splits."
        return groups, [f"{num_equal} of {len(same)} rows {text}", *notes]
    text = "have the same features as another; equal rows always lie in the same split."
    return _merged(same, groups), [f"{num_equal} of {len(same)} rows {text}", *notes]


def _merged(same: Array, groups: Array | None) -> NDArray[np.int64]:
    """Return the numbers of the groups that arise when rows equal in `same` or in `groups` are together."""
    if groups is None:
        return same.astype(np.int64).reshape(-1)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    num = int(same.max()) + 1
    size = num + int(groups.max()) + 1
    links = coo_array((np.ones(len(same), np.int8), (same, groups + num)), shape=(size, size))
    return np.asarray(connected_components(links, directed=False)[1][same], np.int64)


def _hash(hashes: NDArray[np.uint64], features: Sequence[Array | Texts]) -> None:
    """Add columns to a 64-bit hash of each row; a million different rows have two alike with a chance of 3e-8."""
    columns = [values.codes if isinstance(values, Texts) else values for values in features]

    def fill(start: int) -> None:
        total = hashes[start : start + _ROWS]
        for values in columns:
            some = values[start : start + _ROWS]
            if some.dtype == np.float64:
                some = some + 0.0  # no -0
                some[np.isnan(some)] = np.nan  # and one NaN
            total ^= some.view(np.uint64)
            total *= np.uint64(0x9E3779B97F4A7C15)
            total ^= total >> np.uint64(29)
            total *= np.uint64(0xBF58476D1CE4E5B9)
            total ^= total >> np.uint64(32)

    each(fill, range(0, len(hashes), _ROWS))
