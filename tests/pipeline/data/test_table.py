"""Tables as data sets: the task and the notes that follow from what they hold, and a sentence for each way to be broken."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from pipeline.data import table_file
from pipeline.data.columns import Column, encode, fit, raw_columns
from pipeline.data.spec import DataOptions, Samples, Source
from pipeline.data.table import source
from pipeline.errors import UserError

Cells = dict[str, list[Any]]


def write(cells: Cells, name: str = "t.csv") -> Path:
    """Write columns as a table of the kind that the name's ending says; None is missing."""
    path = Path(name)
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",", lineterminator="\n")
            writer.writerow(cells)
            writer.writerows(["" if v is None else str(v).lower() if isinstance(v, bool) else v for v in row]
                             for row in zip(*cells.values(), strict=True))  # fmt: skip
    else:
        (pq.write_table if path.suffix == ".parquet" else feather.write_feather)(pa.table(cells), str(path))
    return path


def ask(path: Path, target: str = "y", **options: Any) -> Source:
    return source(path, DataOptions(target=target, **options))


def load(found: Source) -> Samples:
    return found.load(data_dir=Path(), seed=0)


def told(found: Source) -> str:
    return "\n".join(found.notes)


def numbers(n: int = 40, seed: int = 0) -> list[float]:
    return np.random.default_rng(seed).normal(size=n).tolist()


def labels(n: int = 40) -> list[str]:
    return [("yes", "no", "no")[k % 3] for k in range(n)]


def mixed(n: int = 40) -> Cells:
    return {
        "size": numbers(n),
        "city": [("Rome", "Zürich", None, "NA")[k % 4] for k in range(n)],
        "built": [str(date(2000, 1, 1) + timedelta(days=k * k)) if k % 5 else None for k in range(n)],
        "new": [bool(k % 2) for k in range(n)],
        "y": labels(n),
    }


@pytest.mark.parametrize("suffix", table_file.SUFFIXES)
def test_the_same_table_in_every_format_gives_the_same_samples(suffix: str) -> None:
    cells = mixed()
    if suffix not in (".csv", ".tsv"):
        cells["built"] = [day and date.fromisoformat(day) for day in cells["built"]]
    found = ask(write(cells, f"t{suffix}"))
    assert {c.name: c.kind for c in found.spec.columns} == {
        "size": "number",
        "city": "category",
        "built": "date",
        "new": "boolean",
    }
    assert (found.spec.task, found.spec.classes, found.num_train) == ("binary", ("no", "yes"), 40)
    samples = load(found)
    assert samples.y.dtype == np.int64 and samples.y.tolist() == [int(text == "yes") for text in cells["y"]]
    assert samples.x.shape == (40, 0) and samples.split is None and samples.groups is None and samples.raw is not None
    np.testing.assert_array_equal(samples.raw["size"], cells["size"])
    assert samples.raw["city"][:4].tolist() == ["Rome", "Zürich", "", "NA"]
    assert np.isnan(samples.raw["built"][0]) and samples.raw["built"][1] == 10958 and samples.raw["new"][:2].tolist() == [0, 1]
    assert encode(samples.raw, fit(samples.raw, found.spec.columns)).shape == (40, *found.spec.sample_shape)
    assert "built: dates are read as days since 1970-01-01" in told(found) and "'NA' is a category of city" in told(found)
    assert found.files is not None and [p.name for p in found.files(Path())] == [f"t{suffix}"] and found.parameters == {}


