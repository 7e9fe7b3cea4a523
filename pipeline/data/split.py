"""Which sample belongs to which split: as the data says it, or else cut by chance, with each class keeping its share.

What is cut are groups: a sample by itself, where nothing says more. A group counts as of the class that most of it is of.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import RunConfig
from pipeline.data.columns import distinct
from pipeline.data.spec import SPLITS, DataSpec, Samples, Source
from pipeline.errors import UserError
from pipeline.output import say
from pipeline.task import task

Array = NDArray[Any]
Rows = NDArray[np.int64]


def split(samples: Samples, config: RunConfig, source: Source) -> dict[str, Rows]:
    """Return the rows of train, val and test; val may be empty, and test is there if the data has one, or by its share.

    Raises UserError where there are too few samples to hold any out.
    """
    val, test = (
        own if asked == "auto" else asked
        for own, asked in ((source.val_fraction, config.val_split), (source.test_fraction, config.test_split))
    )
    fixed = _fixed(samples)
    train = fixed.get("train", np.arange(len(samples.y)))
    count = len(train)
    if test and "test" not in fixed:
        train, fixed["test"] = _cut(train, samples, round(count * test), "test", config, source.spec)
    if val and "val" not in fixed:
        train, fixed["val"] = _cut(train, samples, round(count * val), "validation", config, source.spec)
    return {"train": train, "val": fixed.get("val", train[:0])} | ({"test": fixed["test"]} if "test" in fixed else {})


def _fixed(samples: Samples) -> dict[str, Rows]:
    """Return the rows of the splits that the data itself has, without what lies in a later one too."""
    if samples.split is None:
        return {}
    rows = {name: np.flatnonzero(samples.split == name) for name in SPLITS if (samples.split == name).any()}
    if samples.groups is None:
        return rows
    for name, later in (("train", ("val", "test")), ("val", ("test",))):
        if name in rows and (others := [samples.groups[rows[each]] for each in later if each in rows]):
            again = np.isin(samples.groups[rows[name]], np.concatenate(others))
            if again.any():
                say(
                    f"{again.sum()} samples of {name} are left out: they, or others of their group, are in {' or '.join(later)}"
                )
                rows[name] = rows[name][~again]
    return rows


def _cut(rows: Rows, samples: Samples, size: int, part: str, config: RunConfig, spec: DataSpec) -> tuple[Rows, Rows]:
    """Return the rows that are left, and about `size` that are held out for `part`; each in the order of a seeded shuffle."""
    has_strata, units = task(spec.task).has_strata, len(rows)  # a sample by itself
    labels = samples.y[rows] if has_strata else np.zeros(0, np.int64)
    if samples.groups is not None:
        _, unit_of = np.unique(samples.groups[rows], return_inverse=True)
        units = int(unit_of.max(initial=-1)) + 1
        labels = _most_common(labels, unit_of, units) if has_strata else labels
        size = round(size * units / len(rows))
    classes, strata = distinct(labels) if has_strata else ([0], np.zeros(units, np.int64))
    what = "sample" if samples.groups is None else "group"
    _refuse_if_too_few(classes, strata, size, part, config, spec, what=what)
    rest, held = held_out(strata if has_strata else None, units, size, np.random.RandomState(config.split_seed))
    if samples.groups is None:
        return rows[rest], rows[held]
    is_held = np.zeros(units, bool)
    is_held[held] = True
    return rows[~is_held[unit_of]], rows[is_held[unit_of]]


def held_out(strata: Rows | None, units: int, size: int, rng: np.random.RandomState) -> tuple[Rows, Rows]:
    """Return which of `units` are left and which `size` are held out, as scikit-learn's `train_test_split` does.

    The same rows in the same order, of the same random numbers; a test compares them. Its own puts each row into a Python list,
    and the key of what was prepared has no version of it. Of `strata` (units,) int64, each number is there twice or more.
    """
    if strata is None:
        order = rng.permutation(units)
        return order[size:], order[:size]
    counts = np.bincount(strata)
    small = strata.astype(np.int16 if len(counts) < 2**15 else np.int64, copy=False)  # which is sorted by its digits
    rows_of = np.split(np.argsort(small, kind="stable"), np.cumsum(counts)[:-1])
    rest_of = _shares(counts, units - size, rng)
    held_of = _shares(counts - rest_of, size, rng)
    parts: tuple[list[Rows], list[Rows]] = ([], [])
    for rows, num_rest, num_held in zip(rows_of, rest_of, held_of, strict=True):
        mixed = rows.take(rng.permutation(len(rows)))
        parts[0].append(mixed[:num_rest])
        parts[1].append(mixed[num_rest : num_rest + num_held])
    rest, held = (rng.permutation(np.concatenate(part)) for part in parts)
    return rest, held


def _shares(counts: Rows, number: int, rng: np.random.RandomState) -> Rows:
    """Return how many of `number` are of each class, by their `counts`: rounded down, and the largest remainders up by one."""
    shares = counts / counts.sum() * number
    floors = np.floor(shares)
    left, remainders = int(number - floors.sum()), shares - floors
    for value in np.unique(remainders)[::-1]:
        if left <= 0:
            break
        alike = np.flatnonzero(remainders == value)
        chosen = rng.choice(alike, size=min(len(alike), left), replace=False)
        floors[chosen] += 1
        left -= len(chosen)
    return floors.astype(np.int64)


def _most_common(labels: Array, unit_of: Rows, units: int) -> Array:
    """Return the label that most samples of each group have; the lowest, where two are as frequent.

    One that is so in a single group counts as the most frequent of all, if other groups have samples of it too.
    """
    pairs, counts = np.unique(np.stack([unit_of, labels.astype(np.int64)]), axis=1, return_counts=True)
    order = np.lexsort((-pairs[1], counts, pairs[0]))  # of a group, the most frequent label last
    result = np.zeros(units, np.int64)
    result[pairs[0][order]] = pairs[1][order]
    groups_of = np.bincount(pairs[1])  # how many have any sample of a label, and of how many it is the most frequent
    most_of = np.bincount(result, minlength=len(groups_of))
    alone = (most_of == 1) & (groups_of > 1)
    return np.where(alone[result], most_of.argmax(), result)


def _refuse_if_too_few(
    classes: list[int], strata: Rows, size: int, part: str, config: RunConfig, spec: DataSpec, *, what: str
) -> None:
    """Raise UserError where `size` of the samples or groups cannot be held out, each class having its share of them."""
    counts = np.bincount(strata)
    if min(size, len(strata) - size) >= len(classes) and counts.min() > 1:
        return
    needs = ""
    if spec.classes:
        rare = [spec.classes[k] for k, count in zip(classes, counts, strict=True) if count == 1]
        needs = f" with {len(classes)} classes" + (f" (a single {what} of {', '.join(rare[:5])})" if rare else "")
        needs += f". It takes two {what}s of each class, and a place for each in both parts"
    raise UserError(
        f"dataset={config.dataset} is too small to hold {what}s out: {size} of {len(strata)} would be for {part}{needs}. Add "
        "samples, or train on every one: --val_split 0 --test_split 0."
    )
