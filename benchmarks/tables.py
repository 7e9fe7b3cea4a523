"""Rows 17 and 18: a table of a million rows, from its file to tensors and batches. `python -m benchmarks.tables`

30 columns (24 numbers, 8 of them with missing values; 4 of text; a date; a boolean) and a target of 0 and 1, generated, as CSV
and as Parquet. Row 17 is the processor's time, of all threads, in a fresh process for each side, with its imports done and the
file in memory. The other side is pyarrow's own read of the whole file with its default threads, and nothing more: no check, no
split, no encoding. Ours is told twice. "to the spec" is what finds out the columns, the target, the groups of equal rows and
what ought to be told of them. "to tensors" is that, the split, the statistics, and the encoded float32 matrix on the disk with
its SHA-256, a thing of another size: the row says how many bytes it has, and how long the clock ran, the disk included.

Row 18 is a pass over the training rows in batches of 256, ours from these tensors, the other side
DataLoader(TensorDataset(x, y), batch_size=256, shuffle=True) in plain form, over the same numbers in memory; nothing is done
with a batch. `--rows 20000` tries it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Row, pairs, row, run

ROWS, BATCH = 1_000_000, 256
KINDS = ("csv", "parquet")
_CATEGORIES = (3, 12, 50, 300)


def _write(folder: Path, count: int) -> None:
    """Write the table as t.csv and t.parquet."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    source = np.random.default_rng(0)
    columns: dict[str, Any] = {}
    for k in range(24):
        values = source.normal(10 * k, 1 + k, count).round(4) if k % 4 else source.integers(0, 1000 * (k + 1), count)
        columns[f"number{k}"] = pa.array(values, mask=source.random(count) < 0.05 if k % 3 == 0 else None)
    for k, number in enumerate(_CATEGORIES):
        names = np.array([f"c{k}_{place:03}" for place in range(number)], object)
        places = np.minimum(source.exponential(number / 4, count).astype(int), number - 1)
        columns[f"text{k}"] = pa.array(names[places], mask=source.random(count) < 0.03 if k % 2 else None)
    columns["day"] = pa.array(source.integers(10_000, 20_000, count).astype("datetime64[D]"))
    columns["flag"] = pa.array(source.random(count) < 0.3)
    columns["y"] = pa.array((source.random(count) < 0.5).astype(int))
    csv.write_csv(pa.table(columns), folder / "t.csv")
    parquet.write_table(pa.table(columns), folder / "t.parquet")


def _config(path: Path, cache: Path) -> Any:
    from pipeline.resolve import resolve

    return resolve({"model": "mlp", "dataset": str(path), "target": "y", "cache_dir": str(cache)})


def _ours(path: Path) -> list[float]:
    """Return the processor's seconds to the spec and to tensors, those of the clock, and the bytes of the tensors."""
    from sklearn import model_selection  # noqa: F401 - imported before the clocks start, as all else

    from pipeline import data
    from pipeline.data import image_table, prepare, table  # noqa: F401

    _imports()
    with tempfile.TemporaryDirectory(dir=path.parent) as cache:
        start, cpu = time.perf_counter(), time.process_time()
        config = _config(path, Path(cache))
        data.source_of(config)
        spec = time.process_time() - cpu
        folder = prepare.prepare(config)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        return [spec, cpu, seconds, sum(file.stat().st_size for file in folder.glob("*.npy"))]


def _theirs(path: Path) -> list[float]:
    """Return the processor's seconds of pyarrow's own read, and those of the clock."""
    csv, parquet = _imports()
    start, cpu = time.perf_counter(), time.process_time()
    table = csv.read_csv(path) if path.suffix == ".csv" else parquet.read_table(path)
    cpu = time.process_time() - cpu
    assert table.num_columns == 31
    return [cpu, time.perf_counter() - start]


def _imports() -> Any:
    import pyarrow.compute
    import pyarrow.dataset  # noqa: F401
    from pyarrow import csv, feather, parquet  # noqa: F401

    return csv, parquet


def _process(side: str, path: Path) -> list[float]:
    words = [sys.executable, "-m", "benchmarks.tables", side, str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=1800)
    return [float(word) for word in done.stdout.splitlines()[-1].split()]


def _ready(path: Path, count: int) -> list[Row]:
    ours: list[list[float]] = []
    theirs: list[list[float]] = []

    def side(name: str, seen: list[list[float]]) -> float:
        seen.append(_process(name, path))
        return seen[-1][0]

    seen = pairs(lambda: side("ours", ours), lambda: side("theirs", theirs), count)
    whole = [(mine[1], their) for mine, (_, their) in zip(ours[1:], seen, strict=True)]
    clock = [statistics.median(values) for values in ([each[2] for each in ours[1:]], [each[1] for each in theirs[1:]])]
    size = f"{ours[-1][3] / 1e6:.0f} MB of tensors from {path.stat().st_size / 1e6:.0f}"
    kind, unit = path.suffix[1:], "s of the processor"
    return [
        row(17, f"{kind} to the spec, and pyarrow's read", unit, seen, lambda a, b: a / b, at_most=2),
        row(
            17, f"{kind} to tensors, and pyarrow's read", unit, whole, lambda a, b: a / b, at_most=2,
            note=f"{size}; by the clock {clock[0]:.1f} s, and {clock[1]:.1f}",
        ),
    ]  # fmt: skip


def _pass(batches: Iterable[Any], count: int) -> float:
    """Return batches a second of going through all of them."""
    start, number, seen = time.perf_counter(), 0, 0
    for x, _ in batches:
        number, seen = number + 1, seen + len(x)
    assert seen == count
    return number / (time.perf_counter() - start)


def _loading(path: Path, count: int) -> Row:
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    from pipeline.data.loader import Batches, open_split
    from pipeline.data.prepare import prepare

    split = open_split(prepare(_config(path, path.parent / "cache")), "train")
    batches = Batches(split, batch_size=BATCH, grad_accum_steps=1, seed=0, rank=0, world_size=1, device=torch.device("cpu"))
    loader = DataLoader(TensorDataset(split.x.clone(), split.y.clone()), batch_size=BATCH, shuffle=True)
    seen = pairs(
        lambda: _pass((part for parts in batches.epoch(0) for part in parts), len(split)),
        lambda: _pass(loader, len(split)),
        count,
    )
    what = f"batches of {BATCH} x {split.x.shape[1]}, and TensorDataset with DataLoader"
    return row(18, what, "batches/s", seen, lambda a, b: a / b, at_least=10)


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=ROWS)


def measure(given: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory() as base:
        _write(Path(base), given.rows)
        paths = [Path(base) / f"t.{kind}" for kind in KINDS]
        return [row for path in paths for row in _ready(path, given.pairs)] + [_loading(paths[1], given.pairs)]


if __name__ == "__main__":
    if sys.argv[1:2] in (["ours"], ["theirs"]):
        print(*(_ours if sys.argv[1] == "ours" else _theirs)(Path(sys.argv[2])))
    else:
        run(measure, __doc__, flags=_flags)
