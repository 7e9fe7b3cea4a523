"""Tables for a model: CSV, TSV, Parquet, Feather and Arrow, a block at a time.

A CSV is read as text throughout, so that one bad cell is one failed row, and no type is guessed from the first rows. What
counts as missing in a column of numbers, booleans or dates is what pyarrow takes for it; in text only the empty field does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from export.serve.model import Array, Model
from pipeline.data.columns import Column, raw_columns
from pipeline.errors import UserError
from pipeline.values import shown

if TYPE_CHECKING:
    import pyarrow as pa

ENDINGS = (".csv", ".tsv", ".parquet", ".feather", ".arrow")
_ROWS = 8192
_NAMED = 10  # columns that a sentence names
_IN_ROW = re.compile(r" in row \d+")  # a block's own count


class Unreadable(ValueError):
    """A file that cannot be read, from here on. Its text is what follows the file's name in a sentence."""


def check(path: Path, model: Model) -> str:
    """Return what is to be told of the columns of a table. Raises UserError where the model cannot use them.

    What cannot be read is not told yet: it is a failed input.
    """
    from pipeline.data.image_table import image_columns

    what = f"input={shown(str(path))}"
    try:
        schema = _schema(path)
    except Unreadable:
        return ""
    names = schema.names
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{what} has several columns named {listed(repeated)}. Give each column a name of its own.")
    wanted = [column.name for column in model.columns]
    missing = [name for name in wanted if name not in names]
    if (missing or not wanted) and (pictures := image_columns(schema)):
        raise UserError(
            f"{what} is a table of images (column {listed(pictures)}), and this model takes none. Give a table of what it was "
            "trained on, or a model of images: --onnx FILE."
        )
    if not model.columns:
        if len(names) != model.input_shape[0]:
            raise UserError(
                f"{what} has {len(names)} columns, and the model takes {model.input_shape[0]} numbers in their order. Give a "
                "table of these alone."
            )
        return ""
    if missing:
        raise UserError(*(missing_column(what, name, [n for n in names if n not in wanted]) for name in missing[:_NAMED]))
    others = [name for name in names if name not in wanted]
    return f"{what}: {len(others)} columns that the model does not take are passed over ({listed(others)})" if others else ""


def missing_column(what: str, name: str, others: Sequence[str]) -> str:
    """Return what to tell of a column that is not there, where those of the names `others` are not wanted."""
    by_letters = {other.lower().strip(): other for other in others}
    near = get_close_matches(name.lower().strip(), by_letters, n=1)
    hint = (
        f" Is it {shown(by_letters[near[0]])}? Then rename that."
        if near
        else " Add it; values that are not known may be empty."
    )
    return f"{what} has no column {shown(name)}, which the model takes.{hint}"


def listed(names: Sequence[str]) -> str:
    """Return the first names for a sentence, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(shown(name) for name in names[:_NAMED]) + more


def blocks(path: Path, model: Model, fail: Callable[[int, str], None]) -> Iterator[tuple[Array, list[Array]]]:
    """Yield the numbers of some rows, from 0, and the model's inputs for these. Raises Unreadable where the file ends early."""
    wanted = model.columns or tuple(Column(name=name, kind="number") for name in _schema(path).names)
    first = 0
    for table in _tables(path, [column.name for column in wanted]):
        table = _without_missing(table, wanted) if _is_text(path) else table
        rows, raw = _good_rows(table, wanted, first, fail)
        if len(rows):
            inputs = [raw[column.name][:, None] for column in wanted]
            yield rows + first, inputs if model.columns else [np.concatenate(inputs, axis=1).astype(model.dtype)]
        first += table.num_rows


def _good_rows(
    table: pa.Table, columns: Sequence[Column], first: int, fail: Callable[[int, str], None]
) -> tuple[Array, dict[str, Array]]:
    """Return the rows that hold what each column's kind can be, and their raw values (N,); the others fail."""
    try:
        return np.arange(table.num_rows), raw_columns(table, columns)
    except UserError:
        bad: dict[int, str] = {}
        for column in columns:
            bad = _bad_rows(table.select([column.name]), column, 0) | bad
    for row, reason in sorted(bad.items()):
        fail(first + row, reason)
    rows = np.setdiff1d(np.arange(table.num_rows), np.array(list(bad), np.int64))
    return rows, raw_columns(table.take(rows), columns) if len(rows) else {}


