"""`inspect` says what data is: what it says is what a training does then, and nothing but a picture comes of it."""

from __future__ import annotations

import csv
import os
import re
import shlex
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from pipeline import data
from pipeline.cli import main
from pipeline.config import RunConfig
from pipeline.data import matching
from pipeline.data.prepare import prepare, read_spec
from pipeline.flags import read_flags
from pipeline.inspection import costs
from pipeline.resolve import resolve
from tests.pipeline.data.image_folders import classes, picture, put
from tests.pipeline.data.test_images import content

Told = Callable[..., str]


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """Return a function that inspects data and returns what it says."""

    def inspect(dataset: object, *flags: object, status: int = 0) -> str:
        data.forget()  # other tests have data of the same name
        assert main(["inspect", "--dataset", str(dataset), *map(str, flags)]) == status
        said = capsys.readouterr()
        assert bool(said.err) == bool(status) and "Traceback" not in said.err, said.err
        return said.out + said.err

    return inspect


def tree() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def trained(text: str, **more: object) -> RunConfig:
    """Return the configuration of the training that is proposed."""
    (line,) = re.findall(r"^  python -m pipeline run (.*)$", text, flags=re.MULTILINE)
    return resolve(read_flags(shlex.split(line), RunConfig) | {name: str(value) for name, value in more.items()})


def counts(text: str) -> dict[str, int]:
    """Return the samples of each split, as they are told."""
    part = text.partition("\nsplits\n")[2].partition("\n\n")[0]
    found = re.findall(r"^  (train|val|test) +([\d,]+) ", part, flags=re.MULTILINE)
    return {name: int(count.replace(",", "")) for name, count in found}


def houses(path: Path, *, rows: int = 200, **changed: Callable[[int], object]) -> Path:
    rng = np.random.default_rng(0)
    columns: dict[str, Callable[[int], object]] = {
        "id": lambda i: f"h{i}",
        "area": lambda i: "" if i % 10 == 0 else f"{20 + rng.random() * 80:.2f}",
        "rooms": lambda i: int(rng.integers(1, 7)),
        "city": lambda i: ["Rome", "Oslo", "Ulm", ""][i % 4],
        "garden": lambda i: ["true", "false"][i % 3 > 0],
        "sold": lambda i: f"20{10 + i % 9}-03-01",
        "price": lambda i: f"{1000 * rng.random():.3f}",
    } | changed
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([value(i) for value in columns.values()] for i in range(rows))
    return path


def mixed(root: Path) -> Path:
    """Write a folder of images of several sizes and modes, two of which are equal."""
    for k, (name, count) in enumerate((("cat", 30), ("dog", 12), ("owl", 6))):
        for i in range(count):
            put(root / name / f"{i}.png", 100 * k + i, size=(60 + 10 * (i % 4), 80), mode="L" if i == 0 else "RGB")
    (root / "cat" / "copy.png").write_bytes((root / "cat" / "3.png").read_bytes())
    return root


def test_a_folder_of_mixed_sizes_is_told_and_nothing_but_a_picture_is_made(told: Told, tmp_path: Path) -> None:
    mixed(tmp_path / "photos")
    before = tree()
    text = told("photos")
    for said in (
        "photos: a folder of images", "multiclass of 3 classes", "49 of 3 classes",
        "min 60x80, median 70x80, max 90x80 (4 different)",
        "PNG 49", "RGB 46, grey 3; read as RGB", "2 images are only 1 different one",
        "all 49, to find what is broken",
        "cat has 5.2 times as many samples as owl", "right in 63.3%", "3 of 49 images are grey", "free in ~/.cache/trainyard",
    ):  # fmt: skip
        assert said in text, said
    assert re.search(r"cat +31  63.3% +\d+ +\d+ +\d+\n", text)
    assert tree() == sorted([*before, "runs/plots/inspect-photos.png"])
    with Image.open("runs/plots/inspect-photos.png") as drawn:
        assert drawn.size[0] > 500
    config = trained(text)
    assert (config.model, config.image_size) == ("torchvision:resnet18", 64)


