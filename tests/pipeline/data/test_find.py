"""`data.find`: own data is read once in a process, as long as it is what it was and lies where it lay."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline import data
from pipeline.data import arrays, folder, table
from pipeline.data.spec import DataOptions
from pipeline.errors import UserError

Write = Callable[[Path, int], Path]  # writes so many samples into a folder, and returns what names them


def as_table(place: Path, count: int) -> Path:
    (place / "t.csv").write_text("a,y\n" + "".join(f"{k * 7 % 13},{k % 2}\n" for k in range(count)))
    return place / "t.csv"


def as_arrays(place: Path, count: int) -> Path:
    np.savez(place / "t.npz", x=np.arange(2.0 * count).reshape(count, 2), y=np.arange(count) % 2)
    return place / "t.npz"


def as_function(place: Path, count: int) -> Path:
    (place / "t.py").write_text(
        f"import numpy as np\n\ndef read():\n    return np.arange({2.0 * count}).reshape({count}, 2), np.arange({count}) % 2\n"
    )
    return place / "t.py:read"


def as_folder(place: Path, count: int) -> Path:
    for k in range(count):
        path = place / "images" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return place / "images"


KINDS = pytest.mark.parametrize("write", [as_table, as_arrays, as_function, as_folder])
OPTIONS = {as_table: DataOptions(target="y")}


def find(name: object, write: Write) -> Any:
    return data.find(str(name), OPTIONS.get(write, DataOptions()))


@pytest.fixture(autouse=True)
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Forget what other tests have read, and return a list in which each reading is noted."""
    data.forget()
    seen: list[str] = []
    for module in (table, arrays, folder):
        real = module.source
        monkeypatch.setattr(module, "source", lambda name, options, real=real: (seen.append(str(name)), real(name, options))[1])
    return seen


@KINDS
def test_what_does_not_change_is_read_once_however_it_is_named(
    write: Write, tmp_path: Path, looks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = write(tmp_path, 20)
    monkeypatch.chdir(tmp_path)
    first = find(whole.name, write)
    assert find(whole, write) is first and find(whole.name, write) is first and looks == [str(whole)]
    assert first.is_own and first.num_train == 20


@KINDS
def test_what_has_changed_between_two_questions_is_read_anew(write: Write, tmp_path: Path, looks: list[str]) -> None:
    assert find(write(tmp_path, 20), write).num_train == 20
    assert find(write(tmp_path, 24), write).num_train == 24 and len(looks) == 2


@KINDS
def test_a_name_is_that_of_the_folder_in_which_it_is_asked(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for count in (20, 24):
        place = tmp_path / str(count)
        place.mkdir()
        name = write(place, count).name
    seen = []
    for count in (20, 24):
        monkeypatch.chdir(tmp_path / str(count))
        seen.append(find(name, write))
    monkeypatch.chdir(tmp_path)
    assert [found.num_train for found in seen] == [20, 24]
    for found, count in zip(seen, ("20", "24"), strict=True):  # also once the working folder is another
        files = found.files(Path())
        assert files and all(path.is_file() and path.is_relative_to(tmp_path / count) for path in files)


def test_other_options_are_another_question_and_both_answers_are_kept(tmp_path: Path, looks: list[str]) -> None:
    path = as_table(tmp_path, 20)
    first, second = (data.find(str(path), DataOptions(target=target)) for target in "ya")
    assert first.spec.task == "binary" != second.spec.task
    assert data.find(str(path), DataOptions(target="y")) is first and len(looks) == 2


def test_an_image_deep_below_counts_as_a_change_and_a_link_in_a_circle_ends(tmp_path: Path, looks: list[str]) -> None:
    place = as_folder(tmp_path, 20)
    (place / "a" / "more" / "still").mkdir(parents=True)
    (place / "a" / "more" / "back").symlink_to(place / "a")
    assert find(place, as_folder).num_train == 20
    (place / "a" / "0.png").rename(place / "a" / "more" / "still" / "0.png")
    assert find(place, as_folder).num_train == 20 and len(looks) == 2
    (place / "a" / "more" / "still" / "0.png").unlink()
    assert find(place, as_folder).num_train == 19


def test_a_mistake_is_told_by_the_name_that_was_given_and_anew_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    for _ in range(2):
        with pytest.raises(UserError, match=r"dataset=t\.csv has no column y") as seen:
            data.find("t.csv", DataOptions(target="y"))
        assert str(tmp_path) not in str(seen.value)
    as_table(tmp_path, 20)
    assert data.find("t.csv", DataOptions(target="y")).num_train == 20


def test_a_table_within_the_same_size_and_time_of_modification_is_read_anew(tmp_path: Path) -> None:
    path = as_table(tmp_path, 20)
    before = path.stat()
    assert find(path, as_table).spec.classes == ("0", "1")
    path.write_text(path.read_text().replace(",1\n", ",2\n"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert find(path, as_table).spec.classes == ("0", "2")
