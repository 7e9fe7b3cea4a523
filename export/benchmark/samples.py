"""What is asked: samples that the model was tested on, or, where the data is not here, random ones of the same kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.spec import Column, DataSpec

Array = NDArray[Any]


@dataclass(frozen=True)
class Inputs:
    """The same samples as a matrix x (N, *input_shape) and, of a table, as raw columns (N,) by the names of an ONNX file's
    inputs. `what` says what they are.
    """

    x: Array
    what: str
    columns: Mapping[str, Array] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        np.save(folder / "samples.npy", self.x)
        if self.columns:
            plain: dict[str, Any] = {
                str(k): a.astype(str) if a.dtype == object else a for k, a in enumerate(self.columns.values())
            }
            np.savez(folder / "columns.npz", **plain)


def prepared(data: Path, spec: DataSpec, *, count: int) -> Inputs:
    """Return the first `count` samples on which a model is evaluated, from a prepared folder."""
    from pipeline.data.loader import evaluation_split, open_split
    from pipeline.data.prepare import read_raw

    name = evaluation_split(data)
    x = open_split(data, name).x[:count].numpy()
    raw = read_raw(data) if spec.columns else {}
    return Inputs(x, f"{len(x)} {name} samples", {c.input_name: raw[c.name][:count] for c in spec.columns})


def random(spec: DataSpec, *, count: int) -> Inputs:
    """Return `count` samples of random values in the ranges of the training data."""
    source = np.random.default_rng(0)
    shape = (count, *spec.sample_shape)
    low, high = spec.value_range or (0, 255)
    x = source.integers(low, high + 1, shape) if spec.dtype == "uint8" else source.normal(size=shape)
    columns = {column.input_name: _column(column, source, count) for column in spec.columns}
    return Inputs(x.astype(spec.dtype), f"{count} random samples", columns)


def _column(column: Column, source: np.random.Generator, count: int) -> Array:
    if column.is_category:
        return source.choice(np.array(column.categories or ("",), object), count)
    return np.asarray(column.center + column.scale * source.normal(size=count), np.float64)