def test_splits_and_disk_are_those_of_the_training_that_is_proposed(told: Told, tmp_path: Path, cache_dir: Path) -> None:
    mixed(tmp_path / "photos")
    houses(tmp_path / "houses.csv")
    for given in (
        ["photos"],
        ["houses.csv", "--target", "price"],
        ["digits"],
        ["houses.csv", "--target", "garden", "--task", "binary"],
    ):
        text = told(*given)
        folder = prepare(trained(text, cache_dir=cache_dir))
        assert counts(text) == read_spec(folder).counts
        written = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".npy", ".feather"))
        value, unit = re.findall(r"disk +([\d.,]+) (\w+) of prepared", text)[0]
        said = float(value.replace(",", "")) * {"bytes": 1, "kB": 1e3, "MB": 1e6}[unit]
        assert 0.5 < written / said < 2, (given, written, said)


def test_bad_files_are_listed_and_left_out_instead_of_ending_it(told: Told, tmp_path: Path) -> None:
    root = classes(tmp_path / "photos", "cat", "dog", count=20)
    (root / "cat" / "text.jpg").write_text("no image")
    whole = content(picture(7, size=(64, 64)), "PNG")
    (root / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])  # its header is whole
    text = told("photos")
    assert "and 2 files that cannot be read" in text
    assert "cat/text.jpg  is no JPEG" in text and re.search(r"dog/cut.png +is (cut off|broken)", text)
    assert "--skip_bad true" in text and sum(counts(text).values()) == 40
    assert trained(text).skip_bad


