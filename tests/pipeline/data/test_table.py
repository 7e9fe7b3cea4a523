"""Tables as data sets: the task and the notes that follow from what they hold, and a sentence for each way to be broken."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data import table_file
from pipeline.data.columns import Column, fit, raw_columns
from pipeline.data.encoding import encode
from pipeline.data.spec import Texts
from pipeline.errors import UserError
from tests.pipeline.data.tables import Cells, ask, labels, load, mixed, numbers, told, write


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
    assert isinstance(samples.raw["city"], Texts) and samples.raw["city"].array()[:4].tolist() == ["Rome", "Zürich", "", "NA"]
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
        values = raw["a"].array() if isinstance(raw["a"], Texts) else raw["a"]
        assert values[0] == ("01" if kind == "category" else 1.0) and len(values) == 2 * n + 1


@pytest.mark.parametrize("differing", [0, 1, 7, 8, 9, None])
def test_rows_that_differ_in_any_one_column_are_no_duplicates(differing: int | None) -> None:
    """The last columns are looked at only where the first do not tell all rows apart."""
    cells: Cells = {f"x{k}": [(row // 2) * (k + 1) % 61 for row in range(100)] for k in range(10)} | {"y": labels(100)}
    if differing is not None:
        cells[f"x{differing}"] = [0.5 * row for row in range(100)]
    found = ask(write(cells))
    groups = load(found).groups
    if differing is None:
        assert groups is not None and len(np.unique(groups)) == 50 and "50 of 100 rows have the same features" in told(found)
    else:
        assert groups is None and "the same features" not in told(found)


@pytest.mark.parametrize("chunk", [1, 3, 7, 1 << 18])
def test_quotes_are_counted_as_one_by_one_wherever_a_part_of_the_file_ends(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_file, "_CHUNK", chunk)
    generator = np.random.default_rng(0)
    for letters in ('"\n,x', '"\n\rx', '\n\r,x"xxxxxxxxxxxxxxxx', "\n\rx"):
        for size in (1, 5, 40, 400):
            text = "".join(generator.choice([*letters], size))
            Path("t.csv").write_bytes(text.encode())
            within = {letter for k, letter in enumerate(text) if letter in "\n\r" and text[:k].count('"') % 2}
            assert table_file._quotes(Path("t.csv")) == (text.count('"'), bool(within), "\r" in within)


def test_a_row_that_is_longer_than_a_block_is_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_file, "_BLOCK", 64)
    monkeypatch.setattr(table_file, "_LONG_BLOCK", 1 << 12)
    rows = [f"{k},{'long ' * (100 if k == 30 else 1)}" for k in range(40)]
    Path("t.csv").write_text("a,t\n" + "\n".join(rows))
    assert table_file.read(Path("t.csv")).column("t").to_pylist() == [row.partition(",")[2] for row in rows]
    Path("t.csv").write_text("a,t\n" + "\n".join(rows) + "x" * 10_000)
    with pytest.raises(UserError, match=r"is not a table \(straddling"):
        table_file.read(Path("t.csv"))


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
