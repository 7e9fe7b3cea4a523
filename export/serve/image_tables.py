"""Parquet files whose rows hold images, as training takes them too: read a few rows at a time, however many there are.

Which column has the images is training's rule. What bounds the memory is the largest page of the file, which Parquet does not
let anybody read in parts; whoever writes a file may lay up to some 1000 images into one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from export.serve import tables
from pipeline.errors import UserError
from pipeline.values import shown

_ROWS = 16  # that are in memory as bytes, beside those that are being decoded
_BUFFER = 1 << 20  # bytes of a file that are read at a time


def check(path: Path) -> None:
    """Raise UserError for a Parquet file without a column of images, or with several.

    What cannot be read is not told yet: it is a failed input.
    """
    what = f"input={shown(str(path))}"
    try:
        found = _columns(path)
    except tables.Unreadable:
        return
    if not found:
        raise UserError(
            f"{what} has no column of images (bytes, or a struct of bytes and path), and this model takes images. Give a file "
            "that has one."
        )
    if len(found) > 1:
        raise UserError(f"{what} has {len(found)} columns of images ({tables.listed(found)}). Give a file that has one.")


def may_be(path: Path) -> bool:
    """Return whether a Parquet file has one column of images, or cannot be read, which is to be told."""
    try:
        return len(_columns(path)) == 1
    except tables.Unreadable:
        return True


def contents(path: Path) -> Iterator[bytes | None]:
    """Yield the bytes of each row's image, or None where it has none. Raises Unreadable where the file ends early."""
    from pipeline.data.image_table import bytes_of, image_columns

    file, schema = tables.parquet_file(path, buffer_size=_BUFFER)
    try:
        (name,) = image_columns(schema)
        with tables.reading("cannot be read further"):
            for group in range(file.num_row_groups):  # each alone, so that a damaged one takes no rows before it along
                for batch in file.iter_batches(_ROWS, row_groups=[group], columns=[name]):
                    yield from bytes_of(batch.column(name)).to_pylist()
    finally:
        file.close()


def _columns(path: Path) -> list[str]:
    from pipeline.data.image_table import image_columns

    file, schema = tables.parquet_file(path)
    file.close()
    return image_columns(schema)
