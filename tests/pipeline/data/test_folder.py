"""Folders of images: what each rule makes of them, and hostile ones. Single files are in test_images.py."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data import decoding, images, layout
from pipeline.data.decoding import for_each
from pipeline.data.folder import source
from pipeline.data.spec import DataOptions
from pipeline.errors import UserError
from pipeline.resolve import resolve
from tests.pipeline.data.image_folders import SKIP, SMALL, classes, filled, load, picture, put, splits
from tests.pipeline.data.test_images import content
from tests.terminal import written_on_a_terminal


def test_classes_are_the_folders_sorted_as_text_and_every_image_below_belongs_to_one(tmp_path: Path) -> None:
    classes(tmp_path, "10", "9", "Z", "a")
    put(tmp_path / "a" / "deep" / "deeper" / "x.png", 7777)
    found = source(tmp_path, SMALL)
    assert found.spec.classes == ("10", "9", "Z", "a") and found.spec.task == "multiclass" and found.num_train == 13
    samples = load(found)
    labels = {name.split("/")[0] for name in samples.x.names}
    assert list(samples.x.names) == sorted(samples.x.names)
    assert labels == {"10", "9", "Z", "a"} and "a/deep/deeper/x.png" in samples.x.names
    assert [found.spec.classes[k] for k in samples.y] == [name.split("/")[0] for name in samples.x.names]
    assert samples.y.dtype == np.int64 and samples.split is None and samples.groups is None and samples.skipped == ()


def test_the_spec_says_what_the_images_are(tmp_path: Path) -> None:
    found = source(classes(tmp_path / "pets", "cat", "dog"), DataOptions(image_size=5))
    spec = found.spec
    assert (spec.name, spec.task, spec.sample_shape, spec.dtype) == ("pets", "binary", (3, 5, 5), "uint8")
    assert spec.value_range == (0, 255) and spec.any_size and not found.has_test_set and not found.has_val_set
    assert found.files and sorted(found.files(Path())) == sorted((tmp_path / "pets").glob("*/*.png"))


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_folders_named_as_splits_say_where_each_image_belongs(tmp_path: Path, val: str) -> None:
    found = source(splits(tmp_path, "train", val, "test"), SMALL)
    samples = load(found)
    assert found.has_val_set and found.has_test_set and found.num_train == 6
    names = {"train": "train", val: "val", "test": "test"}
    assert samples.split is not None
    assert [names[name.split("/")[0]] for name in samples.x.names] == samples.split.tolist()


def test_a_validation_set_of_its_own_may_end_a_training_early_and_without_one_nothing_may(tmp_path: Path) -> None:
    flags = {"model": "cnn", "early_stopping": "3", "monitor": "loss", "max_steps": "5"}
    found = resolve(flags | {"dataset": str(splits(tmp_path / "own", "train", "val", "test"))})
    assert (found.early_stopping, found.monitor) == (3, "loss")
    with pytest.raises(UserError, match="early_stopping=3 has no effect without validation samples"):
        resolve(flags | {"dataset": str(splits(tmp_path / "none", "train", "test")), "val_split": "0"})


@pytest.mark.parametrize("there", [(), ("val",), ("test",)])
def test_splits_that_are_missing_are_left_to_be_cut_from_train(tmp_path: Path, there: tuple[str, ...]) -> None:
    found = source(splits(tmp_path, "train", *there), SMALL)
    split = load(found).split
    assert (found.has_val_set, found.has_test_set) == ("val" in there, "test" in there)
    assert (split is None) if not there else set(split.tolist()) == {"train", *there}  # type: ignore[union-attr]


def test_pixels_are_those_of_decoding_and_resizing_each_file(tmp_path: Path) -> None:
    for i, size in enumerate([(8, 8), (20, 31), (5, 3), (64, 64)]):
        put(tmp_path / "ab"[i % 2] / f"{i}.png", i, size=size)
    samples = load(source(tmp_path, SMALL))
    rows = np.array([3, 0, 0, 2])
    out = np.zeros((4, 3, 8, 8), np.uint8)
    samples.x.fill(out, rows)
    for pixels, row in zip(out, rows, strict=True):
        assert np.array_equal(pixels, images.resize(images.decode(tmp_path / samples.x.names[row], 3), 8))


def test_images_are_read_as_grey_only_where_all_are(tmp_path: Path) -> None:
    for i in range(6):
        put(tmp_path / "ab"[i % 2] / f"{i}.png", i, mode="L")
    found = source(tmp_path, SMALL)
    assert found.spec.sample_shape == (1, 8, 8) and any("all 6 images are grey" in note for note in found.notes)
    assert filled(load(found)).shape == (6, 1, 8, 8)
    put(tmp_path / "a" / "6.png", 6)
    found = source(tmp_path, SMALL)
    assert found.spec.sample_shape == (3, 8, 8) and "6 of 7 images are grey and are read as RGB" in found.notes


def test_without_image_size_the_one_square_size_is_taken_after_exif(tmp_path: Path) -> None:
    classes(tmp_path, "a", "b")
    assert source(tmp_path, DataOptions()).spec.sample_shape == (3, 8, 8)
    for name in "ab":
        put(tmp_path / name / "x.png", 5, size=(9, 4))
    with pytest.raises(UserError, match=r"images of 2 sizes \(8x8: 6, 9x4: 2\).*--image_size 128"):
        source(tmp_path, DataOptions())
    assert "images from 9x4 to 8x8 pixels are squashed to 6x6, whatever their aspect" in " ".join(
        source(tmp_path, DataOptions(image_size=6)).notes
    )


def test_all_bad_files_are_named_at_once_the_first_twenty_and_the_count(tmp_path: Path) -> None:
    classes(tmp_path, "a", "b")
    for i in range(23):
        (tmp_path / "a" / f"bad{i:02d}.jpg").write_bytes(b"no image")
    with pytest.raises(UserError) as caught:
        source(tmp_path, SMALL)
    text = str(caught.value)
    assert text.startswith(f"dataset={tmp_path} has 23 files that cannot be read: a/bad00.jpg is no JPEG") and "\n" not in text
    assert "bad19" in text and "bad20" not in text and "and 3 more" in text and "--skip_bad true" in text


def _break(path: Path, number: int = 0) -> None:
    """Write a file whose header is fine and whose pixels are cut off."""
    whole = content(picture(number, size=(40, 40)), "PNG")
    path.write_bytes(whole[: len(whole) // 2])


def test_broken_pixels_are_named_all_at_once_when_decoded_or_left_out_and_recorded(tmp_path: Path, capsys: Any) -> None:
    classes(tmp_path, "a", "b")
    _break(tmp_path / "a" / "x.png")
    _break(tmp_path / "b" / "y.png", 1)
    (tmp_path / "b" / "z.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"has 1 file that cannot be read: b/z[.]png is empty"):
        source(tmp_path, SMALL)
    (tmp_path / "b" / "z.png").unlink()
    with pytest.raises(
        UserError, match=r"2 files that cannot be read: a/x.png is cut off \(.*\), b/y.png is cut off.*--skip_bad"
    ):
        filled(load(source(tmp_path, SMALL)))
    (tmp_path / "b" / "z.png").write_bytes(b"")
    found = source(tmp_path, SKIP)
    assert "1 file left out that cannot be read (skip_bad=true): b/z.png is empty" in " ".join(found.notes)
    samples = load(found)
    assert samples.skipped == ("a/x.png", "b/y.png", "b/z.png") and len(samples.x) == len(samples.y) == 6
    assert filled(samples).shape == (6, 3, 8, 8) and "a/x.png is cut off" in capsys.readouterr().out


def test_bad_files_of_all_splits_are_named_though_each_is_filled_for_itself(tmp_path: Path) -> None:
    splits(tmp_path, "train", "test")
    for k, name in enumerate(("train/cat/x.png", "train/dog/x.png", "test/cat/x.png", "test/dog/x.png")):
        _break(tmp_path / name, k)
    samples = load(source(tmp_path, SMALL))
    assert samples.split is not None
    rows = np.flatnonzero(samples.split == "train")
    with pytest.raises(UserError, match=r"has 4 files that cannot be read: test/cat/x.png is .*train/dog/x.png is"):
        samples.x.fill(np.zeros((len(rows), 3, 8, 8), np.uint8), rows)


def test_each_file_is_decoded_once_without_skip_bad_and_twice_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes(tmp_path, "a", "b")
    calls: list[Path] = []
    real = images._read
    monkeypatch.setattr(images, "_read", lambda file, channels: (calls.append(file), real(file, channels))[1])
    filled(load(source(tmp_path, SMALL)))
    assert len(calls) == 6
    filled(load(source(tmp_path, SKIP)))
    assert len(calls) == 6 + 12


@pytest.mark.parametrize("change", ["rewritten", "same size and time", "gone", "broken"])
@pytest.mark.parametrize("skip_bad", [False, True])
def test_a_file_that_changes_between_looking_and_decoding_is_noticed(tmp_path: Path, change: str, skip_bad: bool) -> None:
    classes(tmp_path, "a", "b")
    samples, file = load(source(tmp_path, SKIP if skip_bad else SMALL)), tmp_path / "a" / "1.png"
    before = file.stat()
    if change == "gone":
        file.unlink()
    elif change == "broken":
        file.write_bytes(b"half")
    else:
        file.write_bytes(file.read_bytes() + (b"x" if change == "rewritten" else b""))
        if change != "rewritten":
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(UserError, match=r"1 file that somebody changed or took away .*: a/1.png\. Start again"):
        filled(samples)


def test_equal_files_leave_train_for_val_and_val_for_test(tmp_path: Path) -> None:
    splits(tmp_path, "train", "val", "test")
    for name, number in (("train/cat/t.png", 2000), ("train/dog/v.png", 1100), ("val/cat/t.png", 2001)):
        put(tmp_path / name, number)  # those of test are 2000..., of val 1000...
    found = source(tmp_path, SMALL)
    notes = " ".join(found.notes)
    assert "2 images of train left out, as val or test has the same: train/cat/t.png, train/dog/v.png" in notes
    assert "1 image of val left out, as test has the same: val/cat/t.png" in notes
    names = load(found).x.names
    assert len(names) == 18 and not {"train/cat/t.png", "train/dog/v.png", "val/cat/t.png"} & set(names)
    assert found.num_train == 6 and found.files and len(found.files(Path())) == 18


def test_equal_files_share_a_group_where_splits_are_cut(tmp_path: Path) -> None:
    classes(tmp_path, "a", "b")
    put(tmp_path / "a" / "copy.png", 1)
    put(tmp_path / "b" / "copy.png", 2)  # the same as a/2.png
    found = source(tmp_path, SMALL)
    samples = load(found)
    assert samples.groups is not None and samples.groups.dtype == np.int64
    of_name = dict(zip(samples.x.names, samples.groups.tolist(), strict=True))
    assert of_name["a/1.png"] == of_name["a/copy.png"] and of_name["a/2.png"] == of_name["b/copy.png"]
    assert len(set(of_name.values())) == 6
    assert "4 images are only 2 different ones, by their bytes; equal ones share a split" in found.notes
    assert "1 image in more than one class, the first as a/2.png and b/copy.png" in found.notes


def test_only_files_of_equal_size_are_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(6):
        put(tmp_path / "ab"[i % 2] / f"{i}.png", i, size=(8 + i, 8))
    (tmp_path / "a" / "copy.png").write_bytes((tmp_path / "b" / "1.png").read_bytes())
    seen: list[str] = []
    monkeypatch.setattr(decoding, "_digest", lambda folder, name, stamp: (seen.append(name), (folder / name).read_bytes())[1])
    source(tmp_path, SMALL)
    assert sorted(seen) == ["a/copy.png", "b/1.png"]


def test_a_second_look_reads_no_header_again_and_sees_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes(tmp_path, "a", "b")
    source(tmp_path, SMALL)
    read: list[str] = []
    real = images.header
    monkeypatch.setattr(images, "header", lambda path: (read.append(path.name), real(path))[1])
    source(tmp_path, SMALL)
    assert read == []
    put(tmp_path / "a" / "1.png", 55, mode="L")
    assert "1 of 6 images are grey and are read as RGB" in source(tmp_path, SMALL).notes and read == ["1.png"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "price"}, r"^target=price is for tables, and dataset="),
        ({"group_column": "g", "split_column": "s"}, r"^group_column=g .*\nsplit_column=s "),
        ({"task": "regression"}, r"^task=regression does not fit dataset=.*3 classes"),
        ({"task": "binary"}, r"^task=binary does not fit"),
    ],
)
def test_flags_that_do_not_fit_a_folder_are_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    classes(tmp_path, "a", "b", "c")
    with pytest.raises(UserError, match=said):
        source(tmp_path, dataclasses.replace(SMALL, **options))


def test_two_classes_can_be_told_apart_by_two_scores(tmp_path: Path) -> None:
    assert source(classes(tmp_path, "a", "b"), dataclasses.replace(SMALL, task="multiclass")).spec.task == "multiclass"


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes(tmp_path, "cat", "dog")
    (tmp_path / "dog" / "locked").mkdir()
    real = os.scandir

    def scandir(folder: Path) -> Any:  # root may read everything
        if folder.name == "locked":
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=rf"^dataset={tmp_path}: .*dog/locked cannot be read \(Permission denied\)"):
        source(tmp_path, SKIP)


def test_a_class_of_which_nothing_can_be_decoded_is_an_error_also_with_skip_bad(tmp_path: Path) -> None:
    classes(tmp_path, "a", "b")
    for i in range(3):
        _break(tmp_path / "a" / f"{i}.png", i)
    with pytest.raises(UserError, match="1 class of which no image can be decoded: a"):
        load(source(tmp_path, SKIP))
    for i in range(3):
        (tmp_path / "a" / f"{i}.png").write_bytes(b"")
    with pytest.raises(UserError, match="1 class of which no image is left to learn from: a"):
        source(tmp_path, SKIP)


@pytest.mark.parametrize("by", ["an error", "a signal"])
def test_an_error_or_a_signal_in_the_middle_stops_the_threads(by: str) -> None:
    done: list[int] = []

    def stop(*_: object) -> None:
        raise RuntimeError("it was stopped")

    def work(index: int) -> None:
        done.append(index)
        time.sleep(0.002)
        if index == 40:
            stop() if by == "an error" else os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(RuntimeError, match="it was stopped"):
            for_each(100_000, work, what="x")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(done) < 500


def test_long_work_says_a_line_now_and_then_and_short_work_nothing(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    for_each(50, lambda index: None, what="decoding")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(decoding, "_EVERY", 0.05)
    start = time.perf_counter()
    count = 50 * (os.cpu_count() or 1)  # each core is busy for half a second
    for_each(count, lambda index: time.sleep(0.01), what="decoding")
    lines = capsys.readouterr().out.splitlines()
    assert 1 <= len(lines) <= (time.perf_counter() - start) / 0.05
    assert all(re.fullmatch(rf"decoding: \d+ of {count} files, [\d,]+ files/s, \d+ s left", line) for line in lines)


def test_on_a_terminal_there_is_a_bar_with_the_rate() -> None:
    script = (
        "import os, time; from pipeline.data import decoding; decoding._QUIET = 0.1;"
        "decoding.for_each(100 * os.cpu_count(), lambda index: time.sleep(0.01), what='decoding')"
    )
    text = written_on_a_terminal(script)
    assert re.search(rf"decoding  {(count := 100 * (os.cpu_count() or 1))}/{count}  [\d,]+ files/s", text)


def test_a_folder_that_goes_away_meanwhile_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes(tmp_path / "photos", "cat", "dog")
    listing = layout._listing

    def going(folder: Path, given: Path) -> tuple[list[Path], list[str]]:
        """List a folder that is not there any more."""
        folders, names = listing(folder, given)
        return ([*folders, folder / "old"] if folder.name == "dog" else folders), names

    monkeypatch.setattr(layout, "_listing", going)
    with pytest.raises(UserError, match=r"^dataset=.*photos: the folder .*old cannot be read \(No such file or directory\)"):
        source(tmp_path / "photos", DataOptions())
