"""Parquet files with a column of images: as Hugging Face's datasets write them, plain ones, and hostile ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.data import find
from pipeline.data.image_table import column_of, contents, source
from pipeline.data.images import decode, resize
from pipeline.data.prepare import prepare, read_manifest
from pipeline.data.spec import DataOptions
from pipeline.errors import UserError
from pipeline.resolve import resolve
from tests.pipeline.data.image_folders import filled, load, picture
from tests.pipeline.data.test_images import content

N = 30
LABELS = [k % 3 for k in range(N)]
SKIP = DataOptions(skip_bad=True)


def encoded(numbers: Sequence[int] = range(N), **more: Any) -> list[bytes]:
    return [content(picture(k, **more), "PNG") for k in numbers]


def hugging_face(path: Path, images: Sequence[bytes | None], labels: Sequence[Any], names: Sequence[str] = ()) -> Path:
    """Write a file as `datasets` does: struct<bytes, path> images, and the names of classes in the schema's metadata."""
    rows = [None if each is None else {"bytes": each, "path": f"{k}.png"} for k, each in enumerate(images)]
    column = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    table = pa.table({"image": column, "label": pa.array(labels)})
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    about = {"huggingface": json.dumps({"info": {"features": features}})} if names else {}
    parquet.write_table(table.replace_schema_metadata(about), path, row_group_size=7)
    return path


def plain(path: Path, images: Sequence[bytes | None], **columns: Any) -> Path:
    parquet.write_table(pa.table({"picture": pa.array(images, pa.binary()), **columns}), path)
    return path


def refusal(path: Path, options: DataOptions | None = None) -> str:
    with pytest.raises(UserError) as raised:
        load(source(path, options or DataOptions()))
    (message,) = raised.value.messages
    assert "\n" not in message and len(message) < 4000
    return message


def test_a_file_of_hugging_face_has_its_images_and_the_names_of_its_classes(tmp_path: Path) -> None:
    path = hugging_face(tmp_path / "pets.parquet", encoded(), LABELS, ["cat", "dog", "a cow"])
    found = find(str(path))
    samples = load(found)
    assert found.spec.classes == ("cat", "dog", "a cow") and found.spec.sample_shape == (3, 8, 8) and found.spec.any_size
    assert found.num_train == N and found.spec.name == "pets" and found.is_own and samples.y.tolist() == LABELS
    assert np.array_equal(filled(samples), [np.moveaxis(np.asarray(picture(k)), 2, 0) for k in range(N)])
    assert "images of column image, classes of column label, read as RGB" in found.notes
    assert samples.x.names == [str(k) for k in range(N)]


