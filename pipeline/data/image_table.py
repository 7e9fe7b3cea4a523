"""A Parquet file with a column of images, as Hugging Face's datasets write it: each image is a file's bytes in a row.

The bytes are held in memory, compressed as they are, while the file is prepared; the pixels never are. Equal bytes never lie in
two splits, as in a folder. Names of classes come from the file's own description of its features, where it has one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.images import BadImage, decode_into, header
from pipeline.data.spec import IMAGE_RANGE, DataOptions, DataSpec, Placed, Samples, Source
from pipeline.errors import UserError
from pipeline.task import TASKS, of_classes

Array = NDArray[Any]

_NAMED = 20  # bad rows that are named one by one


class _Rows:
    """The images of a column, as `spec.Images` has it."""

    def __init__(self, column: Any, rows: Sequence[int], shape: tuple[int, int, int], about: str) -> None:
        self.column, self.rows, self.about = column, rows, about
        self.shape = (len(rows), *shape)

    @property
    def names(self) -> list[str]:
        return [str(row) for row in self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def fill(self, out: Placed, rows: Array) -> None:
        if bad := self._decode(rows, out):
            raise UserError(_bad(self.about, list(bad.values())))

    def unreadable(self) -> dict[int, str]:
        """Return the rows whose pixels cannot be decoded, with what is wrong with each, by decoding all."""
        return self._decode(np.arange(len(self)))

    def _decode(self, rows: Array, out: Placed | None = None) -> dict[int, str]:
        bad: dict[int, str] = {}

        def one(place: int) -> None:
            row, pixels = self.rows[int(rows[place])], np.empty(self.shape[1:], np.uint8)
            try:
                decode_into(pixels, self.column[row].as_py())
            except BadImage as error:
                bad[row] = f"row {row} {error}"
                return
            if out is not None:
                out[place] = pixels

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(one, range(len(rows))))
        return dict(sorted(bad.items()))


def column_of(path: Path) -> str:
    """Return the name of the column of images in a Parquet file; empty where it has none, or is no Parquet file."""
    import pyarrow as pa
    from pyarrow import parquet

    if path.suffix.lower() != ".parquet":
        return ""
    try:
        schema = parquet.read_schema(path)
    except (OSError, pa.ArrowException):  # told by whoever reads it
        return ""
    found = image_columns(schema)
    return found[0] if len(found) == 1 else ""


def image_columns(schema: Any) -> list[str]:
    """Return the names of the columns that hold files' bytes: of a table of images, exactly one."""
    return [field.name for field in schema if _is_image(field.type)]