def test_of_many_large_images_some_are_decoded_and_that_is_told(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.inspection import images

    classes(tmp_path / "photos", "cat", "dog", count=20)
    monkeypatch.setattr(images, "_PIXELS", 640)  # ten images of 8x8
    assert "10 of 40 files; of the others the headers were read" in told("photos")
    assert "all 40, to find what is broken" in told("photos", "--skip_bad", "true")


@pytest.mark.parametrize(("size", "flags", "model", "side"), [
    (8, [], "cnn", 28), (40, [], "cnn", 28), (100, [], "torchvision:resnet18", 96), (500, [], "torchvision:resnet18", 224),
    (100, ["--image_size", "28"], "cnn", 28), (100, ["--image_size", "32"], "lenet", 32),
    (8, ["--image_size", "48"], "torchvision:resnet18", 48),
])  # fmt: skip
def test_the_model_that_is_proposed_fits_the_images(
    size: int, flags: list[str], model: str, side: int, told: Told, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        for i in range(8):
            put(tmp_path / "photos" / name / f"{i}.png", 10 * (name == "b") + i, size=(size, size + i % 2))
    config = trained(told("photos", *flags))
    assert (config.model, config.image_size) == (model, side)


def test_folders_that_name_splits_keep_them(told: Told, tmp_path: Path) -> None:
    classes(tmp_path / "photos" / "train", "cat", "dog", count=10)
    classes(tmp_path / "photos" / "test", "cat", "dog", count=4, first=1000)
    text = told("photos")
    assert counts(text) == {"train": 16, "val": 4, "test": 8}
    assert re.search(r"test +8 .* as the data says", text) and re.search(r"val +4 .* cut by chance", text)


def test_names_that_are_no_text_are_told_and_drawn(told: Told, tmp_path: Path) -> None:
    classes(tmp_path / "photos", "cat", "dog", count=6)
    put(tmp_path / "photos" / "cat" / os.fsdecode(b"\xff\xfe.png"), 77)
    (tmp_path / "photos" / "dog" / os.fsdecode(b"\xff.png")).write_text("no image")
    assert "dog/\\udcff.png  is no JPEG" in told("photos")


def test_too_few_samples_to_split_are_trained_on_all_together(told: Told, tmp_path: Path) -> None:
    classes(tmp_path / "photos", "cat", "dog", count=1)
    text = told("photos")
    assert "is too small to hold samples out" in " ".join(text.split()) and counts(text) == {"train": 2}
    assert (trained(text).val_split, trained(text).test_split) == (0, 0)


def test_a_table_is_told_column_by_column(told: Told, tmp_path: Path) -> None:
    houses(tmp_path / "houses.csv")
    text = told("houses.csv", "--target", "price", "--ignore_columns", "rooms")
    assert "regression of price" in text and "7: 2 categories, 2 numbers, 1 ignored, 1 boolean, 1 date" in text
    lines = {line.split()[0]: line for line in text.partition("\ncolumns\n")[2].partition("\n\n")[0].splitlines()}
    assert "left out" in lines["id"] and "10.0%" in lines["area"] and "ignored" in lines["rooms"]
    assert re.search(r"category +25.0% +3  Rome 25.0%, Oslo 25.0%, Ulm 25.0%", lines["city"])
    assert "true 33.5%" in lines["garden"] and "2010-03-01 to 2018-03-01" in lines["sold"] and "target" in lines["price"]
    assert "id is left out: text that is different in each row" in text and "ATTENTION" not in text
    config = trained(text)
    assert (config.model, config.target, config.ignore_columns) == ("mlp", "price", "rooms")


def test_without_a_target_one_is_guessed_and_told(told: Told, tmp_path: Path) -> None:
    houses(tmp_path / "houses.csv")
    text = told("houses.csv")
    assert "ATTENTION: no --target was given, and price is a guess" in text and trained(text).target == "price"
    houses(tmp_path / "labelled.csv", label=lambda i: "ab"[i % 2], note=lambda i: f"free text {i}")
    assert trained(told("labelled.csv")).target == "label"
    houses(tmp_path / "last.csv", note=lambda i: f"free text {i}")  # the last column can be none
    assert trained(told("last.csv")).target == "price"


def test_a_table_that_cannot_be_learnt_is_told_all_the_same_and_then_refused(told: Told, tmp_path: Path) -> None:
    houses(tmp_path / "houses.csv")
    before = tree()
    text = told("houses.csv", "--target", "area", status=2)
    assert "target=area is missing in 20 of 200 rows" in text and "train it with" not in text
    assert re.search(r"area +target +number +10.0%", text) and tree() == before
    assert "Did you mean price?" in told("houses.csv", "--target", "prize", status=2)


def test_several_targets_groups_and_splits_of_a_table(told: Told, tmp_path: Path) -> None:
    houses(tmp_path / "t.csv", a=lambda i: i % 2, b=lambda i: (i % 3 == 0 and 1) or 0, who=lambda i: f"p{i // 4}")
    text = told("t.csv", "--target", "a,b", "--group_column", "who")
    assert "multilabel of 2 labels" in text and re.search(r"who +groups", text) and re.search(r"\n  a +100  50.0%", text)
    houses(tmp_path / "s.csv", part=lambda i: ["train", "train", "val", "test"][i % 4])
    assert counts(told("s.csv", "--target", "price", "--split_column", "part")) == {"train": 100, "val": 50, "test": 50}


def test_large_and_odd_columns_do_not_spoil_it(told: Told, tmp_path: Path) -> None:
    names = [f"x{k}" for k in range(60)]
    rng = np.random.default_rng(0)
    table = {name: rng.normal(size=50) for name in names} | {"$a_1$": rng.normal(size=50), "y": ["a", "b"] * 25}
    parquet.write_table(pa.table(table), tmp_path / "wide.parquet")
    text = told("wide.parquet")
    assert "columns (the first 40 of 62)" in text and trained(text).target == "y"
    nested = pa.table({"a": [[1], [2]] * 10, "b": list(range(20)), "y": ["a", "b"] * 10})
    parquet.write_table(nested, tmp_path / "nested.parquet")
    assert "columns that are neither numbers, text nor dates: a" in told("nested.parquet", "--target", "y", status=2)
    assert trained(told("nested.parquet", "--ignore_columns", "a")).target == "y"


def test_a_column_of_images_in_a_table(told: Told, tmp_path: Path) -> None:
    files = [content(picture(i, size=(50, 50 + i % 2)), "PNG") for i in range(24)]
    labels = [i % 2 for i in range(24)]
    files[4] = b"no image"
    parquet.write_table(pa.table({"image": files, "label": labels}), tmp_path / "images.parquet")
    text = told("images.parquet")
    assert "row 4  is no JPEG" in text and "23 of 2 classes, and 1 file that cannot be read" in text
    assert trained(text).skip_bad and trained(text).image_size == 32


def test_arrays_are_told(told: Told, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    np.savez(tmp_path / "v.npz", x=rng.normal(size=(60, 4)).astype(np.float32), y=y)
    text = told("v.npz")
    assert "60 of 4 features" in text and "multiclass of 3 classes" in text and trained(text).model == "mlp"
    images = rng.integers(0, 256, (60, 64, 64, 3), dtype=np.uint8)
    images[1] = images[0]
    np.savez(tmp_path / "i.npz", x=images, y=y)
    text = told("i.npz")
    assert "64x64 pixels, RGB" in text and "2 are only 1 different" in text and trained(text).image_size == 64
    np.savez(tmp_path / "r.npz", x=rng.normal(size=(60, 2)), y=rng.normal(size=(60, 2)))
    assert "regression of 0, 1" in told("r.npz")
    np.savez(tmp_path / "l.npz", x=images, y=rng.integers(0, 2, (60, 3)))
    assert "multilabel of 3 labels" in told("l.npz")
    np.savez(tmp_path / "n.npz", x=np.array([[1.0], [np.nan]] * 30), y=y)
    before = tree()
    text = told("n.npz", status=2)
    assert "50.0%" in text and "has inputs that are not finite, first in sample 1" in text and tree() == before


def test_a_function_is_called_with_its_arguments(told: Told, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import numpy as np\ndef make(count=30):\n    return np.arange(2.0 * count).reshape(count, 2), np.arange(count) % 2\n"
    )
    text = told("mine.py:make", "--data_args", "count=50")
    assert "50 of 2 features" in text and trained(text).data_args == {"count": 50}


@pytest.mark.parametrize("name", matching())
def test_every_data_set_that_comes_along_is_told_and_its_command_is_right(
    name: str, told: Told, mnist_dir: Path, tmp_path: Path
) -> None:
    flags = ["--data_dir", mnist_dir] if name == "mnist" else []
    text = told(name, *flags)
    assert trained(text).dataset == name and (tmp_path / f"runs/plots/inspect-{name}.png").exists()


def test_nothing_is_downloaded(told: Told) -> None:
    text = told("mnist")
    assert "4 raw files are not there" in text and trained(text).model == "cnn" and tree() == []


def test_flags_without_effect_are_refused_in_the_trainers_words(told: Told, tmp_path: Path) -> None:
    classes(tmp_path / "photos", "cat", "dog", count=6)
    houses(tmp_path / "houses.csv")
    before = tree()
    for dataset, flags, said in (
        ("digits", ["--target", "x"], "target=x has no effect on dataset=digits"),
        ("moons", ["--data_args", "noise=x"], "data_args: noise=x of moons is not a number"),
        ("moons", ["--data_args", "noise=-1"], "noise=-1, a standard deviation"),
        ("houses.csv", ["--target", "price", "--image_size", "64"], "image_size=64 has no effect"),
        ("photos", ["--target", "x"], "target=x is for tables"),
        ("photos", ["--task", "regression"], "task=regression does not fit"),
        ("photos", ["--data_dir", "x"], "data_dir=x has no effect"),
    ):
        assert said in told(dataset, *flags, status=2), dataset
    assert tree() == before


def _one_class(root: Path) -> None:
    classes(root, "cat")


def _all_bad(root: Path) -> None:
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        (root / name / "0.png").write_text("no image")


def _one_bad_class(root: Path) -> None:
    classes(root, "cat", "dog")
    for file in (root / "dog").iterdir():
        file.write_bytes(file.read_bytes()[:60])  # the header is whole


def _loop(root: Path) -> None:
    root.symlink_to(root)


HOSTILE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "nothing there": ("nowhere/", lambda path: None, "is not there"),
    "unknown name": ("digist", lambda path: None, "Did you mean digits?"),
    "empty folder": ("photos", lambda path: path.mkdir(), "holds no image in a folder of a class"),
    "one class": ("photos", _one_class, "has one class, cat"),
    "all files bad": ("photos", _all_bad, "2 files that cannot be read: cat/0.png is no JPEG"),
    "all files of a class broken": ("photos", _one_bad_class, "3 files that cannot be read: dog/0.png is"),
    "loose images": ("photos", lambda path: put(path / "0.png"), "and no folder of a class"),
    "link to itself": ("photos", _loop, "photos"),
    "empty csv": ("t.csv", lambda path: path.write_text(""), "dataset="),
    "header only": ("t.csv", lambda path: path.write_text("a,b\n"), "no row"),
    "open quote": ("t.csv", lambda path: path.write_text('a,b\n1,"x\n2,y\n'), "opens a quote"),
    "ragged": ("t.csv", lambda path: path.write_text("a,b\n1,2\n1,2,3\n"), "1 row of another length: line 3"),
    "latin-1": ("t.csv", lambda path: path.write_bytes("a,b\n1,é\n".encode("latin-1")), "UTF-8"),
    "names twice": ("t.csv", lambda path: path.write_text("a,a\n1,2\n"), "several columns named a"),
    "one column": ("t.csv", lambda path: path.write_text("a\n1\n2\n"), "dataset="),
    "infinite": ("t.csv", lambda path: path.write_text("a,y\n" + "1,x\ninf,z\n" * 5), "infinite"),
    "parquet cut off": ("t.parquet", lambda path: path.write_bytes(b"PAR1 and so on"), "is not a whole Parquet file"),
    "feather of nothing": ("t.feather", lambda path: path.write_bytes(b""), "dataset="),
    "npz of pickles": ("a.npz", lambda path: np.savez(path, x=np.array([{}]), y=np.array([1])), "never loaded"),
    "npz without y": ("a.npz", lambda path: np.savez(path, x=np.zeros((3, 2))), "has no array y"),
    "npz of floats as images": ("a.npz", lambda path: np.savez(path, x=np.zeros((3, 8, 8)), y=np.arange(3)), "Give uint8"),
    "another file": ("a.zip", lambda path: path.write_bytes(b"PK"), "is no data that can be read"),
    "function that fails": ("f.py:f", lambda path: Path("f.py").write_text("def f(): raise SystemExit(3)"), "failed"),
    "no such function": ("f.py:g", lambda path: Path("f.py").write_text("def f(): pass"), "g"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_what_cannot_be_data_gets_a_sentence_and_leaves_nothing(case: str, told: Told, tmp_path: Path) -> None:
    name, make, said = HOSTILE[case]
    make(tmp_path / name)
    before = tree()
    text = told(name, status=2)
    assert said in text and "train it with" not in text and all(len(line) > 15 for line in text.strip().splitlines()[-1:])
    assert tree() == before


def test_the_command_names_data_as_it_was_given_quoted(told: Told, tmp_path: Path) -> None:
    classes(tmp_path / "my photos", "cat", "dog", count=6)
    text = told("my photos")
    assert "--dataset 'my photos'" in text and trained(text).dataset == str(tmp_path / "my photos")
    assert (tmp_path / "runs/plots/inspect-my photos.png").exists()


def test_the_picture_goes_where_it_is_asked_for_and_a_long_name_is_cut(told: Told, tmp_path: Path) -> None:
    name = "\u00e9" * 120
    houses(tmp_path / f"{name}.csv")
    told(f"{name}.csv", "--output", "here")
    assert [len(path.name.encode()) for path in (tmp_path / "here").iterdir()] == [100 + len("inspect-.png")]


def test_a_full_disk_is_told(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "_free", lambda folder: 1000)
    assert "ATTENTION, that is too little; give another --cache_dir" in " ".join(told("digits").split())
