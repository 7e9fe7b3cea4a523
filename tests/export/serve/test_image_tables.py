"""`predict` about Parquet files with a column of images: the answers are those about the same images as files."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from tests.export.serve.conftest import MakeOnnx
from tests.export.serve.test_predict import Said, _predict, _rows, _save, _table
from tests.export.serve.test_predict_alone import peak_of
from tests.pipeline.data.test_image_table import hugging_face, plain

SIZES = [(8, 8), (30, 40), (1, 1), (30, 40), (100, 33), (8, 8), (9, 12)] * 6
BROKEN, NULL = 4, 17  # places of rows without an answer


def _photos(folder: Path, count: int = 3) -> list[bytes]:
    """Write some images into a folder, and return their bytes in the order of their names."""
    return [_save(folder / f"{k:02}.png", *SIZES[k], seed=k).read_bytes() for k in range(count)]


@pytest.mark.parametrize("write", [hugging_face, plain])
@pytest.mark.parametrize(("channels", "side"), [(3, 8), (1, 8), (3, 0)], ids=["any size", "grey", "resized"])
def test_rows_are_answered_as_the_same_images_in_files_are(
    make_onnx: MakeOnnx, tmp_path: Path, capsys: Said, write: object, channels: int, side: int
) -> None:
    onnx = make_onnx(shape=(channels, 8, 8), side=side)
    contents: list[bytes | None] = [*_photos(tmp_path / "photos", len(SIZES))]
    contents[BROKEN] = contents[BROKEN][:-60]  # type: ignore[index]
    (tmp_path / "photos" / f"{BROKEN:02}.png").write_bytes(contents[BROKEN] or b"")
    contents[NULL] = None
    (tmp_path / "photos" / f"{NULL:02}.png").unlink()
    if write is hugging_face:  # in row groups of 7 rows
        hugging_face(tmp_path / "photos.parquet", contents, [0] * len(contents))
    else:
        plain(tmp_path / "photos.parquet", contents, label=[0] * len(contents))
    assert _predict(onnx, "photos", output="files.csv", batch_size=2) == 1
    capsys.readouterr()
    assert _predict(onnx, "photos.parquet", output="rows.csv", batch_size=2) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith(f"row {BROKEN + 1} is ") and told[1] == f"row {NULL + 1} has no image"
    assert told[2:] == [f"2 of {len(SIZES)} inputs failed"]
    in_files, in_rows = _rows(tmp_path / "files.csv"), _rows(tmp_path / "rows.csv")
    expected = [k for k in range(len(SIZES)) if k not in (BROKEN, NULL)]
    assert [row.pop("input") for row in in_files] == [f"photos/{k:02}.png" for k in expected]
    assert [row.pop("input") for row in in_rows] == [str(k + 1) for k in expected]
    assert in_rows == in_files and len({row["p_cat"] for row in in_rows}) > 20


def test_rows_of_several_inputs_are_named_with_their_file(make_onnx: MakeOnnx, tmp_path: Path, capsys: Said) -> None:
    contents = _photos(tmp_path / "photos")
    plain(tmp_path / "a.parquet", [contents[0], b"no picture", contents[1]])
    hugging_face(tmp_path / "b.PARQUET", [None, contents[2]], [0, 1])
    assert _predict(make_onnx(side=8), "a.parquet", "photos/01.png", "b.PARQUET") == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("a.parquet:2 is no JPEG") and told[1:] == ["b.PARQUET:1 has no image", "2 of 6 inputs failed"]
    rows = _rows(tmp_path / "answers.csv")
    assert [row["input"] for row in rows] == ["a.parquet:1", "a.parquet:3", "photos/01.png", "b.PARQUET:2"]
    assert rows[1].keys() == rows[2].keys() and [*rows[1].values()][1:] == [*rows[2].values()][1:]


def test_of_a_folder_those_with_images_are_taken_and_those_that_cannot_be_read_fail(
    make_onnx: MakeOnnx, tmp_path: Path, capsys: Said
) -> None:
    contents = _photos(tmp_path / "photos")
    plain(tmp_path / "photos" / "more.parquet", contents)
    parquet.write_table(pa.table({"input": ["01.png"], "p_cat": [0.5]}), tmp_path / "photos" / "answers.parquet")
    (tmp_path / "photos" / "cut.parquet").write_bytes((tmp_path / "photos" / "more.parquet").read_bytes()[:-20])
    assert _predict(make_onnx(side=8), "photos") == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "input=photos: 1 files of other kinds are passed over (.parquet: 1)"
    assert told[1].startswith("photos/cut.parquet is no whole parquet file (") and told[2:] == ["1 of 7 inputs failed"]
    names = [row["input"] for row in _rows(tmp_path / "answers.csv")]
    assert names == [*(f"photos/{k:02}.png" for k in range(3)), *(f"photos/more.parquet:{k}" for k in (1, 2, 3))]


def test_a_file_that_is_damaged_within_is_answered_as_far_as_it_goes(make_onnx: MakeOnnx, tmp_path: Path, capsys: Said) -> None:
    path = hugging_face(tmp_path / "photos.parquet", _photos(tmp_path / "photos", 21), [0] * 21)  # three row groups
    start = parquet.read_metadata(path).row_group(1).column(0).data_page_offset
    whole = bytearray(path.read_bytes())
    whole[start : start + 40] = b"\xff" * 40
    path.write_bytes(whole)
    assert _predict(make_onnx(side=8), path.name) == 1
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("photos.parquet cannot be read further (") and told[1:] == ["1 of 8 inputs failed"]
    assert [row["input"] for row in _rows(tmp_path / "answers.csv")] == [str(k) for k in range(1, 8)]


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        ("images", "people", "has no column of images (bytes, or a struct of bytes and path), and this model takes images."),
        ("images", "two", "has 2 columns of images (picture, other). Give a file that has one."),
        ("table", "photos", "is a table of images (column picture), and this model takes none. Give a table of what it"),
        ("table", "two", "is a table of images (column picture, other), and this model takes none. Give a table of what"),
        ("vectors", "photos", "is a table of images (column picture), and this model takes none. Give a table of what it"),
    ],
)
def test_a_file_for_another_kind_of_model_is_refused_before_anything_is_answered(
    make_onnx: MakeOnnx, table_onnx: Path, tmp_path: Path, capsys: Said, model: str, given: str, said: str
) -> None:
    contents = _photos(tmp_path / "photos")
    parquet.write_table(_table(), tmp_path / "people.parquet")
    plain(tmp_path / "photos.parquet", contents, label=[0, 1, 2])
    plain(tmp_path / "two.parquet", contents, other=pa.array(contents, pa.binary()))
    onnx = {"images": lambda: make_onnx(side=8), "vectors": lambda: make_onnx(shape=(2,)), "table": lambda: table_onnx}[model]()
    taken = "photos" if model == "images" else "people.parquet"
    assert _predict(onnx, f"{given}.parquet", *([taken] if model != "vectors" else [])) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"input={given}.parquet {said}") and told.count("\n") == 1, told
    assert not (tmp_path / "answers.csv").exists()


def test_a_table_with_all_columns_of_the_model_may_have_bytes_beside_them(
    table_onnx: Path, tmp_path: Path, capsys: Said
) -> None:
    parquet.write_table(_table(portrait=pa.array([b"x"] * 4)), tmp_path / "people.parquet")
    assert _predict(table_onnx, "people.parquet") == 0 and len(_rows(tmp_path / "answers.csv")) == 4
    assert "2 columns that the model does not take are passed over (id, portrait)" in capsys.readouterr().err


def test_the_memory_does_not_grow_with_the_number_of_rows(make_onnx: MakeOnnx, tmp_path: Path) -> None:
    """Nor with the size of a row group: all rows are in one."""
    onnx = make_onnx(side=8)
    content = _save(tmp_path / "x.bmp", 600, 600).read_bytes()  # 1.1 MB, as are its pixels
    peaks = []
    for count in (60, 300):
        table = pa.table({"image": [content] * count})
        path = tmp_path / f"{count}.parquet"
        parquet.write_table(table, path, compression="none", use_dictionary=False, write_batch_size=4, data_page_size=1 << 22)
        assert parquet.read_metadata(path).num_row_groups == 1 and path.stat().st_size > count << 20
        peaks.append(peak_of(onnx, path))
    assert peaks[1] < peaks[0] * 1.2, peaks
