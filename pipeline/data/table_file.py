"""From a CSV, TSV, Parquet, Feather or Arrow file to a pyarrow Table, or a sentence that says why there is none.

The surprise: pyarrow takes a quote that is not closed for the start of a long value, and the rest of the file for its end; so
quotes are looked at here before it is believed.
"""

from __future__ import annotations

import csv
import mmap
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".csv", ".tsv", ".parquet", ".feather", ".arrow")
MAX_COLUMNS = 2_000  # onnxruntime takes 5 s to load as many categories, and a time that grows faster than their number
_BLOCK = 1 << 20  # bytes of CSV that are read together, so that they stay in the cache of a core
_LONG_BLOCK = 1 << 23  # where a row is longer than that
_LARGEST = 2**31 - 1  # bytes of CSV that pyarrow can take as one block
_CHUNK = 1 << 18  # bytes of it that are looked at together, likewise


def read(path: Path, *, text: Collection[str] = (), skip: Collection[str] = (), flag: str = "dataset") -> pa.Table:
    """Return a file's table. The columns `text` of a CSV are text, whatever they hold; the columns `skip` are left out.

    In a CSV's columns of numbers, booleans and dates, what pyarrow takes for missing is missing ("", NA, N/A, NaN, null and
    their like); in its text only the empty field is. Raises UserError that begins `flag=path`.
    """
    what = f"{flag}={path}"
    found = names(path, flag=flag)
    kept = [name for name in found if name not in skip]
    try:
        table = _read_csv(path, found, kept, text, what) if _is_text(path) else _read_binary(path, kept, what)
    except OSError as error:
        raise UserError(f"{what} cannot be read ({_short(error)}). Give a file that can be.") from error
    if not table.num_rows:
        raise UserError(f"{what} has {table.num_columns} columns and no row. Give a table with a row for each sample.")
    return table


