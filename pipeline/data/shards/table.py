"""One shard: an Arrow IPC file of one record batch, whose columns have one width, so that they are arrays as they lie there.

`x` is a fixed-size list of uint8 or float32, `y` int64 or a fixed-size list of float32, `row` the sample's number in the data
set. The same rows give the same bytes on every machine.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Array = NDArray[Any]


def to_bytes(x: Array, y: Array, rows: NDArray[np.int64]) -> bytes:
    """Return the file of samples x (N, *shape), targets y (N,) or (N, T), and their row numbers (N,)."""
    columns = [_column(x), _column(y), pa.array(rows)]
    schema = pa.schema(
        [pa.field(name, column.type, nullable=False) for name, column in zip(("x", "y", "row"), columns, strict=True)],
        metadata={"sample_shape": json.dumps(x.shape[1:])},
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    return bytes(sink.getvalue())


def _column(values: Array) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, math.prod(values.shape[1:]))


def open_x(path: Path, shape: tuple[int, ...]) -> Array:
    """Return the samples (N, *shape) of a shard, memory-mapped: pages are read when they are used. Raises OSError, ValueError.

    Nobody writes to it; it may be written to, as torch wants it, and the file stays as it is.
    """
    with pa.memory_map(str(path)) as source:
        begin = source.read_buffer(1).address
        source.seek(0)
        x = pa.ipc.open_file(source).get_batch(0).column("x").flatten()
        offset, dtype = x.buffers()[1].address - begin, x.type.to_pandas_dtype()
    return np.memmap(path, dtype, "c", offset, shape=(len(x) // math.prod(shape), *shape))
