"""Tables that are odd, and are read as documented, or hostile, and get a sentence."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from pipeline.data.spec import DataOptions
from pipeline.errors import UserError
from tests.pipeline.data.tables import ask, labels, load, mixed, numbers, write


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
