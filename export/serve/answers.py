"""Answers as a reader wants them: the columns of an output file, written block by block, and a table for the terminal.

`input`, `prediction`, `probability`, `p_<class>`, ...; several labels have no single probability, a regression has none.
Numbers are written with as many digits as tell a float32 from its neighbors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from export.serve.model import Answers, Array, Model
from pipeline.files import atomic
from pipeline.values import shown

ENDINGS = (".csv", ".jsonl", ".parquet")
_BLOCK = 1 << 18  # values that are kept before a block is written
_WIDEST = 60  # letters of a name on the terminal

Write = Callable[["Block"], None]


class Block(NamedTuple):
    """Answered samples, in the order of the input: `names` is a path or the number of a row."""

    names: list[str]
    answers: Answers


def columns(model: Model, block: Block) -> dict[str, Sequence[str] | Array]:
    """Return the columns of an output file: texts, or float32 (N,)."""
    values, decided = block.answers.values, block.answers.decided
    found: dict[str, Sequence[str] | Array] = {"input": block.names}
    if decided is None:
        targets = model.names if len(model.names) > 1 else [str(k) for k in range(values.shape[1])]
        several = values.shape[1] > 1
        return found | {f"prediction_{t}" if several else "prediction": values[:, k] for k, t in enumerate(targets)}
    found["prediction"] = predictions(model, block)
    if decided.ndim == 1:
        found["probability"] = values[np.arange(len(values)), decided]
    return found | {f"p_{name}": values[:, k] for k, name in enumerate(model.names)}


def predictions(model: Model, block: Block) -> list[str]:
    """Return the name of the class of each sample, or the names of its labels with `;` between them."""
    decided = block.answers.decided
    assert decided is not None
    if decided.ndim == 1:
        return [model.names[k] for k in decided.tolist()]
    return [";".join(name for name, k in zip(model.names, row, strict=True) if k) for row in decided.tolist()]


def top(model: Model, block: Block, count: int) -> list[list[tuple[str, np.float32]]]:
    """Return the most probable classes or labels of each sample, the first first."""
    best = np.argsort(-block.answers.values, axis=1, kind="stable")[:, :count]
    pairs = zip(best.tolist(), block.answers.values, strict=True)
    return [[(model.names[k], values[k]) for k in row] for row, values in pairs]


@contextmanager
def writer(path: Path, model: Model, *, count: int) -> Iterator[Write]:
    """Yield what writes blocks into a file that appears when all is written; its ending says how. JSONL has the top `count`."""
    with atomic(path) as temporary:
        kind = path.suffix.lower()
        with _lines(temporary, model, count) if kind == ".jsonl" else _arrow(temporary, model, kind) as write:
            yield write


@contextmanager
def _lines(path: Path, model: Model, count: int) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:

        def write(block: Block) -> None:
            found = {_text(name): _json(values) for name, values in columns(model, block).items()}
            if block.answers.decided is not None:
                found['"top"'] = [_listed(row) for row in top(model, block, count)]
            for values in zip(*found.values(), strict=True):
                file.write(f"{{{', '.join(f'{name}: {value}' for name, value in zip(found, values, strict=True))}}}\n")

        yield write


def _listed(row: list[tuple[str, np.float32]]) -> str:
    pairs = [f'{{"class": {_text(name)}, "probability": {probability!s}}}' for name, probability in row]
    return f"[{', '.join(pairs)}]"


def _json(values: Sequence[str] | Array) -> list[str]:
    return [str(value) for value in values] if isinstance(values, np.ndarray) else [_text(value) for value in values]


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


@contextmanager
def _arrow(path: Path, model: Model, kind: str) -> Iterator[Write]:
    """Write CSV or Parquet with pyarrow, several blocks at a time: each is a row group of a Parquet file."""
    import pyarrow as pa

    kept: list[Any] = []
    opened: list[Any] = []

    def write(block: Block) -> None:
        found = columns(model, block)
        arrays = [pa.array(v, pa.float32() if isinstance(v, np.ndarray) else pa.string()) for v in found.values()]
        kept.append(pa.Table.from_arrays(arrays, names=list(found)))
        if sum(table.num_rows for table in kept) * kept[0].num_columns >= _BLOCK:
            flush()

    def flush() -> None:
        if not opened:
            opened.append(_arrow_writer(sink, kept[0].schema, kind))
        opened[0].write_table(pa.concat_tables(kept))
        kept.clear()

    with pa.OSFile(str(path), "wb") as sink:
        try:
            yield write
            if kept:
                flush()
        finally:
            for each in opened:
                each.close()


def _arrow_writer(sink: Any, schema: Any, kind: str) -> Any:
    if kind == ".csv":
        from pyarrow.csv import CSVWriter, WriteOptions

        sink.write((",".join(_cell(name) for name in schema.names) + "\n").encode())  # pyarrow would quote each
        return CSVWriter(sink, schema, write_options=WriteOptions(include_header=False))
    from pyarrow.parquet import ParquetWriter

    return ParquetWriter(sink, schema)


def _cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(mark in text for mark in ',"\r\n') else text


def shown_one(model: Model, block: Block, count: int) -> str:
    """Return what a terminal shows of a single sample: its answer, and the most probable classes."""
    if block.answers.decided is None:
        return shown_table(model, block)
    rows = [(_short(name), f"{probability:.4f}") for name, probability in top(model, block, count)[0]]
    lines = [f"  {line}" for line in _aligned(rows)]
    return "\n".join([f"{_short(block.names[0])}: {_short(predictions(model, block)[0]) or '(no label)'}", *lines])


def shown_table(model: Model, block: Block) -> str:
    """Return what a terminal shows of several samples: a line for each, without the probabilities of all classes."""
    found = {name: v for name, v in columns(model, block).items() if not name.startswith("p_")}
    texts = [
        [f"{v:.4f}" if block.answers.decided is not None else f"{v:.6g}" for v in values]
        if isinstance(values, np.ndarray) else [_short(v) for v in values]
        for values in found.values()
    ]  # fmt: skip
    return "\n".join(_aligned([[_short(name) for name in found], *(list(row) for row in zip(*texts, strict=True))]))


def _short(text: str) -> str:
    text = shown(text)
    return text if len(text) <= _WIDEST else f"...{text[-_WIDEST + 3 :]}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
