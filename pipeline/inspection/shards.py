"""Shards under `inspect`: what their index says, all targets, and the samples of the first one."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import data
from pipeline.data.prepare import RAW, read_raw
from pipeline.data.spec import DataOptions, Samples, Source
from pipeline.inspection.arrays import draw_images
from pipeline.inspection.columns import SHOWN, described, draw, part
from pipeline.inspection.costs import size
from pipeline.inspection.report import Found, Part

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[Any]


def of_shards(name: str, options: DataOptions) -> Found:
    """Return what shards have to say. Raises UserError where they cannot be had, Failure where one is not whole."""
    source = data.find(name, options)
    shards, spec = source.shards, source.spec
    assert shards
    splits: dict[str, Any] = shards.index["splits"]
    with tempfile.TemporaryDirectory() as there:  # what is fetched from a bucket is not kept
        folder = Path(there)
        y = {split: np.load(shards.fetch(parts["y"], folder / parts["y"]["file"])) for split, parts in splits.items()}
        raw: dict[str, Array] = {}
        if "raw" in shards.index:
            shards.fetch(shards.index["raw"], folder / RAW)
            raw = read_raw(folder)
        first = np.array(next(shards.arrays(folder, "train", spec.sample_shape)))
    entries = [entry for parts in splits.values() for entry in parts["x"]]
    num_bytes = [sum(int(entry["bytes"]) for entry in parts["x"]) for parts in splits.values()]
    lengths = [int(entry["num_samples"]) for entry in splits["train"]["x"]]
    targets = np.concatenate([*y.values()])
    samples = Samples(
        x=_Unread((len(targets), *spec.sample_shape)), y=targets, split=np.repeat([*y], [len(each) for each in y.values()])
    )
    facts = [
        ("samples", f"{len(samples.y):,} of {' x '.join(map(str, spec.sample_shape))} {spec.dtype}, prepared"),
        ("shards", f"{len(entries):,} of {size(sum(num_bytes))} in all; those of train have {_range(lengths)} samples"),
        ("left out", f"{len(shards.index['skipped']):,} files that could not be read" if shards.index["skipped"] else "none"),
    ]
    shown = Samples(x=first, y=y["train"][: len(first)])
    found = Found(
        kind="shards", facts=facts, source=source, samples=samples, side=spec.sample_shape[-1] if spec.is_image else 0
    )
    if spec.is_image:
        found.draw = partial(_draw_images, source, shown)
        return found
    if raw:
        evaluated = "test" if "test" in y else "train"
        values, shown, of = raw, Samples(x=first, y=y[evaluated]), f"{len(y[evaluated]):,} samples of {evaluated}"
    else:
        values = {f"feature {k}": first[:, k].astype(np.float64) for k in range(min(first.shape[1], SHOWN))}
        of = f"the {len(first):,} samples of the first shard"
    kinds = {column.name: column.kind for column in spec.columns}
    rows = [described(n, v, kinds.get(n, "number"), "", len(shown.y)) for n, v in [*values.items()][:SHOWN]]
    table = part("columns" if raw else "features", rows, len(values) if raw else spec.sample_shape[0])
    found.parts = [Part(title=f"{table.title}, in {of}", header=table.header, rows=table.rows, numbers=table.numbers)]
    found.draw = partial(_draw, source, shown, values, kinds)
    return found


@dataclass(frozen=True)
class _Unread:
    """Samples that stay in their shards."""

    shape: tuple[int, ...]
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return self.shape[0]

    def fill(self, out: Any, rows: Array) -> None:
        raise NotImplementedError


def _range(lengths: list[int]) -> str:
    return f"{lengths[0]:,}" if min(lengths) == max(lengths) else f"{min(lengths):,} to {max(lengths):,}"


def _draw_images(source: Source, shown: Samples, side: int) -> Figure:
    figure = draw_images(source, shown, side)
    figure.suptitle(f"the {len(shown.y):,} of the first shard, {figure.get_suptitle()}")
    return figure


def _draw(source: Source, shown: Samples, values: dict[str, Array], kinds: dict[str, str], side: int) -> Figure:
    return draw(source, shown, values, (), kinds, side)