TASKS: dict[str, tuple[Cells, str, str, tuple[str, ...], tuple[str, ...]]] = {
    "text": ({"y": ["b", "a"] * 20}, "y", "binary", ("a", "b"), ()),
    "three texts": ({"y": ["10", "9", "x", "x"] * 10}, "y", "multiclass", ("10", "9", "x"), ()),
    "bool": ({"y": [True, False] * 20}, "y", "binary", ("false", "true"), ()),
    "0 and 1": ({"y": [0, 1] * 20}, "y", "binary", ("0", "1"), ()),
    "whole numbers": ({"y": [10, 9, 2, 2] * 10}, "y", "multiclass", ("2", "9", "10"), ()),
    "whole numbers as floats": ({"y": [1.0, 2.0] * 20}, "y", "binary", ("1", "2"), ()),
    "one of them once": ({"y": [1, 2] * 19 + [2, 3]}, "y", "regression", (), ("y",)),
    "many whole numbers": ({"x": numbers(50), "y": [k % 25 for k in range(50)]}, "y", "regression", (), ("y",)),
    "fractions": ({"y": [0.5, 1] * 20}, "y", "regression", (), ("y",)),
    "two numbers": ({"y": numbers(), "z": numbers(seed=1)}, "y,z", "regression", (), ("y", "z")),
    "two of 0 and 1": ({"y": [0, 1] * 20, "z": [True, True, False, True] * 10}, "y,z", "multilabel", ("y", "z"), ()),
    "0, 1 and 2": ({"y": [0, 1] * 20, "z": [0, 1, 2, 0] * 10}, "y, z", "regression", (), ("y", "z")),
    "a name with a comma": ({"y,z": ["a", "b"] * 20}, "y,z", "binary", ("a", "b"), ()),
}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_the_task_follows_from_the_target(name: str) -> None:
    cells, target, task, classes, targets = TASKS[name]
    found = ask(write({"x": numbers()} | cells), target)
    assert (found.spec.task, found.spec.classes, found.spec.targets) == (task, classes, targets)
    y = load(found).y
    assert (y.dtype, y.ndim) == ((np.int64, 1) if task in ("binary", "multiclass") else (np.float32, 2))
    if task == "regression":
        np.testing.assert_allclose(y[:, 0], np.array(cells["y"], np.float32))


def test_the_task_that_is_asked_for_is_taken_where_it_can_be() -> None:
    path = write({"x": numbers(), "y": [1, 2, 3, 4] * 10})
    assert ask(path).spec.task == "multiclass" and "y has 4 whole numbers, which are taken as classes" in told(ask(path))
    assert ask(path, task="regression").spec.task == "regression"
    many = write({"x": numbers(80), "y": [k % 30 for k in range(80)]}, "m.csv")
    assert len(ask(many, task="multiclass").spec.classes) == 30
    two = write({"x": numbers(), "y": [0, 1] * 20, "z": [0, 1, 1, 1] * 10}, "z.csv")
    assert ask(two, "y,z", task="regression").spec.targets == ("y", "z")


def test_own_splits_are_taken_and_their_column_is_no_feature() -> None:
    cells = {"x": numbers(), "part": (["train"] * 6 + ["Valid", "test ", "validation", "val"]) * 4, "y": labels()}
    found = ask(write(cells), split_column="part")
    split = load(found).split
    assert [c.name for c in found.spec.columns] == ["x"] and found.has_val_set and found.has_test_set and split is not None
    assert np.unique(split, return_counts=True)[1].tolist() == [4, 24, 12]
    cells["part"] = ["train", "test"] * 20
    found = ask(write(cells), split_column="part")
    assert found.has_test_set and not found.has_val_set


def test_groups_are_numbered_and_equal_rows_join_theirs() -> None:
    cells = {"x": numbers(), "who": [f"patient {k // 4}" for k in range(40)], "y": labels()}
    found = ask(write(cells), group_column="who")
    groups = load(found).groups
    assert [c.name for c in found.spec.columns] == ["x"] and groups is not None and groups.dtype == np.int64
    assert len(np.unique(groups)) == 10 and all(len({*groups[k : k + 4]}) == 1 for k in range(0, 40, 4))
    cells["x"][0] = cells["x"][39]  # the first patient's first row equals the last one's last
    groups = load(ask(write(cells), group_column="who")).groups
    assert groups is not None and len(np.unique(groups)) == 9 and groups[1] == groups[38]


