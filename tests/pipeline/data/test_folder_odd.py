"""Folders of images that are odd, and are handled as documented, or hostile, and get a sentence."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.data.folder import source
from pipeline.errors import UserError
from tests.pipeline.data.image_folders import SMALL, Make, classes, filled, load, picture, put, splits
from tests.pipeline.data.test_images import _png, content


def _link_loop(root: Path) -> None:
    classes(root, "cat", "dog")
    (root / "cat" / "again").symlink_to(root / "cat")
    (root / "cat" / "up").symlink_to("..")
    (root / "dog" / "self").symlink_to("self")
    for k in range(8):  # each leads to all others: as many paths as orders of them, if each were walked
        (root / "dog" / f"d{k}").mkdir()
        for other in range(8):
            (root / "dog" / f"d{k}" / f"to{other}").symlink_to(root / "dog" / f"d{other}")


def _hidden(root: Path) -> None:
    classes(root, "cat", "dog", ".ipynb_checkpoints", "__MACOSX", ".git")
    for name in (".x.png", "Thumbs.db", ".DS_Store", "._cat.jpg"):
        (root / "cat" / name).write_bytes(b"nothing that can be read")
    put(root / "cat" / ".thumbnails" / "x.png", 9)


def _beside(root: Path) -> None:
    classes(root, "cat", "dog")
    (root / "labels.csv").write_text("a,b\n")
    (root / "cat" / "photo.heic").write_bytes(b"x")
    (root / "cat" / "README").write_bytes(b"x")
    put(root / "loose.png", 50)


def _kaggle(root: Path) -> None:
    splits(root, "train")
    for i in range(4):
        put(root / "test" / f"{i}.jpg", 300 + i)


def _file_links(root: Path) -> None:
    classes(root, "cat", "dog")
    put(root.parent / "elsewhere" / "x.png", 91)
    (root / "cat" / "link.png").symlink_to(root.parent / "elsewhere" / "x.png")
    (root / "dog" / "more").symlink_to(root.parent / "elsewhere")


def _case(root: Path) -> None:
    classes(root, "Cat", "cat", "dog")


def _lying_ending(root: Path) -> None:
    classes(root, "cat", "dog")
    (root / "cat" / "x.png").write_bytes(content(picture(77), "JPEG"))
    (root / "cat" / "y.JPG").write_bytes(content(picture(78), "GIF"))


def _train_is_a_class(root: Path) -> None:
    classes(root, "bus", "car", "train")


def _folder_named_as_file(root: Path) -> None:
    classes(root, "cat.jpg", "dog.png")
    put(root / "cat.jpg" / "x.png" / "y.png", 31)


def _misnamed_splits(root: Path) -> None:
    splits(root, "Training", "Testing")


def _deep(root: Path) -> None:
    classes(root, "cat", "dog")
    put(root / "cat" / Path(*("d",) * 300) / "x.png", 41)


def _many_classes(root: Path) -> None:
    classes(root, *(f"class {k}" for k in range(200)), count=1)


HANDLED: dict[str, tuple[Make, int, str]] = {  # how it is made, how many images are found, a note (or nothing)
    "a link loop": (_link_loop, 6, ""),
    "hidden files and folders": (_hidden, 6, ""),
    "other files and loose images": (
        _beside, 6, r"1 image in no folder .*loose.png\n3 files with other endings .*no ending: 1",
    ),
    "test without labels": (
        _kaggle, 6, r"test holds no image of a class: test is cut from train\n4 images in no .* test/0.jpg",
    ),
    "links to files and folders": (_file_links, 8, r"2 images are only 1 different one.*1 image in more than one class"),
    "classes that differ in case": (_case, 9, "the classes Cat, cat differ only in how they are written"),
    "endings that lie": (_lying_ending, 8, ""),
    "a class named train": (_train_is_a_class, 9, ""),
    "folders named as files": (_folder_named_as_file, 7, ""),
    "splits of other names": (_misnamed_splits, 12, "the classes Testing, Training hold folders of the same names"),
    "300 folders in each other": (_deep, 7, ""),
    "200 classes of one image": (_many_classes, 200, ""),
    "a class missing from val": (
        lambda root: (splits(root, "train"), classes(root / "val", "dog", first=500)), 9, "val has no image of cat",
    ),
    "an empty folder in val": (
        lambda root: (splits(root, "train"), classes(root / "val", "dog", first=500), (root / "val" / "cat").mkdir()), 9,
        "val has no image of cat",
    ),
    "an empty val": (
        lambda root: (splits(root, "train"), (root / "val").mkdir()), 6, "val holds no image of a class: val is cut",
    ),
    "documents beside splits": (
        lambda root: (splits(root, "train", "test"), (root / "docs").mkdir(), (root / "docs" / "x.txt").write_text("")), 12,
        "docs beside train: no image in there, passed over",
    ),
    "16 bit": (
        lambda root: (classes(root, "cat", "dog"), (root / "cat" / "x.png").write_bytes(
            content(Image.fromarray(np.full((4, 4), 4096, np.uint16)), "PNG"))), 7, "1 of 7 images have 16 bit",
    ),
    "a file name of odd characters": (
        lambda root: (classes(root, "cat", "dog"), put(root / "cat" / "a\nb\t'\"é;.png", 70)), 7, "",
    ),
    "a file name that is no UTF-8": (
        lambda root: (classes(root, "cat", "dog"), put(root / "cat" / os.fsdecode(b"\xff\xfe.png"), 70)), 7, "",
    ),
    "one pixel": (
        lambda root: (classes(root, "cat", "dog"), put(root / "cat" / "x.png", 70, size=(1, 1))), 7, "from 1x1 to 8x8",
    ),
    "a line": (lambda root: (classes(root, "cat", "dog"), put(root / "cat" / "x.png", 70, size=(5000, 1))), 7, "5000x1"),
}  # fmt: skip


@pytest.mark.parametrize("name", HANDLED)
@pytest.mark.timeout(30)
def test_a_folder_that_is_odd_is_handled_as_documented(name: str, tmp_path: Path) -> None:
    make, count, note = HANDLED[name]
    root = tmp_path / "data"
    root.mkdir()
    make(root)
    before = sorted(os.walk(root))
    found = source(root, SMALL)
    samples = load(found)
    assert len(samples.x) == len(samples.y) == count, samples.x.names
    assert re.search(note, "\n".join(found.notes), re.DOTALL) and all("\n" not in n for n in found.notes)
    assert bool(found.notes) == bool(note) or name in ("a link loop",), found.notes
    assert filled(samples).any(axis=(1, 2, 3)).all()
    assert sorted(os.walk(root)) == before


def _with(content: bytes, name: str = "x.png") -> Make:
    return lambda root: (classes(root, "cat", "dog"), (root / "cat" / name).write_bytes(content))


def _pipe(root: Path) -> None:
    classes(root, "cat", "dog")
    os.mkfifo(root / "cat" / "pipe.png")


def _dangling(root: Path) -> None:
    classes(root, "cat", "dog")
    (root / "cat" / "gone.png").symlink_to("nowhere.png")
    (root / "cat" / "round.png").symlink_to("round.png")
    (root / "cat" / "zero.png").symlink_to("/dev/zero")


def _all_leak(root: Path) -> None:
    splits(root, "train", "test")
    for i in range(3):
        (root / "test" / "cat" / f"again{i}.png").write_bytes((root / "train" / "cat" / f"{i}.png").read_bytes())


REFUSED: dict[str, tuple[Make, str]] = {  # how it is made, what the sentence says
    "nothing there": (lambda root: root.rmdir(), "is no folder"),
    "a file": (lambda root: (root.rmdir(), root.write_bytes(b"")), "is no folder"),
    "0 files": (lambda root: None, "holds no image in a folder of a class"),
    "empty folders": (lambda root: [(root / name).mkdir() for name in "ab"], "holds no image in a folder of a class"),
    "text alone": (lambda root: (_beside(root), [f.unlink() for f in root.rglob("*.png")]), "holds no image in a folder"),
    "images and no class": (
        lambda root: [put(root / f"{i}.png", i) for i in range(3)], "holds 3 images and no folder of a class",
    ),
    "one class": (lambda root: classes(root, "cat"), "has one class, cat, and it takes two"),
    "one folder too high": (
        lambda root: classes(root / "photos", "cat", "dog"), r"one class, photos.*Did you mean --dataset .*/data/photos\?",
    ),
    "an empty class": (
        lambda root: (classes(root, "cat", "dog"), (root / "owl").mkdir()), "1 class of which no image lies there: owl",
    ),
    "empty classes in train": (
        lambda root: (splits(root, "train", "val"), [(root / "train" / n).mkdir() for n in ("x", "y")]),
        "2 classes of which no image lies there: x, y",
    ),
    "a class that is a link to the top": (
        lambda root: (classes(root, "cat", "dog"), (root / "all").symlink_to(root)), "no image lies there: all",
    ),
    "a class only in test": (
        lambda root: (splits(root, "train"), classes(root / "test", "owl", "cat", first=500)),
        "has images of owl in test, and train has no such class",
    ),
    "no train": (lambda root: splits(root, "val", "test"), "has test, val and no train"),
    "val twice": (lambda root: splits(root, "train", "val", "valid"), "has val and valid, which mean the same"),
    "classes beside splits": (
        lambda root: (splits(root, "train"), classes(root, "owl", first=900)),
        "has train with classes in them, and beside these owl",
    ),
    "splits without classes": (
        lambda root: [put(root / s / f"{i}.png", i) for s in ("train", "test") for i in range(3)],
        "has test, train, and in them no folder of a class",
    ),
    "a name that cannot be printed": (lambda root: classes(root, "cat", "do\ng"), r"names cannot be printed: 'do\\ng'"),
    "a name that is no UTF-8": (lambda root: classes(root, "cat", os.fsdecode(b"\xff")), r"names cannot be printed: '\\udcff'"),
    "an image of 100 000 x 100 000": (_with(_png(100_000, 100_000)), "cat/x.png has more than the 89478485 pixels"),
    "a decompression bomb": (_with(_png(10_000, 10_000)), "cat/x.png has 10000x10000 pixels, more than the 89478485"),
    "an empty file": (_with(b""), "cat/x.png is empty"),
    "a text as image": (_with(b"<html>404</html>", "x.jpg"), "cat/x.jpg is no JPEG, PNG"),
    "PostScript as image": (_with(b"%!PS-Adobe-3.0 EPSF-3.0\n", "x.png"), "cat/x.png is no JPEG, PNG"),
    "a pipe": (_pipe, "cat/pipe.png is no regular file"),
    "links to nothing": (
        _dangling, "3 files .*gone.png is a link to nothing, cat/round.png cannot be read .*zero.png is no regular file",
    ),
    "floats": (_with(content(Image.new("F", (8, 8)), "TIFF"), "x.tif"), r"cat/x.tif is of the mode F \(floats\)"),
    "a bad file of an odd name": (_with(b"", "a\nb.png"), r"cat/a\\nb.png is empty"),
    "a class that test holds too": (_all_leak, "1 class of which no image is left to learn from: cat"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.timeout(30)
def test_a_folder_that_nothing_can_be_learnt_from_is_told_in_a_sentence(name: str, tmp_path: Path) -> None:
    make, said = REFUSED[name]
    root = tmp_path / "data"
    root.mkdir()
    make(root)
    with pytest.raises(UserError, match=said) as caught:
        source(root, SMALL)
    for message in caught.value.messages:
        assert message.startswith(f"dataset={root}") and "\n" not in message and message[-1] in ".?"


@pytest.mark.parametrize("name", ["x" * 5000, "nul\0"])
def test_a_name_that_no_file_can_have_is_no_folder(name: str) -> None:
    with pytest.raises(UserError, match="is no folder"):
        source(Path(name), SMALL)
