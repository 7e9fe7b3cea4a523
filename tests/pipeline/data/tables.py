"""Tables for tests, and what comes of them."""

from __future__ import annotations

import csv
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq

from pipeline.data.spec import DataOptions, Samples, Source
from pipeline.data.table import source

Cells = dict[str, list[Any]]


def write(cells: Cells, name: str = "t.csv") -> Path:
    """Write columns as a table of the kind that the name's ending says; None is missing."""
    path = Path(name)
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",", lineterminator="\n")
            writer.writerow(cells)
            writer.writerows(["" if v is None else str(v).lower() if isinstance(v, bool) else v for v in row]
                             for row in zip(*cells.values(), strict=True))  # fmt: skip
    else:
        (pq.write_table if path.suffix == ".parquet" else feather.write_feather)(pa.table(cells), str(path))
    return path


def ask(path: Path, target: str = "y", **options: Any) -> Source:
    return source(path, DataOptions(target=target, **options))


def load(found: Source) -> Samples:
    return found.load(data_dir=Path(), seed=0)


def told(found: Source) -> str:
    return "\n".join(found.notes)


def numbers(n: int = 40, seed: int = 0) -> list[float]:
    return np.random.default_rng(seed).normal(size=n).tolist()


def labels(n: int = 40) -> list[str]:
    return [("yes", "no", "no")[k % 3] for k in range(n)]


def mixed(n: int = 40) -> Cells:
    return {
        "size": numbers(n),
        "city": [("Rome", "Zürich", None, "NA")[k % 4] for k in range(n)],
        "built": [str(date(2000, 1, 1) + timedelta(days=k * k)) if k % 5 else None for k in range(n)],
        "new": [bool(k % 2) for k in range(n)],
        "y": labels(n),
    }
