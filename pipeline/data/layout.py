"""Where the images of each class lie below a folder: `class/...`, or `train|val|test/class/...`.

From names alone: no file is opened here. Whether a folder named `train` is a split or a class is told by what lies in it.
"""

from __future__ import annotations

import os
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.data.decoding import counted, listed
from pipeline.data.images import ENDINGS
from pipeline.errors import UserError

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_HIDDEN = ("__MACOSX", "Thumbs.db", "desktop.ini")  # and what begins with a dot
_MOST = 8  # endings that a note names
_KINDS = "JPEG, PNG, WebP, BMP, TIFF or GIF"


class Place(NamedTuple):
    """A folder that holds a class; `split` is empty where folders name none."""

    folder: Path
    split: str
    label: str
    above: tuple[Path, ...]  # the folders that a link in it may lead back to

    @property
    def is_learnt(self) -> bool:
        """Whether it is in train, or will be cut."""
        return self.split in ("", "train")


Held = list[tuple[Place, list[str]]]  # with the names of the images below each, relative to the data set's folder


def find(path: Path, notes: list[str]) -> Held:
    """Return the folders that hold a class, with the image files below each, and add to `notes` what is to be told.

    Raises UserError where classes cannot be made out, or are none that can be learnt.
    """
    passed: Counter[str] = Counter()
    held = [(place, list(_images(place.folder, place.above, path, passed))) for place in _places(path, notes, passed)]
    if passed:
        endings = listed([f"{ending or 'no ending'}: {n}" for ending, n in passed.most_common()], _MOST)
        notes.append(f"{counted(passed.total(), 'file')} with other endings than those of images passed over ({endings})")
    _check_classes(path, held, notes)
    return held


def find_in(names: Sequence[str], given: str, notes: list[str]) -> Held:
    """Return the same for files that are no paths, by their names below the data set's folder, which was `given`."""
    with tempfile.TemporaryDirectory(prefix="trainyard-names-") as folder:
        for above in {os.path.dirname(name) for name in names}:
            os.makedirs(os.path.join(folder, above), exist_ok=True)
        for name in names:
            Path(folder, name).touch()
        try:
            held = find(Path(folder), notes)
        except UserError as error:
            raise UserError(*(message.replace(folder, given) for message in error.messages)) from error
    notes[:] = [note.replace(folder, given) for note in notes]
    return held


def _places(path: Path, notes: list[str], passed: Counter[str]) -> list[Place]:
    """Return the folders that hold classes. Raises UserError where it cannot be told which do."""
    if not os.path.isdir(path):  # False also for a name that no file can have
        raise UserError(f"dataset={path} is no folder. Give the folder that holds a folder of images for each class.")
    folders, files = _listing(path, path)
    loose = [name for name in files if _is_image(name, passed)]
    splits = {f: _SPLITS[f.name.casefold()] for f in folders if f.name.casefold() in _SPLITS}
    inside = {f: _listing(f, path) for f in splits}
    is_split = any(_holds_images(sub, path) for f in splits for sub in inside[f][0])
    others = [f for f in folders if f not in splits and _holds_images(f, path)]
    if not is_split and (others or not splits):
        if loose and not folders:
            raise UserError(
                f"dataset={path} holds {counted(len(loose), 'image')} and no folder of a class. Put the images of each class "
                "into a folder of its name."
            )
        places = [Place(f, "", f.name, (path,)) for f in folders]
    elif not is_split:
        raise UserError(
            f"dataset={path} has {listed([f.name for f in splits])}, and in them no folder of a class that holds images. Put "
            "the images of each class into a folder of its name, such as train/cat."
        )
    else:
        _check_splits(path, splits, others)
        if extra := [f.name for f in folders if f not in splits]:
            notes.append(f"{listed(extra)} beside train: no image in there, passed over")
        for f, (below, within) in inside.items():
            if not any(_holds_images(sub, path) for sub in below):
                notes.append(f"{f.name} holds no image of a class: {splits[f]} is cut from train")
            loose += [f"{f.name}/{name}" for name in within if _is_image(name, passed)]
        places = [Place(sub, split, sub.name, (path, f)) for f, split in splits.items() for sub in inside[f][0]]
    if loose:
        notes.append(f"{counted(len(loose), 'image')} in no folder of a class left out, the first is {listed(loose[:1])}")
    return places


def _check_splits(path: Path, splits: dict[Path, str], others: Sequence[Path]) -> None:
    """Raise UserError where the folders that are named as splits are not all that is needed, or not all there is."""
    problems = []
    if others:
        problems.append(
            f"dataset={path} has {listed([f.name for f in splits])} with classes in them, and beside these "
            f"{listed([f.name for f in others])} with images. Take the one or the other away, or name each folder as a class."
        )
    if "train" not in splits.values():
        problems.append(
            f"dataset={path} has {listed([f.name for f in splits])} and no train. Add a folder train with the classes."
        )
    for split in set(splits.values()):
        if len(same := [f.name for f in splits if splits[f] == split]) > 1:
            problems.append(f"dataset={path} has {' and '.join(same)}, which mean the same. Make one folder of them.")
    if problems:
        raise UserError(*problems)