def test_equal_rows_share_a_group_unless_most_rows_are_equal() -> None:
    cells = mixed()
    for values in cells.values():
        values[30] = values[7]
    cells["size"][31], cells["size"][32] = 0.0, -0.0
    for name in ("city", "built", "new"):
        cells[name][31] = cells[name][32] = None
    groups = load(ask(write(cells))).groups
    assert groups is not None and len(np.unique(groups)) == 38 and groups[30] == groups[7] and groups[31] == groups[32]
    assert "2 of 40 rows have the same features as another" in told(ask(write(cells)))
    found = ask(write({"x": [1, 2] * 20, "y": labels()}))
    assert load(found).groups is None and "equal rows may lie in different splits" in told(found)


def test_equal_rows_across_own_splits_are_counted() -> None:
    cells = {"x": [*numbers(38), 7.5, 7.5], "part": ["train"] * 39 + ["test"], "y": labels()}
    assert "1 rows of val and test equal a row of train" in told(ask(write(cells), split_column="part"))


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([2**40 + k for k in range(40)], "x holds whole numbers up to 1099511627815, beyond the 2^24 that float32 holds. They "
         "are centred and scaled in float64 first; they then still differ from each other."),
        ([*range(39), 2**50], "38 of 40 different values then become equal to others"),
        ([2**60 + 100 * k for k in range(40)], "beyond 2^53, where float64 has only every second number"),
        (list(range(100, 140)), "x numbers the rows, and is kept"),
        (["1.5"] * 20 + ["2"] * 18 + ["none"] * 2,
         "x is read as text, though 38 of its 40 values are numbers, for 2 are not ('none')."),
        ([f"{k // 2}a" for k in range(160)],
         "x has 80 categories: the 64 most frequent (80% of the rows) have a place of their own, "
         "the other 16 share one."),
        (["12:30:00", "12:31:00"] * 20, "x: times are read as seconds."),
        (["a", "b", "NA", "null"] * 10, "'NA', 'null' is a category of x"),
    ],
)  # fmt: skip
def test_what_a_column_holds_is_told(values: list[Any], sentence: str) -> None:
    found = ask(write({"x": values, "z": numbers(len(values)), "y": labels(len(values))}))
    assert sentence in told(found) and [c.name for c in found.spec.columns] == ["x", "z"]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([3] * 40, "x is left out: the same value in all rows."),
        (["only"] * 40, "x is left out: the same value in all rows."),
        ([None] * 40, "x is left out: no value in any row."),
        ([2**60 + k for k in range(40)], "x holds whole numbers about 1152921504606846976, which float64 cannot tell apart"),
        ([f"id {k}" for k in range(40)], "x is left out: text that is different in each row"),
    ],
)
def test_a_column_that_tells_nothing_is_left_out_and_named(values: list[Any], sentence: str) -> None:
    found = ask(write({"x": values, "z": numbers(), "y": labels()}))
    assert sentence in told(found) and [c.name for c in found.spec.columns] == ["z"]


def test_a_value_or_nothing_is_no_constant() -> None:
    found = ask(write({"x": [3, None] * 20, "t": ["a", "a", None, None] * 10, "z": numbers(), "y": labels()}))
    assert [c.name for c in found.spec.columns] == ["x", "t", "z"]


@pytest.mark.parametrize("copy", ["equal", "scaled", "monotone", "renamed"])
def test_a_copy_of_the_target_is_told_and_kept(copy: str) -> None:
    y: list[Any] = [round(1 + abs(v), 6) for v in numbers()]
    other = {"equal": y, "scaled": [v * -100 for v in y], "monotone": [float(np.log(v)) for v in y]}.get(copy)
    if other is None:
        y = ["a", "b", "b", "c"] * 10
        other = [{"a": "three", "b": "one", "c": "two"}[v] for v in y]
    found = ask(write({"x": other, "z": numbers(seed=4), "k": [*range(7, 47)], "y": y}))
    assert "ATTENTION: x gives y away, one to one." in told(found) and told(found).count("ATTENTION") == 1
    assert [c.name for c in found.spec.columns] == ["x", "z", "k"]