def test_a_column_of_bytes_and_one_of_texts_do_as_well(tmp_path: Path) -> None:
    path = plain(tmp_path / "own.parquet", encoded(mode="L"), kind=[["b", "a"][k % 2] for k in range(N)])
    found = source(path, DataOptions())
    assert found.spec.classes == ("a", "b") and found.spec.task == "binary" and found.spec.sample_shape == (1, 8, 8)
    assert load(found).y.tolist() == [1, 0] * (N // 2)
    assert np.array_equal(filled(load(found))[:, 0], [np.asarray(picture(k, mode="L")) for k in range(N)])


@pytest.mark.parametrize("kind", [pa.large_binary(), pa.binary()], ids=str)
@pytest.mark.parametrize("labels", [pa.array(["x", "y"] * 15).dictionary_encode(), pa.array([5, 7] * 15, pa.uint8())], ids=str)
def test_other_types_of_columns_are_read(tmp_path: Path, kind: pa.DataType, labels: pa.Array) -> None:
    path = tmp_path / "own.parquet"
    parquet.write_table(pa.table({"image": pa.array(encoded(), kind), "label": labels}), path)
    found = source(path, DataOptions())
    assert found.spec.classes in (("x", "y"), ("5", "7")) and load(found).y.tolist() == [0, 1] * 15


def test_names_that_do_not_fit_the_numbers_are_not_taken(tmp_path: Path) -> None:
    found = source(hugging_face(tmp_path / "a.parquet", encoded(), [k * 2 for k in LABELS], ["a", "b", "c"]), DataOptions())
    assert found.spec.classes == ("0", "2", "4")


def test_a_class_that_has_no_row_here_keeps_its_name_away_from_others(tmp_path: Path) -> None:
    """Names are by number: of four names and the labels 0, 1, 3 the last is the fourth."""
    labels = [[0, 1, 3][k] for k in LABELS]
    found = source(hugging_face(tmp_path / "a.parquet", encoded(), labels, ["a", "b", "c", "d"]), DataOptions())
    assert found.spec.classes == ("a", "b", "d") and load(found).y.tolist() == LABELS


def test_the_label_is_the_column_of_a_usual_name_or_that_which_is_named(tmp_path: Path) -> None:
    path = plain(tmp_path / "own.parquet", encoded(), label=LABELS, colour=["red", "blue"] * 15)
    assert source(path, DataOptions()).spec.classes == ("0", "1", "2")
    assert source(path, DataOptions(target="colour")).spec.classes == ("blue", "red")
    other = plain(tmp_path / "other.parquet", encoded(), a=LABELS, b=LABELS)
    message = refusal(other)
    assert message.startswith("target: ") and "a, b" in message
    message = refusal(other, DataOptions(target="c"))
    assert message.startswith("target=c ") and "a, b" in message


def test_a_target_may_be_named_on_the_command_line(tmp_path: Path) -> None:
    path = plain(tmp_path / "own.parquet", encoded(), a=LABELS, b=["x", "y"] * 15)
    assert resolve({"model": "cnn", "dataset": str(path), "target": "b"}).target == "b"


@pytest.mark.parametrize("flag", ["ignore_columns", "group_column", "split_column"])
def test_flags_of_tables_without_an_effect_are_refused(tmp_path: Path, flag: str) -> None:
    path = plain(tmp_path / "own.parquet", encoded(), label=LABELS, more=LABELS)
    with pytest.raises(UserError, match=rf"^{flag}=more has no effect on dataset={path}"):
        resolve({"model": "cnn", "dataset": str(path), flag: "more"})


def test_a_file_without_a_label_is_refused(tmp_path: Path) -> None:
    path = plain(tmp_path / "own.parquet", encoded())
    message = refusal(path)
    assert message.startswith(f"dataset={path} ") and "label" in message


@pytest.mark.parametrize(
    ("labels", "part"),
    [
        ([0] * N, "with 1 classes"),
        ([0.5, 1.5] * 15, "of type double"),
        ([[0, 1], [1]] * 15, "of type list"),
        ([None] * 3 + [1, 0, 1] * 9, "without image or"),
    ],
    ids=["one class", "floats", "lists", "missing"],
)
def test_labels_that_name_no_classes_are_refused(tmp_path: Path, labels: list[Any], part: str) -> None:
    assert part in refusal(plain(tmp_path / "own.parquet", encoded(), label=labels))


def test_rows_without_an_image_are_counted(tmp_path: Path) -> None:
    images: list[bytes | None] = [*encoded()]
    images[3] = images[5] = None
    for path in (plain(tmp_path / "a.parquet", images, label=LABELS), hugging_face(tmp_path / "b.parquet", images, LABELS)):
        assert refusal(path) == f"dataset={path} has 2 rows without image or label. Remove them."


def _damaged() -> list[bytes]:
    """Return images of which 4 is no image, 9 is empty, and the pixels of 17 end too early, which no header tells."""
    images = encoded()
    images[4], images[9], images[17] = b"no image", b"", images[17][:-60]
    return images


def test_bad_rows_are_named_and_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    path = plain(tmp_path / "own.parquet", _damaged(), label=LABELS)
    message = refusal(path)
    assert (
        message.startswith(f"dataset={path} has 2 images that cannot be read: row 4 is no JPEG") and "row 9 is empty" in message
    )
    assert message.endswith("--skip_bad true.")
    found = source(path, SKIP)
    samples = load(found)
    rows = [k for k in range(N) if k not in (4, 9, 17)]
    assert (
        samples.skipped == ("row 4", "row 9", "row 17")
        and "2 rows left out" in found.notes[1]
        and samples.y.tolist() == [LABELS[k] for k in rows]
    )
    assert samples.x.names == [str(k) for k in rows] and len(filled(samples)) == len(rows)


def test_pixels_that_are_cut_off_are_named_when_they_are_decoded(tmp_path: Path) -> None:
    images = encoded()
    images[17] = images[17][:-60]
    path = plain(tmp_path / "own.parquet", images, label=LABELS)
    with pytest.raises(UserError, match=rf"^dataset={path} has 1 images? that cannot be read: row 17 is cut off"):
        filled(load(source(path, DataOptions())))


def test_hundreds_of_bad_rows_are_counted_and_twenty_named(tmp_path: Path) -> None:
    message = refusal(plain(tmp_path / "own.parquet", [b"x"] * 300, label=LABELS * 10))
    assert "has 300 images" in message and message.count("row ") == 20 and "and 280 more" in message


def test_where_nothing_is_left_that_is_said(tmp_path: Path) -> None:
    path = plain(tmp_path / "own.parquet", [b"x"] * N, label=LABELS)
    assert refusal(path, SKIP).startswith(f"dataset={path} ")
    images = encoded()
    for k in range(0, N, 3):
        images[k] = b"x"
    path = plain(tmp_path / "own.parquet", images, label=["a", "b", "c"] * 10)
    message = refusal(path, SKIP)
    assert message.startswith(f"dataset={path} ") and message.count(" a") and "image" in message


def test_images_of_several_sizes_need_one_to_which_they_are_resized(tmp_path: Path) -> None:
    images = [*encoded(range(15)), *encoded(range(15, N), size=(20, 11))]
    path = plain(tmp_path / "own.parquet", images, label=LABELS)
    message = refusal(path)
    assert message.startswith(f"dataset={path} has images of 2 sizes") and "--image_size" in message
    samples = load(source(path, DataOptions(image_size=6)))
    assert np.array_equal(filled(samples), [resize(decode(each, 3), 6) for each in images])


def test_images_are_grey_only_where_all_are(tmp_path: Path) -> None:
    images = [*encoded(range(29), mode="L"), *encoded([29])]
    found = source(plain(tmp_path / "own.parquet", images, label=LABELS), DataOptions())
    assert found.spec.sample_shape == (3, 8, 8) and np.array_equal(filled(load(found))[0, 0], filled(load(found))[0, 2])


def test_equal_bytes_share_a_split(tmp_path: Path) -> None:
    images = encoded([k % 20 for k in range(60)])
    path = plain(tmp_path / "own.parquet", images, label=["a", "b"] * 30)
    folder = prepare(resolve({"model": "cnn", "dataset": str(path), "cache_dir": str(tmp_path / "cache")}))
    names = read_manifest(folder)["names"]
    contents_of = [{images[int(row)] for row in rows} for rows in names.values()]
    assert sum(map(len, contents_of)) == 20 == len(set().union(*contents_of)) and sum(map(len, names.values())) == 60


def test_rows_are_found_again_by_their_numbers(tmp_path: Path) -> None:
    for path in (
        plain(tmp_path / "a.parquet", encoded(), label=LABELS),
        hugging_face(tmp_path / "b.parquet", encoded(), LABELS),
    ):
        assert contents(path, [7, 0, 29]) == encoded([7, 0, 29])


@pytest.mark.parametrize("task", ["regression", "multilabel", "binary"])
def test_a_task_that_does_not_fit_is_refused(tmp_path: Path, task: str) -> None:
    path = plain(tmp_path / "own.parquet", encoded(), label=LABELS)
    assert refusal(path, DataOptions(task=task)).startswith(f"task={task} does not fit dataset={path}, ")


def test_two_columns_of_bytes_or_none_are_no_image_table(tmp_path: Path) -> None:
    path = tmp_path / "own.parquet"
    assert column_of(plain(path, encoded(), other=pa.array(encoded(), pa.binary()), label=LABELS)) == ""
    parquet.write_table(pa.table({"a": LABELS}), path)
    assert column_of(path) == "" == column_of(tmp_path / "a.csv")
    path.write_bytes(b"PAR1 cut off")
    assert column_of(path) == ""


def test_a_struct_whose_bytes_are_none_is_no_image(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"a": [{"bytes": "text", "path": "x"}], "label": [1]}), tmp_path / "own.parquet")
    assert column_of(tmp_path / "own.parquet") == ""


def test_a_file_whose_pages_are_damaged_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = plain(tmp_path / "own.parquet", encoded(), label=LABELS)
    whole = bytearray(path.read_bytes())
    whole[4:600] = b"\xff" * 596
    path.write_bytes(whole)
    assert refusal(path).startswith(f"dataset={path} cannot be read (")