def _short(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(". ")


def listed(names: Collection[str], most: int = 5) -> str:
    """Return names for a sentence, and how many there are beyond `most`."""
    shown = ", ".join([*names][:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def names(path: Path, *, flag: str = "dataset") -> list[str]:
    """Return the names of a table's columns without reading it. Raises UserError as `read` does."""
    what = f"{flag}={path}"
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{what} does not end in one of {', '.join(SUFFIXES)}. Give a table.")
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise UserError(f"{what} is not a file. Give a table.")
        if not size:
            raise UserError(f"{what} is empty. Give a table with a row of names and a row for each sample.")
        found = _header(path, what) if _is_text(path) else _schema(path, what)
    except OSError as error:
        raise UserError(f"{what} cannot be read ({_short(error)}). Give a file that can be.") from error
    if len(found) > MAX_COLUMNS:
        raise UserError(
            f"{what} has {len(found)} columns, and a table may have {MAX_COLUMNS}, as each is an input of its own in the "
            "exported file. Give fewer, or give them as one array (.npz)."
        )
    if repeated := [name for name, count in Counter(found).items() if count > 1 and name]:
        raise UserError(f"{what} has several columns named {listed(repeated)}. Give each column a name of its own.")
    return found


def _is_text(path: Path) -> bool:
    return path.suffix.lower() in (".csv", ".tsv")


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _schema(path: Path, what: str) -> list[str]:
    return _opened(path, what, lambda parquet: parquet.schema_arrow.names, lambda arrow: arrow.schema.names)


def _read_binary(path: Path, kept: list[str], what: str) -> pa.Table:
    def whole(table: pa.Table) -> pa.Table:
        table.validate(full=True)  # what is damaged may point anywhere
        return table.select(kept)

    return _opened(
        path, what, lambda parquet: whole(parquet.read(columns=kept)), lambda arrow: whole(arrow.read_all()), texts=True
    )


def _opened(
    path: Path, what: str, of_parquet: Callable[[Any], Any], of_arrow: Callable[[Any], Any], *, texts: bool = False
) -> Any:
    """Return what is asked of an open Parquet or Arrow file. Raises UserError where it is not whole.

    With `texts`, Parquet's columns of text come as dictionaries, as they lie in the file: each text is made once only.
    """
    import pyarrow as pa

    is_parquet = path.suffix.lower() == ".parquet"
    try:
        if is_parquet:
            import pyarrow.parquet as pq

            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
                names = [field.name for field in schema if pa.types.is_string(field.type)] if texts else []
            with pq.ParquetFile(path, read_dictionary=names or None, pre_buffer=True) as file:
                return of_parquet(file)
        with path.open("rb") as start:
            is_file = start.read(6) == b"ARROW1"  # else a stream
        with pa.OSFile(str(path)) as content, (pa.ipc.open_file if is_file else pa.ipc.open_stream)(content) as reader:
            return of_arrow(reader)
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        raise UserError(
            f"{what} is not a whole {'Parquet' if is_parquet else 'Arrow or Feather'} file ({_short(error)}). It may be cut "
            "off, or be something else: write it anew."
        ) from error


def _read_csv(path: Path, found: list[str], kept: list[str], text: Collection[str], what: str) -> pa.Table:
    import pyarrow as pa

    delimiter = _delimiter(path)
    num_quotes, has_long, has_return = _quotes(path)

    size = path.stat().st_size
    # pyarrow drops a line feed that begins a block after a carriage return, in a value too
    block = size + 1 if has_return and size < _LARGEST else _BLOCK

    def attempt(has_long: bool, block: int) -> pa.Table:
        from pyarrow import csv as arrow_csv

        types = {name: pa.string() for name in text}
        return arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(block_size=block),
            parse_options=arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=has_long),
            convert_options=arrow_csv.ConvertOptions(
                column_types=types, include_columns=kept if len(kept) < len(found) else None
            ),
        )

    def fitting(has_long: bool) -> pa.Table:
        try:
            return attempt(has_long, block)
        except pa.ArrowInvalid as error:
            if "straddling" not in str(error) or block >= _LONG_BLOCK:
                raise
            return attempt(has_long, _LONG_BLOCK)  # a row is longer than a block

    try:
        try:
            table = fitting(has_long)
        except pa.ArrowInvalid:
            if has_long or not num_quotes:
                raise
            table = fitting(True)  # quotes in the midst of values have hidden those around the end of a line
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        _refuse_other_encoding(path, what)
        _refuse_broken_quotes(path, delimiter, what, far=20)
        _refuse_ragged(path, delimiter, len(found), what)
        raise UserError(f"{what} is not a table ({_short(error)}). Mend it.") from error
    if any(pa.types.is_binary(kind) for kind in table.schema.types):
        _refuse_other_encoding(path, what)
    if num_quotes % 2 or has_long:  # pyarrow takes a quote that is not closed for the start of a long value
        _refuse_broken_quotes(path, delimiter, what)
    return table


def _quotes(path: Path) -> tuple[int, bool, bool]:
    """Return the number of quotes, whether a line may end within quotes, and whether one does so by a carriage return."""
    num_quotes, has_long, has_return = 0, False, False
    chunk = bytearray(_CHUNK)
    content = np.frombuffer(chunk, np.uint8)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(chunk):
            if not num_quotes and chunk.find(b'"', 0, size) < 0:
                continue
            quotes = np.flatnonzero(content[:size] == ord('"'))
            for end in "\n\r" if chunk.find(b"\r", 0, size) >= 0 else "\n":
                ends = np.flatnonzero(content[:size] == ord(end))
                before = num_quotes + np.searchsorted(quotes, ends)  # quotes before each end
                is_inside = bool((before % 2).any())
                has_long, has_return = has_long or is_inside, has_return or (is_inside and end == "\r")
            num_quotes += len(quotes)
    return num_quotes, has_long, has_return


def _header(path: Path, what: str) -> list[str]:
    """Return the names in the first row that is not empty. Raises UserError where the file is no text in UTF-8."""
    with path.open("rb") as file:
        start = file.read(1 << 16)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in start:
        raise UserError(f"{what} is no text in UTF-8: it is in UTF-16, or no table at all. Save it as UTF-8.")
    csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            found = next((row for row in csv.reader(lines, delimiter=_delimiter(path)) if row), [])
    except UnicodeDecodeError:
        _refuse_other_encoding(path, what)
        raise
    except csv.Error as error:
        raise UserError(f"{what} is not a table ({error}). Mend its first row.") from error
    if not found:
        raise UserError(f"{what} has no names in its first row. Give a table with a row of names and a row for each sample.")
    if len(found) == 1 and (mark := next((mark for mark in ";\t|," if mark in found[0]), "")):
        raise UserError(
            f"{what} has one column only, whose name holds {mark!r}. Separate columns by commas (.csv) or by tabs (.tsv)."
        )
    return found


def _refuse_other_encoding(path: Path, what: str) -> None:
    """Raise UserError that names the first byte that is not UTF-8, if there is one."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = 0
        while start < len(content):
            chunk = content[start : start + _CHUNK]
            try:
                chunk.decode()
            except UnicodeDecodeError as error:
                if error.end == len(chunk) and start + len(chunk) < len(content) and len(chunk) - error.start < 4:
                    start += error.start  # a character that the chunk has cut
                    continue
                at = start + error.start
                line = content[:at].count(b"\n") + 1
                raise UserError(
                    f"{what} is not in UTF-8: byte {at} (0x{content[at]:02x}) in line {line} is none. Save it as UTF-8; "
                    "it may be in latin-1 or cp1252."
                ) from None
            start += len(chunk)


def _refuse_broken_quotes(path: Path, delimiter: str, what: str, *, far: int = 0) -> None:
    """Raise UserError that names the line where a quote is opened and never closed, or closed in the midst of another value.

    With `far`, a value of so many lines counts as one, too: the file is known to be broken.
    """
    before = 0
    with path.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            for _ in rows:
                if far and rows.line_num - before > far:
                    raise csv.Error(f"closed only in line {rows.line_num}")
                before = rows.line_num
        except csv.Error as error:
            how = "never closed" if "end of data" in str(error) else str(error)
            if "expected after" in how:
                how = f"closed in the midst of a value, in line {rows.line_num}"
            raise UserError(
                f"{what}: line {before + 1} opens a quote that is {how}. Close it where its value ends; a quote within a "
                "value is written twice."
            ) from error


def _refuse_ragged(path: Path, delimiter: str, num_columns: int, what: str) -> None:
    """Raise UserError that names the first row of another length, if there is one."""
    first, number, before = None, 0, 0
    with path.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines, delimiter=delimiter)
        for row in rows:
            if row and len(row) != num_columns:
                first = first or (before + 1, len(row))
                number += 1
            before = rows.line_num
    if first:
        raise UserError(
            f"{what} has {num_columns} columns and {number} {'row' if number == 1 else 'rows'} of another length: line "
            f"{first[0]} is the first, with {first[1]}. Mend it; a value that holds the separator stands in quotes."
        )