def test_an_index_that_pandas_wrote_is_left_out() -> None:
    for path in (write({"": [*range(40)], "x": numbers(), "y": labels()}),
                 write({"__index_level_0__": [*range(40)], "x": numbers(), "y": labels()}, "t.parquet")):  # fmt: skip
        found = ask(path)
        assert [c.name for c in found.spec.columns] == ["x"] and "The column without a name is left out" in told(found)


def test_a_target_that_float32_cannot_tell_apart_is_told() -> None:
    found = ask(write({"x": numbers(), "y": [1.7e9 + k / 100 for k in range(40)]}))
    assert "y is learnt as float32, in which 39 of 40 different values become equal to others" in told(found)


def test_a_class_without_a_training_row_is_told() -> None:
    cells = {"x": numbers(), "part": ["train"] * 30 + ["test"] * 10, "y": ["a", "b"] * 15 + ["c"] * 10}
    assert "No training row is of c" in told(ask(write(cells), split_column="part"))


def test_a_type_that_changes_after_the_first_block_is_that_of_the_whole_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_file, "_BLOCK", 1 << 12)
    n = 10_000
    for last, kind in (("x", "category"), ("1.5", "number"), ("NA", "number")):
        Path("t.csv").write_text("a,y\n" + "01,0\n2,1\n" * n + f"{last},1\n")
        found = ask(Path("t.csv"))
        raw = load(found).raw
        assert found.spec.columns[0].kind == kind and raw is not None
        assert raw["a"][0] == ("01" if kind == "category" else 1.0) and len(raw["a"]) == 2 * n + 1


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_end_of_a_line_within_quotes_is_kept_where_a_block_ends_too(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_file, "_BLOCK", 64)
    monkeypatch.setattr(table_file, "_CHUNK", 50)
    values = [f"{k}{end}{'x' * (k % 7)}{end}" for k in range(300)]
    content = "t,y\n" + "".join(f'"{value}",1\n' for value in values)
    Path("t.csv").write_bytes(content.encode())
    assert table_file.read(Path("t.csv")).column("t").to_pylist() == values


def test_rows_that_differ_by_their_number_alone_are_equal_rows() -> None:
    found = ask(write({"id": [*range(100, 140)], "x": [*numbers(38), 7.5, 7.5], "y": labels()}))
    groups = load(found).groups
    assert "id numbers the rows" in told(found) and groups is not None and groups[38] == groups[39]


def test_whole_numbers_with_gaps_do_not_number_the_rows() -> None:
    assert "numbers the rows" not in told(ask(write({"x": [*range(0, 80, 2)], "y": labels()})))


def test_a_character_that_a_chunk_has_cut_is_no_other_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_file, "_CHUNK", 7)
    Path("t.csv").write_bytes(b"x,y\n" + "東é🚂,a\n".encode() * 50 + b"\xe9,b\n")
    with pytest.raises(UserError, match=r"byte 604 \(0xe9\) in line 52 is none"):
        ask(Path("t.csv"))


def test_quotes_in_the_midst_of_values_do_not_hide_a_line_that_ends_within_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_file, "_BLOCK", 64)
    row = '5" x,"a\nb",6" y\n'  # an even number of quotes before each end of a line
    Path("t.csv").write_text("r,t,y\n" + row * 100)
    assert table_file.read(Path("t.csv")).to_pylist() == [{"r": '5" x', "t": "a\nb", "y": '6" y'}] * 100


def test_a_table_to_be_asked_is_read_by_the_columns_of_training_whatever_its_values_look_like() -> None:
    columns = [Column(name="zip", kind="category"), Column(name="x", kind="number"), Column(name="d", kind="date")]
    Path("t.csv").write_text("x,zip,d,more\n,01234,,1\n,1.0,,2\n")
    table = table_file.read(Path("t.csv"), text=["zip"], flag="input")
    raw = raw_columns(table, columns)
    assert raw["zip"].tolist() == ["01234", "1.0"] and np.isnan(raw["x"]).all() and np.isnan(raw["d"]).all()


