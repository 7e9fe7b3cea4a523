"""What `inspect` has found as text: rich tables on a terminal, aligned columns anywhere else, with the same words in both.

The surprise: a part whose rows have one cell only is a list, and one without a header has its labels in the first column.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import StringIO
from typing import TYPE_CHECKING

from rich.cells import cell_len

from pipeline.data.spec import Samples, Source
from pipeline.values import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 118  # letters of a line where there is no terminal
_LEAST = 30  # letters of the last column, however wide those before it are
_LONGEST = 40  # letters of any other cell


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows of cells below a title; the columns whose places stand in `numbers` are set flush right."""

    title: str
    rows: Sequence[tuple[str, ...]]
    header: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()


@dataclass(kw_only=True)
class Found:
    """What one kind of data has to say of itself.

    `flags` are those that a training needs beside the ones that were given, `problems` the sentences with which it would
    refuse the data; without `source` and `samples` nothing else can be said. `side` is that of the image in the middle, and
    0 for other data. `draw` gets the side to which images are resized.
    """

    kind: str
    facts: list[tuple[str, str]]
    source: Source | None = None
    samples: Samples | None = None
    parts: list[Part] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    flags: dict[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    side: int = 0
    draw: Callable[[int], Figure] | None = None


def render(parts: Sequence[Part], *, width: int = 0) -> str:
    """Return the parts as text; with a terminal's `width` as tables of it, in its colors."""
    return "\n\n".join(_table(part, width) if width else _plain(part) for part in parts if part.rows)


def _cells(part: Part) -> list[tuple[str, ...]]:
    """Return the header and all rows, each cell printable and on one line."""
    rows = [part.header, *part.rows] if part.header else [*part.rows]
    return [tuple(_cut(cell) if k < len(row) - 1 else _printable(cell) for k, cell in enumerate(row)) for row in rows]


def _cut(text: str) -> str:
    text = shown(text)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _plain(part: Part) -> str:
    rows = _cells(part)
    num_columns = len(rows[0])
    widths = [max(cell_len(row[k]) for row in rows) for k in range(num_columns)]
    start = sum(widths[:-1]) + 2 * (num_columns - 1)
    room = max(_LEAST, _WIDTH - 2 - start)
    lines = []
    for row in rows:
        spaces = [" " * (w - cell_len(cell)) for w, cell in zip(widths, row, strict=True)]
        flush = [s + c if k in part.numbers else c + s for k, (s, c) in enumerate(zip(spaces, row, strict=True))]
        mark = "- " if num_columns == 1 else ""
        first, *rest = textwrap.wrap(row[-1], room, break_long_words=False, break_on_hyphens=False) or [""]
        lines.append("  ".join([*flush[:-1], flush[-1] if num_columns - 1 in part.numbers else mark + first]))
        lines += [" " * (start + len(mark)) + more for more in rest]
    return "\n".join([part.title, *(f"  {line}".rstrip() for line in lines)])


def number(value: float) -> str:
    """Return a number with six digits or so that count, without an exponent where one can do without."""
    if not value or not 1e-4 <= abs(value) < 1e12:
        return f"{value:.4g}"
    text = f"{value:.{max(0, 5 - math.floor(math.log10(abs(value))))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _table(part: Part, width: int) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    rows = _cells(part)
    table = Table(
        title=part.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD if part.header else box.SIMPLE,
        show_header=bool(part.header), pad_edge=False,
    )  # fmt: skip
    for k in range(len(rows[0])):
        is_label = not part.header and len(rows[0]) > 1 and k == 0
        table.add_column(
            part.header[k] if part.header else "", justify="right" if k in part.numbers else "left",
            style="bold" if is_label else None, overflow="fold",
        )  # fmt: skip
    for row in rows[bool(part.header) :]:
        table.add_row(*(Text(cell) for cell in row))
    out = StringIO()
    Console(file=out, force_terminal=True, width=width).print(table)
    return out.getvalue().rstrip()
