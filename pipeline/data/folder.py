"""A folder of images as a data set: `class/...`, or `train|val|test/class/...`; what lies where, and what that means.

Every file's header is read before anything is created, so that all bad ones are named at once. The rules:

- `valid` and `validation` are other names of `val`; upper case counts as lower in these. Splits that are missing, or hold no
  image of a class, are cut from train.
- A class is named as its folder, classes are sorted as text, images in folders further below belong to it. Links are followed;
  a folder that a link leads to twice within a class counts once.
- Hidden files and folders are passed over, files with another ending are passed over and told.
- Files of the same bytes never lie in two splits: where folders say the split, test keeps them before val, and val before
  train; where it is cut, they share a number in `Samples.groups`.
- Images are RGB, or grey where all are; of another size than image_size they are squashed to its square.
- A file whose header is fine and whose pixels are not is found when it is decoded; with skip_bad all are decoded once more for
  it, before they are split.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data.bucket import Bucket
from pipeline.data.decoding import Bad, ImageFiles, Stamp, contents, counted, headers, listed, sentence
from pipeline.data.images import Header
from pipeline.data.layout import Place, find, find_in, refuse_empty
from pipeline.data.spec import IMAGE_RANGE, DataOptions, DataSpec, Samples, Source
from pipeline.errors import UserError
from pipeline.output import say
from pipeline.task import TASKS, of_classes

_RANKS = {"": 0, "train": 0, "val": 1, "test": 2}  # of equal files, those in the highest stay
_MOST = 8  # sizes or files that a note names


class Entry(NamedTuple):
    """An image file: its name below the data set's folder, the split ("" where folders name none) and the class it lies in."""

    name: str
    split: str
    label: str
    stamp: Stamp
    header: Header
    content: int  # the same number for files of the same bytes


class Scan(NamedTuple):
    """What lies in a folder, known from names and headers: what is used, what is bad, and what else is to be told."""

    entries: list[Entry]
    classes: tuple[str, ...]
    bad: list[Bad]
    notes: list[str]


def source(path: Path | Bucket, options: DataOptions) -> Source:
    """Return the data set in a folder. Raises UserError for one that nothing can be learnt from, and for unreadable files."""
    problems = [
        f"{flag}={value} is for tables, and dataset={path} is a folder of images. Leave it out."
        for flag in ("target", "ignore_columns", "group_column", "split_column")
        if (value := getattr(options, flag))
    ]
    if problems:
        raise UserError(*problems)
    found = scan(path, skip_bad=options.skip_bad)
    task = options.task or of_classes(len(found.classes))
    if not TASKS[task].takes_classes(len(found.classes)):
        raise UserError(
            f"task={task} does not fit dataset={path}, whose folders name {len(found.classes)} classes. Use --task "
            "multiclass, or leave it out."
        )
    entries, notes = found.entries, list(found.notes)
    channels, side = _channels(entries, notes), options.image_size or _common_side(path, entries)
    _tell_sizes(entries, side, notes)
    splits = Counter(e.split or "train" for e in entries)

    def load(data_dir: Path, seed: int) -> Samples:
        images = ImageFiles(
            path, [e.name for e in entries], [e.stamp for e in entries], channels=channels, side=side, given=str(path)
        )
        return samples(path, images, found, skip_bad=options.skip_bad)

    colour = "grey" if channels == 1 else "RGB"
    return Source(
        summary=f"{counted(len(entries), 'image')} of {len(found.classes)} classes, read as {colour}",
        spec=DataSpec(
            name=os.path.basename(os.path.abspath(str(path))) or "images", task=task, sample_shape=(channels, side, side),
            dtype="uint8", value_range=IMAGE_RANGE, classes=found.classes, any_size=True,
        ),
        num_train=splits["train"],
        load=load,
        has_val_set="val" in splits,
        has_test_set="test" in splits,
        files=(lambda data_dir: [path / e.name for e in entries]) if isinstance(path, Path) else None,
        notes=tuple(notes),
    )  # fmt: skip


def scan(path: Path | Bucket, *, skip_bad: bool = False) -> Scan:
    """Return what lies in a folder. Raises UserError as `source` does; with `skip_bad` bad files are left out instead."""
    notes: list[str] = []
    held = find(path, notes) if isinstance(path, Path) else find_in([*path.stamps], str(path), notes)
    named = sorted(((name, place) for place, names in held for name in names), key=lambda pair: pair[0])
    entries, bad = _read(path, named)
    if bad and not skip_bad:
        raise UserError(sentence(str(path), bad))
    if bad:
        reasons = listed([" ".join(b) for b in bad], _MOST)
        notes.append(f"{counted(len(bad), 'file')} left out that cannot be read (skip_bad=true): {reasons}")
    classes = tuple(sorted({place.label for place, _ in held if place.is_learnt}))
    entries = _without_leaks(entries, notes)
    _tell_equal(entries, notes)
    refuse_empty(path, classes, (e.label for e in entries if e.split in ("", "train")), "is left to learn from")
    for split in ("val", "test"):
        there = {e.label for e in entries if e.split == split}
        if there and (missing := [c for c in classes if c not in there]):
            notes.append(f"{split} has no image of {listed(missing)}")
    return Scan(entries, classes, bad, notes)