def text(content: str | bytes, name: str = "t.csv") -> Callable[[], Path]:
    """Return what makes a file of these bytes."""

    def make() -> Path:
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
        return Path(name)

    return make


def cells(name: str = "t.csv", **columns: Any) -> Callable[[], Path]:
    return lambda: write({"x": numbers(), "y": labels()} | columns, name)


def arrow(kind: str) -> Callable[[], Path]:
    values: Any = {
        "list": [[1, 2], [3]] * 20, "struct": [{"a": 1}, {"a": 2}] * 20, "binary": [b"a", b"b"] * 20,
        "map": pa.array([[("a", 1)], []] * 20, pa.map_(pa.string(), pa.int64())),
    }[kind]  # fmt: skip
    return cells("t.parquet", z=values)


def cut(share: float, name: str) -> Callable[[], Path]:
    def make() -> Path:
        path = write(mixed(), name)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])
        return path

    return make


def astray() -> Path:
    offsets = pa.py_buffer(np.array([0, 5, 2, 3], np.int32).tobytes())
    wrong = pa.Array.from_buffers(pa.string(), 3, [None, offsets, pa.py_buffer(b"abc")])
    feather.write_feather(pa.table({"x": wrong, "y": ["a", "b", "a"]}), "t.feather", compression="uncompressed")
    return Path("t.feather")


def damaged() -> Path:
    path = write({"x": numbers(4000), "y": labels(4000)}, "t.parquet")
    content = bytearray(path.read_bytes())
    content[4:2000] = b"\xff" * 1996
    path.write_bytes(content)
    return path


def wide(n: int, name: str = "t.csv") -> Callable[[], Path]:
    def make() -> Path:
        if name.endswith(".csv"):
            Path(name).write_text(",".join(["y", *map(str, range(n))]) + "\n" + ("1," * n + "2\n") * 3)
        else:
            pq.write_table(pa.table({str(k): [1, 2] for k in range(n)}), name)
        return Path(name)

    return make


def rows_of(n: int) -> Callable[[], Path]:
    return text(",".join(map(str, range(n))) + "\n" + "\n".join(",".join([str(k / 2)] * n) for k in range(5)))


def folder() -> Path:
    Path("t.csv").mkdir()
    return Path("t.csv")