def _bad_rows(table: pa.Table, column: Column, first: int) -> dict[int, str]:
    """Return why each bad row of a table of one column is one, found by halves."""
    try:
        raw_columns(table, [column])
    except UserError as error:
        if table.num_rows > 1:
            half = table.num_rows // 2
            later = _bad_rows(table.slice(half), column, first + half)
            return _bad_rows(table.slice(0, half), column, first) | later
        sentence = _IN_ROW.sub("", error.messages[0]).removeprefix("input:").partition(". ")[0]
        return {first: f"cannot be used: {shown(sentence.strip().rstrip('.'))}"}
    return {}


def _is_text(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".tsv")


def _schema(path: Path) -> pa.Schema:
    """Return the names and types of a file's columns. Raises Unreadable."""
    schema, _, close = _open(path)
    close()
    return schema


def _tables(path: Path, names: Sequence[str]) -> Iterator[pa.Table]:
    """Yield a file's rows, some at a time, with these columns alone. Raises Unreadable."""
    import pyarrow as pa

    _, batches, close = _open(path)
    try:
        with reading("cannot be read further"):
            for batch in batches():
                table = pa.Table.from_batches([batch]).select(list(names))
                for start in range(0, table.num_rows, _ROWS):
                    yield table.slice(start, _ROWS)
    finally:
        close()


def _open(path: Path) -> tuple[pa.Schema, Callable[[], Iterator[pa.RecordBatch]], Callable[[], None]]:
    """Return the columns of a file, a function that yields its rows, and one that closes it. Raises Unreadable."""
    if path.suffix.lower() == ".parquet":
        file, schema = parquet_file(path)
        return schema, lambda: file.iter_batches(_ROWS), file.close
    with _opening(path):
        if _is_text(path):
            reader = _open_csv(path)
            return reader.schema, lambda: iter(reader), reader.close
        table = _arrow_table(path)
        return table.schema, lambda: iter(table.to_batches()), lambda: None


def parquet_file(path: Path, *, buffer_size: int = 0) -> tuple[Any, pa.Schema]:
    """Return an open file, and its columns. With a `buffer_size` in bytes a row group is read in parts. Raises Unreadable.

    Without `pre_buffer`, which is on otherwise: it reads the whole file before the first rows are given.
    """
    with _opening(path):
        from pyarrow.parquet import ParquetFile

        file = ParquetFile(path, buffer_size=buffer_size, pre_buffer=False)
        return file, file.schema_arrow


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    with reading(f"is no whole {path.suffix[1:].lower()} file"):
        if not path.is_file():
            raise Unreadable("is no regular file")
        if not path.stat().st_size:
            raise Unreadable("is empty")
        yield


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Make what pyarrow raises in the block an Unreadable: `what`, and pyarrow's reason."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Unreadable(f"{what} ({_short(error)})") from error


def _arrow_table(path: Path) -> pa.Table:
    """Return what an Arrow or Feather file holds, without reading it: it is mapped into memory."""
    import pyarrow as pa

    with path.open("rb") as file:
        start = file.read(6)
    if start.startswith((b"ARROW1", b"FEA1")):
        from pyarrow import feather

        return feather.read_table(path, memory_map=True)
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
        return stream.read_all()


def _open_csv(path: Path) -> Any:
    """Return a reader of a CSV, all of whose columns are text; names are made up where the first row has numbers alone."""
    from pyarrow import csv

    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","

    def opened(names: Sequence[str], is_headless: bool) -> Any:
        return csv.open_csv(
            path,
            read_options=csv.ReadOptions(autogenerate_column_names=is_headless),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types=dict.fromkeys(names, "string")),
        )

    with opened((), False) as reader:
        names = reader.schema.names
    is_headless = all(_is_number(name) for name in names)
    return opened([f"f{k}" for k in range(len(names))] if is_headless else names, is_headless)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _without_missing(table: pa.Table, columns: Sequence[Column]) -> pa.Table:
    """Return a table of texts with null where a number, boolean or date is missing."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv

    marks = pa.array(csv.ConvertOptions().null_values, pa.string())
    for column in columns:
        if column.kind != "category":
            place = table.column_names.index(column.name)
            trimmed = pc.utf8_trim_whitespace(table.column(place))
            table = table.set_column(place, column.name, pc.if_else(pc.is_in(trimmed, marks), None, trimmed))
    return table


def _short(error: BaseException) -> str:
    return shown((str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(". "))