def _read(path: Path | Bucket, named: Sequence[tuple[str, Place]]) -> tuple[list[Entry], list[Bad]]:
    """Return the files whose headers can be read, and those where they cannot."""
    bad: list[Bad] = []
    stamped = []
    for name, place in named:
        try:
            stamped.append((name, place, Stamp.of(path / name) if isinstance(path, Path) else path.stamps[name]))
        except OSError as error:
            reason = "is a link to nothing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
            bad.append(Bad(name, reason))
    whole = []
    found_in = headers(path, [name for name, *_ in stamped], [stamp for *_, stamp in stamped])
    for (name, place, stamp), found in zip(stamped, found_in, strict=True):
        if isinstance(found, str):
            bad.append(Bad(name, found))
        else:
            whole.append(Entry(name, place.split, place.label, stamp, found, 0))
    numbers = contents(path, [e.name for e in whole], [e.stamp for e in whole]).tolist()
    return [e._replace(content=number) for e, number in zip(whole, numbers, strict=True)], sorted(bad)


def _without_leaks(entries: list[Entry], notes: list[str]) -> list[Entry]:
    """Return the files without those that lie in a later split too, byte for byte."""
    highest: dict[int, int] = {}
    for e in entries:
        highest[e.content] = max(highest.get(e.content, 0), _RANKS[e.split])
    kept = [e for e in entries if _RANKS[e.split] == highest[e.content]]
    for split in ("train", "val"):
        if dropped := [e.name for e in entries if e.split == split and _RANKS[split] < highest[e.content]]:
            later = "val or test" if split == "train" else "test"
            notes.append(f"{counted(len(dropped), 'image')} of {split} left out, as {later} has the same: {listed(dropped, 3)}")
    return kept


def _tell_equal(entries: Sequence[Entry], notes: list[str]) -> None:
    """Note how many files have the same bytes, and if those are of several classes."""
    of_content: dict[int, list[Entry]] = {}
    for e in entries:
        of_content.setdefault(e.content, []).append(e)
    equal = [group for group in of_content.values() if len(group) > 1]
    if equal:
        number = sum(map(len, equal))
        notes.append(
            f"{number} images are only {counted(len(equal), 'different one')}, by their bytes; equal ones share a split"
        )
    if torn := [group for group in equal if len({e.label for e in group}) > 1]:
        other = next(e.name for e in torn[0] if e.label != torn[0][0].label)
        notes.append(f"{counted(len(torn), 'image')} in more than one class, the first as {torn[0][0].name} and {other}")


def _channels(entries: Sequence[Entry], notes: list[str]) -> int:
    """Return 1 where all images are grey, and 3 otherwise; note it where it is not plain, and what is cut to 8 bit."""
    grey, deep = (sum(getattr(e.header, name) for e in entries) for name in ("is_grey", "is_16_bit"))
    if deep:
        notes.append(f"{deep} of {len(entries)} images have 16 bit and are read as 8, by their upper byte")
    if grey == len(entries):
        notes.append(f"all {grey} images are grey and are read with one channel")
        return 1
    if grey:
        notes.append(f"{grey} of {len(entries)} images are grey and are read as RGB")
    return 3


def _common_side(path: Path | Bucket, entries: Sequence[Entry]) -> int:
    """Return the side of the square that all images are. Raises UserError where they are not."""
    sizes = _sizes(entries)
    (width, height), _ = sizes.most_common(1)[0]
    if len(sizes) == 1 and width == height:
        return width
    found = listed([f"{w}x{h}: {n}" for (w, h), n in sizes.most_common()], _MOST)
    raise UserError(
        f"dataset={path} has images of {counted(len(sizes), 'size')} ({found}), and a network takes squares of one. Say "
        "to which they are to be resized, such as --image_size 128."
    )


def _tell_sizes(entries: Sequence[Entry], side: int, notes: list[str]) -> None:
    sizes = _sizes(entries)
    if set(sizes) != {(side, side)}:
        (w, h), (x, y) = min(sizes, key=lambda s: s[0] * s[1]), max(sizes, key=lambda s: s[0] * s[1])
        span = f"from {w}x{h} to {x}x{y} pixels" if len(sizes) > 1 else f"of {w}x{h} pixels"
        notes.append(f"images {span} are squashed to {side}x{side}, whatever their aspect")


def _sizes(entries: Sequence[Entry]) -> Counter[tuple[int, int]]:
    return Counter(e.header[:2] for e in entries)


def samples(path: Path | Bucket, images: ImageFiles, found: Scan, *, skip_bad: bool) -> Samples:
    """Return the rows with their labels, splits and groups; with `skip_bad` without those that cannot be decoded."""
    entries, broken = found.entries, images.unreadable(np.arange(len(images))) if skip_bad else []
    if broken:
        say(f"left out, as their pixels cannot be decoded: {listed([' '.join(b) for b in broken])}")
        names = {b.name for b in broken}
        rows = [row for row, e in enumerate(entries) if e.name not in names]
        entries, images = [entries[row] for row in rows], images.picked(rows)
        refuse_empty(path, found.classes, (e.label for e in entries if e.split in ("", "train")), "can be decoded")
    number = {label: k for k, label in enumerate(found.classes)}
    groups: NDArray[np.int64] = np.array([e.content for e in entries], np.int64)
    splits = {e.split for e in entries}
    return Samples(
        x=images,
        y=np.array([number[e.label] for e in entries], np.int64),
        split=np.array([e.split for e in entries]) if splits - {"", "train"} else None,
        groups=groups if len(np.unique(groups)) < len(groups) else None,
        skipped=tuple(sorted(b.name for b in (*found.bad, *broken))),
    )