OPEN_QUOTE = 'x,y\n1,"a\n' + "2,b\n" * 30
CROSSED_QUOTES = 'x,y\n1,"a\n' + "2,b\n" * 30 + '3,"b"\n4,a"\n5,"a"b\n'
CROSSED_ROW = 'x,y\n1,"a\n' + "2,b\n" * 30 + '3,"c",d\n4,b\n'
FAR_QUOTE = 'x,y\n1,"a\n' + "2,b\n" * 30 + '3",d\n4,b\n'
SPLIT = {"part": ["train"] * 20 + ["test"] * 20}
HOSTILE: dict[str, tuple[Callable[[], Path], dict[str, Any], str]] = {
    "no such file": (lambda: Path("none.csv"), {}, "dataset=none.csv cannot be read (No such file or directory)."),
    "a folder": (folder, {}, "dataset=t.csv is not a file."),
    "an empty file": (text(""), {}, "dataset=t.csv is empty."),
    "empty lines": (text("\n\n\n"), {}, "dataset=t.csv has no names in its first row."),
    "a header only": (text("x,y\n"), {}, "dataset=t.csv has 2 columns and no row."),
    "no row in Parquet": (cells("t.parquet", x=[], y=[]), {}, "dataset=t.parquet has 2 columns and no row."),
    "a picture": (text(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"), {},
     "dataset=t.csv is no text in UTF-8: it is in UTF-16, or no table"),
    "UTF-16": (text("x,y\n1,a\n".encode("utf-16")), {}, "is no text in UTF-8: it is in UTF-16"),
    "UTF-16 without its mark": (text("x,y\n1,a\n".encode("utf-16-le")), {}, "is no text in UTF-8: it is in UTF-16"),
    "latin-1": (text("x,y\n1,a\n2,é\n".encode("latin-1")), {},
     "is not in UTF-8: byte 10 (0xe9) in line 3 is none. Save it as UTF-8"),
    "latin-1 in a name": (text("x,é\n1,a\n".encode("latin-1")), {}, "is not in UTF-8: byte 2 (0xe9) in line 1 is none."),
    "latin-1 far down": (text(b"x,y\n" + b"1,a\n" * 3_000_000 + b"2,\xe9\n"), {},
     "byte 12000006 (0xe9) in line 3000002 is none."),
    "semicolons": (text("x;y\n1;a\n"), {}, "has one column only, whose name holds ';'. Separate columns by commas"),
    "tabs in a .csv": (text("x\ty\n1\ta\n"), {}, r"has one column only, whose name holds '\t'."),
    "a short row": (text("x,y\n1,a\n\n2\n3,b\n4\n"), {},
     "has 2 columns and 2 rows of another length: line 4 is the first, with 1."),
    "a long row": (text("x,y\n1,a\n2,b,c\n"), {}, "has 2 columns and 1 row of another length: line 3 is the first, with 3."),
    "an open quote": (text(OPEN_QUOTE), {}, "line 2 opens a quote that is never closed."),
    "crossed quotes": (text(CROSSED_QUOTES), {}, "line 2 opens a quote that is closed in the midst of a value, in line 33."),
    "a quote that makes a row too long": (text(CROSSED_ROW), {},
                                          "line 2 opens a quote that is closed in the midst of a value, in line 33"),
    "a quote closed far below": (text(FAR_QUOTE), {}, "line 2 opens a quote that is closed only in line 33."),
    "Feather that points beyond its text": (astray, {}, "dataset=t.feather is not a whole Arrow or Feather file"),
    "equal names": (text("x,y,x\n1,a,2\n"), {}, "has several columns named x."),
    "100 000 columns": (wide(100_000), {}, "has 100001 columns, and a table may have 2000"),
    "20 000 columns in Parquet": (wide(20_000, "t.parquet"), {}, "has 20000 columns, and a table may have 2000"),
    "Parquet cut off": (cut(0.6, "t.parquet"), {}, "dataset=t.parquet is not a whole Parquet file"),
    "Feather cut off": (cut(0.6, "t.feather"), {}, "dataset=t.feather is not a whole Arrow or Feather file"),
    "Parquet with damaged pages": (damaged, {}, "dataset=t.parquet is not a whole Parquet file"),
    "text called Parquet": (text("x,y\n1,a\n", "t.parquet"), {}, "dataset=t.parquet is not a whole Parquet file"),
    "text called Arrow": (text("x,y\n1,a\n", "t.arrow"), {}, "dataset=t.arrow is not a whole Arrow or Feather file"),
    "lists": (arrow("list"), {},
     "has columns that are neither numbers, text nor dates: z (list<element: int64>). Leave them out: "
              "--ignore_columns z"),
    "structs": (arrow("struct"), {}, "neither numbers, text nor dates: z (struct<a: int64>)."),
    "bytes": (arrow("binary"), {}, "neither numbers, text nor dates: z (binary)."),
    "maps": (arrow("map"), {}, "neither numbers, text nor dates: z (map<string, int64"),
    "no target named": (cells(label=labels()), {"target": ""},
     "target: dataset=t.csv is a table. Say which column is to be learnt, "
                        "--target NAME. Is it y? It has: x, y, label."),
    "a target that is not there": (cells(price=numbers()), {"target": "prize"},
     "target=prize: dataset=t.csv has no column prize. Did "
                                   "you mean price?"),
    "a target of another case": (cells(), {"target": "Y"}, "has no column Y. Did you mean y?"),
    "a target twice": (cells(), {"target": "y,y"}, "target=y,y names y twice."),
    "a target that is ignored": (cells(), {"ignore_columns": "y"}, "ignore_columns=y: y is the target too."),
    "a column to ignore that is not there": (cells(), {"ignore_columns": "x,zz"},
     "ignore_columns=x,zz: dataset=t.csv has no column zz"),
    "a target missing here and there": (cells(y=["a", "b", None, "a"] * 10), {},
     "target=y is missing in 10 of 40 rows, first in row 3."),
    "a number missing as target": (cells(y=[0.5, None] * 20), {}, "target=y is missing in 20 of 40 rows, first in row 2."),
    "an infinite target": (cells(y=[0.5, "inf"] * 20), {}, "target=y: the column y holds an infinite number in row 2."),
    "a target beyond float32": (cells(y=[0.5, 1e300] * 20), {}, "target=y is 1e+300 in row 2, beyond what float32 holds."),
    "one class": (cells(y=["a"] * 40), {}, "target=y is 'a' in all 40 rows: there is nothing to learn."),
    "one value": (cells(y=[0.5] * 40), {}, "target=y is '0.5' in all 40 rows"),
    "a target of free text": (cells(y=[f"text {k}" for k in range(40)]), {},
     "target=y has 40 different values in 40 rows, which are "
                              "no classes. Choose another target."),
    "a target of prices as text": (cells(y=[f"$1,{k}" for k in range(100, 140)]), {},
     "They look like numbers: write them without units"),
    "text among targets": (cells(), {"target": "x,y"}, "target=x,y: y is text. Several targets are numbers"),
    "constant targets": (cells(y=[1] * 40, z=[0] * 40), {"target": "y,z"}, "target=y,z: each has the same value in all rows"),
    "regression of text": (cells(), {"task": "regression"},
     "task=regression: target=y is text ('no', 'yes'), and regression needs numbers."),
    "binary of three": (cells(y=["a", "b", "c", "a"] * 10), {"task": "binary"},
     "task=binary: target=y has 3 classes, and binary is of two."),
    "multilabel of one": (cells(), {"task": "multilabel"}, "task=multilabel: target=y is one column"),
    "multilabel of numbers": (cells(y=[0, 2] * 20, z=[0, 1] * 20), {"task": "multilabel", "target": "y,z"},
     "y holds other values than 0 and 1"),
    "classes of fractions": (cells(), {"task": "multiclass", "target": "x"}, "task=multiclass: target=x holds fractions"),
    "multiclass of two columns": (cells(), {"task": "multiclass", "target": "x,y"},
     "target=x,y are 2 columns, and multiclass is of one."),
    "an infinite feature": (cells(x=[0.5, "-inf"] * 20), {}, "dataset=t.csv the column x holds an infinite number in row 2."),
    "nothing but the target": (lambda: write({"y": labels()}), {}, "dataset=t.csv has no column to learn from beside y."),
    "nothing but constants": (cells(x=[1] * 40), {},
     "no column to learn from beside y. x is left out: the same value in all rows."),
    "all ignored": (cells(), {"ignore_columns": "x"}, "no column to learn from beside y."),
    "a split of another name": (cells(part=["train", "dev"] * 20), {"split_column": "part"},
     "split_column=part is 'dev' in row 2."),
    "a split that is missing": (cells(part=["train", None] * 20), {"split_column": "part"},
     "split_column=part is empty in row 2."),
    "no training split": (cells(part=["test", "val"] * 20), {"split_column": "part"}, "split_column=part has no row of train."),
    "a split that is not there": (cells(), {"split_column": "part"}, "split_column=part: dataset=t.csv has no column part."),
    "a group that is missing": (cells(g=["a", None] * 20), {"group_column": "g"},
     "group_column=g is empty in 20 rows, first in row 2."),
    "one group": (cells(g=["a"] * 40), {"group_column": "g"}, "group_column=g has one group only"),
    "a group in two splits": (cells(g=[*range(10)] * 4, **SPLIT), {"group_column": "g", "split_column": "part"},
                              "group_column=g: 10 groups lie in several splits of --split_column, first 0."),
    "the group as target": (cells(), {"group_column": "y"}, "group_column=y: y is the target too."),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_table_is_refused_within_seconds_in_a_sentence_that_begins_with_its_flag(name: str) -> None:
    make, options, sentence = HOSTILE[name]
    path = make()
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        ask(path, **{"target": "y"} | options)
    assert sentence in str(error.value), str(error.value)
    assert time.monotonic() - started < 20
    for message in error.value.messages:
        assert message.partition("=")[0].partition(":")[0] in ("dataset", "task", *DataOptions.__dataclass_fields__), message
        assert message.endswith((".", "?", "--ignore_columns z")) and len(message) < 600


HANDLED: dict[str, tuple[Callable[[], Path], dict[str, Any], list[str], int]] = {
    "a byte order mark": (text("\ufeffx,y\n1,a\n2,b\n3,a\n"), {}, ["x"], 3),
    "lines that end in CR LF": (text("x,y\r\n1,a\r\n2,b\r\n3,a\r\n"), {}, ["x"], 3),
    "no end of line at the end": (text("x,y\n1,a\n2,b"), {}, ["x"], 2),
    "a line within quotes": (text('t,y\n"a\nb",1\n"a\nb",0\nc,1\n'), {}, ["t"], 3),
    "quotes within quotes": (text('t,y\n"say ""no""",1\n"say ""no""",0\nc,1\n'), {}, ["t"], 3),
    "an inch that is no quote": (text('t,y\n5" disk,1\n5" disk,0\nc,1\n'), {}, ["t"], 3),
    "empty lines between": (text("x,y\n\n1,a\n\n2,b\n\n"), {}, ["x"], 2),
    "names with everything": (text('"a,b","c ""d""",größe,y\n1,2,3,a\n2,3,4,b\n4,9,7,b\n'), {}, ["a,b", 'c "d"', "größe"], 3),
    "names like outputs": (text("logits,input,y\n1,2,a\n2,3,b\n5,9,a\n"), {}, ["logits", "input"], 3),
    "all that is called missing": (text("x,y\n1,a\nNA,b\nNaN,a\nnull,b\n,a\nN/A,b\n"), {}, ["x"], 6),
    "a column of lists that is ignored": (arrow("list"), {"ignore_columns": "z"}, ["x"], 40),
    "a dictionary": (cells("t.parquet", z=pa.array(["a", "b"] * 20).dictionary_encode()), {}, ["x", "z"], 40),
    "decimals": (cells("t.parquet", z=pa.array([*range(40)]).cast(pa.decimal128(30, 2))), {}, ["x", "z"], 40),
    "an Arrow stream": (lambda: stream(), {}, ["x"], 40),
    "a name with a dot in Parquet": (cells("t.parquet", **{"a.b": numbers(seed=1), "a": numbers()}), {"ignore_columns": "a"},
                                     ["x", "a.b"], 40),
    "a target of pandas' categories": (cells("t.parquet", y=pa.array(labels()).dictionary_encode()), {}, ["x"], 40),
    "one row of each class": (text("x,y\n1,a\n2,b\n"), {}, ["x"], 2),
    "2 000 columns": (rows_of(2000), {"target": "0"}, [*map(str, range(1, 2000))], 5),
}  # fmt: skip


def stream() -> Path:
    table = pa.table({"x": numbers(), "y": labels()})
    with pa.OSFile("t.arrow", "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return Path("t.arrow")


@pytest.mark.parametrize("name", HANDLED)
def test_an_odd_table_is_read_as_documented(name: str) -> None:
    make, options, columns, num_rows = HANDLED[name]
    found = ask(make(), **{"target": "y"} | options)
    assert [c.name for c in found.spec.columns] == columns and found.num_train == num_rows == len(load(found).y)
