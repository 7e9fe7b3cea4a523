"""Which sample belongs to which split: as the data says it, or else cut by chance, with each class keeping its share.

What is cut are groups: a sample by itself, where nothing says more. A group counts as of the class that most of it is of.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import RunConfig
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
    from sklearn.model_selection import train_test_split

    y = samples.y[rows]
    strata = y if task(spec.task).has_strata else np.zeros(len(y), int)
    unit_of, units = np.arange(len(rows)), len(rows)  # a sample by itself
    if samples.groups is not None:
        _, unit_of = np.unique(samples.groups[rows], return_inverse=True)
        units = int(unit_of.max(initial=-1)) + 1
        strata = _most_common(strata, unit_of, units) if task(spec.task).has_strata else strata[:units]
        size = round(size * units / len(rows))
    what = "sample" if samples.groups is None else "group"
    _refuse_if_too_few(strata, size, part, config, spec, what=what)
    rest, held = train_test_split(
        np.arange(units), test_size=size, random_state=config.split_seed,
        stratify=strata if task(spec.task).has_strata else None,
    )  # fmt: skip
    if samples.groups is None:
        return rows[rest], rows[held]
    is_held = np.isin(unit_of, held)
    return rows[~is_held], rows[is_held]


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


def _refuse_if_too_few(strata: Array, size: int, part: str, config: RunConfig, spec: DataSpec, *, what: str) -> None:
    """Raise UserError where `size` of the samples or groups cannot be held out, each class having its share of them."""
    classes, counts = np.unique(strata, return_counts=True)
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