def _is_image(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        if sorted(kind.field(k).name for k in range(kind.num_fields)) not in (["bytes"], ["bytes", "path"]):
            return False
        kind = kind.field("bytes").type
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _names_classes(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def contents(path: Path, rows: Sequence[int] | None = None) -> list[bytes]:
    """Return the images of some rows, or of all, as the bytes of a file each."""
    column = _bytes(path, column_of(path))
    return [column[row].as_py() for row in (range(len(column)) if rows is None else rows)]


def _bytes(path: Path, name: str) -> Any:
    from pyarrow import parquet

    return bytes_of(parquet.read_table(path, columns=[name])[name].combine_chunks())


def bytes_of(column: Any) -> Any:
    """Return the files' bytes of a column of images, or of a part of one; null where there is no image."""
    import pyarrow as pa
    from pyarrow import compute

    return compute.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


def source(path: Path, options: DataOptions) -> Source:
    """Return the data set in a Parquet file with one column of images. Raises UserError."""
    import pyarrow as pa
    from pyarrow import parquet

    name = column_of(path)
    try:
        schema = parquet.read_schema(path)
        target = _target(path, [n for n in schema.names if n != name], options)
        images, labels = _bytes(path, name), parquet.read_table(path, columns=[target])[target]
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"dataset={path} cannot be read ({str(error).splitlines()[0]}). Give another file.") from error
    if labels.null_count or images.null_count:
        raise UserError(f"dataset={path} has {labels.null_count + images.null_count} rows without image or label. Remove them.")
    texts_or_numbers = labels.to_numpy(zero_copy_only=False) if _names_classes(labels.type) else np.empty(0)
    values, y = np.unique(texts_or_numbers, return_inverse=True)
    if len(values) < 2:
        raise UserError(
            f"target={target} of dataset={path} is of type {labels.type} with {len(values)} classes, and two or more are "
            "wanted, as whole numbers or text. Give another --target."
        )
    classes = _classes(schema, target, values)
    headers, bad = _headers(images)
    if bad and not options.skip_bad:
        raise UserError(_bad(str(path), list(bad.values())))
    rows = [row for row, found in enumerate(headers) if found]
    _refuse_empty(path, classes, y[rows])
    channels = 1 if all(found.is_grey for found in headers if found) else 3
    sizes = Counter(found[:2] for found in headers if found)
    side = options.image_size or _common_side(path, sizes)

    def load(data_dir: Path, seed: int) -> Samples:
        found = _Rows(images, rows, (channels, side, side), str(path))
        skipped = bad | found.unreadable() if options.skip_bad else bad
        kept = [row for row in rows if row not in skipped]
        _refuse_empty(path, classes, y[kept])
        return Samples(
            _Rows(images, kept, (channels, side, side), str(path)), y[kept].astype(np.int64), groups=_groups(images, kept),
            skipped=tuple(f"row {row}" for row in sorted(skipped)),
        )  # fmt: skip

    task = options.task or of_classes(len(classes))
    if not TASKS[task].takes_classes(len(classes)):
        raise UserError(f"task={task} does not fit dataset={path}, which has {len(classes)} classes. Leave --task out.")
    spec = DataSpec(
        name=path.stem, task=task, sample_shape=(channels, side, side), dtype="uint8", value_range=IMAGE_RANGE,
        classes=classes, any_size=True,
    )  # fmt: skip
    return Source(
        summary=f"{len(rows):,} images of {len(classes)} classes", spec=spec, num_train=len(rows),
        load=load, files=lambda data_dir: [path], has_target=True,
        notes=(
            f"images of column {name}, classes of column {target}, read as {'grey' if channels == 1 else 'RGB'}",
            *([f"{len(bad)} rows left out that cannot be read (skip_bad=true)"] if bad else []),
        ),
    )  # fmt: skip


def _target(path: Path, others: list[str], options: DataOptions) -> str:
    if options.target in others:
        return options.target
    usual = [n for n in others if n.lower() in ("label", "labels", "class", "target", "fine_label")]
    if not options.target and (len(usual) == 1 or len(others) == 1):
        return (usual or others)[0]
    if not others:
        raise UserError(f"dataset={path} has a column of images and no other, and so no label. Add one with the classes.")
    if options.target:
        raise UserError(f"target={options.target} is not a column of dataset={path}. It has: {', '.join(others)}.")
    raise UserError(f"target: dataset={path} does not say which column has the classes. Give --target: {', '.join(others)}.")


def _classes(schema: Any, target: str, values: Array) -> tuple[str, ...]:
    """Return the names of the classes: those that the file gives to whole numbers, or the values themselves."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        names = features[target]["names"]
        if values.dtype.kind in "iu" and values[0] >= 0 and values[-1] < len(names):
            return tuple(str(names[value]) for value in values)
    except (KeyError, TypeError, ValueError):
        pass
    return tuple(str(value) for value in values)


def _refuse_empty(path: Path, classes: Sequence[str], y: Array) -> None:
    """Raise UserError for classes of which no image can be read."""
    if empty := [name for k, name in enumerate(classes) if k not in y]:
        raise UserError(f"dataset={path} has no image that can be read of {', '.join(empty[:_NAMED])}. Mend or add some.")


def _headers(images: Any) -> tuple[list[Any], dict[int, str]]:
    def one(row: int) -> Any:
        try:
            return header(images[row].as_py())
        except BadImage as error:
            return f"row {row} {error}"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(one, range(len(images))))
    bad = {row: each for row, each in enumerate(found) if isinstance(each, str)}
    return [None if row in bad else each for row, each in enumerate(found)], bad


def _common_side(path: Path, sizes: Counter[tuple[int, int]]) -> int:
    (width, height), _ = sizes.most_common(1)[0]
    if len(sizes) > 1 or width != height:
        raise UserError(
            f"dataset={path} has images of {len(sizes)} sizes, for one {width}x{height}, and a network takes squares of one. "
            "Say to which they are to be resized, such as --image_size 128."
        )
    return width


def _groups(images: Any, rows: Sequence[int]) -> Array | None:
    """Return the same number for equal bytes; None where all are different."""
    _, numbers = np.unique(
        np.array([int.from_bytes(hashlib.sha256(images[row].as_py()).digest()[:7], "big") for row in rows]), return_inverse=True
    )
    return numbers.astype(np.int64) if len(np.unique(numbers)) < len(rows) else None


def _bad(about: str, bad: Sequence[str]) -> str:
    more = f"; and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    return (
        f"dataset={about} has {len(bad)} images that cannot be read: {'; '.join(bad[:_NAMED])}{more}. Remove them, or leave "
        "them out: --skip_bad true."
    )