def _check_classes(path: Path, held: Held, notes: list[str]) -> None:
    """Raise UserError where the classes are none that can be learnt; note what is odd about them."""
    learnt = sorted({place.label for place, _ in held if place.is_learnt})
    there = {place.label: place.split for place, files in held if files and not place.is_learnt}
    if not any(files for _, files in held):
        raise UserError(f"dataset={path} holds no image in a folder of a class: no {_KINDS}. Give the folder of a data set.")
    if odd := [ascii(label) for label in learnt if not label.isprintable()]:  # also what is no UTF-8
        raise UserError(f"dataset={path} has classes whose names cannot be printed: {listed(odd)}. Rename them.")
    if strange := sorted(there.keys() - set(learnt)):
        raise UserError(
            f"dataset={path} has images of {listed(strange)} in {there[strange[0]]}, and train has no such class. Add some to "
            "train, or take them away."
        )
    refuse_empty(path, learnt, (place.label for place, files in held if files and place.is_learnt), "lies there")
    below = {
        place: frozenset(_first_below(name, place.folder.relative_to(path).as_posix()) for name in files) - {""}
        for place, files in held
        if place.is_learnt
    }
    if len(learnt) == 1:
        (place,) = below
        hint = f" Did you mean --dataset {place.folder}?" if len(below[place]) > 1 and not place.split else ""
        raise UserError(f"dataset={path} has one class, {place.label}, and it takes two to tell them apart. Add another.{hint}")
    for same in _alike({label: unicodedata.normalize("NFKC", label).casefold() for label in learnt}):
        notes.append(f"the classes {listed(same)} differ only in how they are written")
    for same in _alike({place.label: names for place, names in below.items() if len(names) > 1 and not place.split}):
        notes.append(
            f"the classes {listed(same)} hold folders of the same names: if they are splits, name them train, val, test"
        )


def _first_below(name: str, folder: str) -> str:
    """Return the folder in `folder` that leads to a file, or nothing where the file lies in `folder` itself."""
    first, slash, _ = name.removeprefix(f"{folder}/").partition("/")
    return first if slash else ""


def _alike(values: dict[str, Hashable]) -> list[list[str]]:
    """Return the groups of several names that have the same value."""
    groups: dict[Hashable, list[str]] = {}
    for name, value in values.items():
        groups.setdefault(value, []).append(name)
    return [sorted(group) for group in groups.values() if len(group) > 1]


def refuse_empty(path: object, classes: Sequence[str], there: Iterable[str], what: str) -> None:
    """Raise UserError for the classes that are not `there`."""
    found = set(there)
    if empty := [label for label in classes if label not in found]:
        raise UserError(
            f"dataset={path} has {counted(len(empty), 'class')} of which no image {what}: {listed(empty)}. Add images, or "
            "take the folders away."
        )


def _images(top: Path, above: Sequence[Path], given: Path, passed: Counter[str]) -> Iterator[str]:
    """Yield the names of the images below a folder, each real folder once; count what has another ending."""
    seen = {_identity(folder, given) for folder in above}
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        if (found := _identity(folder, given)) in seen:
            continue
        seen.add(found)
        folders, files = _listing(folder, given)
        waiting += folders
        within = folder.relative_to(given).as_posix()
        yield from (f"{within}/{name}" for name in files if _is_image(name, passed))


def folders(top: Path) -> list[str]:
    """Return a folder and all below it, hidden ones left out; links are followed, each real folder once."""
    seen, waiting, found = set(), [top], []
    while waiting:
        folder = waiting.pop()
        try:
            place = _identity(folder, top)
            below = [] if place in seen else _listing(folder, top)[0]
        except UserError:  # told by who reads it
            continue
        if place not in seen:
            found.append(str(folder))
        seen.add(place)
        waiting += below
    return found


def _identity(folder: Path, given: Path) -> tuple[int, int]:
    try:
        found = folder.stat()
    except OSError as error:  # it is being taken away while it is looked at
        raise _unreadable(folder, given, error) from error
    return found.st_dev, found.st_ino


def _holds_images(folder: Path, given: Path) -> bool:
    return any(True for _ in _images(folder, (), given, Counter()))


def _is_image(name: str, passed: Counter[str]) -> bool:
    ending = os.path.splitext(name)[1].lower()
    if ending in ENDINGS:
        return True
    passed[ending] += 1
    return False


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _listing(folder: Path, given: Path) -> tuple[list[Path], list[str]]:
    """Return the folders in a folder and the names of its files, sorted, without those hidden; links are what they lead to."""
    try:
        with os.scandir(folder) as found:
            shown = sorted((e.name, _is_folder(e)) for e in found if not (e.name.startswith(".") or e.name in _HIDDEN))
    except OSError as error:
        raise _unreadable(folder, given, error) from error
    return [folder / name for name, is_folder in shown if is_folder], [name for name, is_folder in shown if not is_folder]


def _unreadable(folder: Path, given: Path, error: OSError) -> UserError:
    return UserError(
        f"dataset={given}: the folder {folder} cannot be read ({error.strerror}). Give yourself the right, or take it away."
    )
