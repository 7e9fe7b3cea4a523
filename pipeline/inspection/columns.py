"""Tables and vectors under `inspect`: what each column is, how much of it is missing, and how its values lie.

The surprise: where no target was given, columns are tried as one, those with a usual name first, then the last. It is a guess,
and told as one.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import data
from pipeline.data import table_file
from pipeline.data.columns import Column, dictionary, each, raw_column
from pipeline.data.spec import DataOptions, Samples, Source, Texts
from pipeline.data.table import USUAL_TARGETS, kind_of
from pipeline.errors import UserError
from pipeline.inspection.report import Found, Part, number
from pipeline.task import task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    Array = NDArray[Any]

SHOWN = 40  # columns that are described
_TRIED = 3  # last columns that are tried as a target
_FREQUENT = 3  # categories that are named
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def of_table(name: str, options: DataOptions) -> Found:
    """Return what a table has to say, also where it cannot be learnt from. Raises UserError where it cannot be read."""
    path = Path(name).expanduser()
    names = [name for name in table_file.names(path) if name]
    source, target, problems = _source(name, names, options)
    samples: Samples | None = source.load(Path(), 0) if source else None
    own = (samples.raw or {}) if samples else {}
    raw = {n: v.array() if isinstance(v, Texts) else v for n, v in own.items()}
    ignored = [n for n in names if n in _names(options.ignore_columns)]
    table = table_file.read(path, skip={*raw, *ignored, ""})
    kinds = dict.fromkeys(ignored, "ignored") | {n: kind_of(table.schema.field(n).type) for n in table.column_names}
    values = {**{n: _raw(table.column(n), n, kinds[n]) for n in table.column_names}, **raw}
    kinds |= {column.name: column.kind for column in (source.spec.columns if source else ())}
    num_rows = table.num_rows
    roles = _roles(target, options, kept=raw if source else None)
    lines = each(lambda n: described(n, values.get(n), kinds[n], roles(n), num_rows), names[:SHOWN])
    found = Found(
        kind=f"a table ({path.suffix.lower().removeprefix('.')})", source=source, samples=samples, problems=problems,
        facts=[("rows", f"{num_rows:,}"), ("columns", f"{len(names):,}: {_counted(kinds)}")],
        parts=[part("columns", lines, len(names))],
    )  # fmt: skip
    if source:
        equal = [note for note in source.notes if "rows have the same features" in note]
        found.facts.append(("duplicates", equal[0] if equal else "none, by what is learnt from"))
        found.notes += [note for note in source.notes if note not in equal]
    if not options.target and target:
        found.flags["target"] = target
        found.notes.insert(0, f"ATTENTION: no --target was given, and {target} is a guess. Is it what you want to predict?")
    if samples and source:
        targets = [n for n in names if n in _names(target)]
        drawn = {n: v for n, v in values.items() if v is not None and (n in raw or n in targets)}
        found.draw = partial(draw, source, samples, drawn, targets, kinds)
    return found


def _source(name: str, names: Sequence[str], options: DataOptions) -> tuple[Source | None, str, tuple[str, ...]]:
    """Return the data set, its target, and why it is none, where it is none."""
    if options.target:
        try:
            return data.find(name, options), options.target, ()
        except UserError as error:
            return None, options.target, error.messages
    try:
        data.find(name, options)
    except UserError as error:
        first = error.messages
    if len(first) > 1:  # something else is wrong too
        return None, "", first
    taken = {*_names(options.ignore_columns), options.group_column, options.split_column, ""}
    free = [n for n in names if n not in taken and "," not in n]
    usual = [n for n in free if n.lower() in USUAL_TARGETS]
    why: tuple[str, ...] = ()  # of the first of them
    for guess in usual or reversed(free[-_TRIED:]):
        try:
            return data.find(name, dataclasses.replace(options, target=guess)), guess, ()
        except UserError as error:
            why = why or error.messages
    return None, "", (*first, *why)


def _names(text: str) -> list[str]:
    return [text, *(each.strip() for each in text.split(","))]


def _roles(target: str, options: DataOptions, *, kept: dict[str, Array] | None) -> Callable[[str], str]:
    """Return a function from a column's name to what it is for; `kept` are those that are learnt from, if that is known."""

    def role(name: str) -> str:
        for names, what in ((_names(target), "target"), (_names(options.ignore_columns), "ignored"),
                            ([options.group_column], "groups"), ([options.split_column], "splits")):  # fmt: skip
            if name in names and name:
                return what
        return "left out" if kept is not None and name not in kept else ""

    return role


def _raw(values: Any, name: str, kind: str) -> Array | None:
    """Return a column as (N,) float64 or text; None where it is neither, or holds what it cannot."""
    try:
        return raw_column(values, Column(name=name, kind=kind)) if kind else None
    except UserError:
        return None


def described(name: str, values: Array | None, kind: str, role: str, num_rows: int) -> tuple[str, ...]:
    """Return a row of the table of columns: name, role, kind, missing, distinct and what the values are."""
    if role == "ignored":
        return name, role, "", "", "", ""
    if values is None:
        return name, role, kind or "other", "", "", "cannot be read as numbers, text or dates"
    if values.dtype == object:
        texts, codes = dictionary(values)
        counts = Counter(dict(zip(texts, np.bincount(codes, minlength=len(texts)).tolist(), strict=True)))
        missing, num_distinct = counts.pop("", 0), len(counts)
        top = ", ".join(f"{_short(text)} {n / num_rows:.1%}" for text, n in counts.most_common(_FREQUENT))
        text = top + (", ..." if num_distinct > _FREQUENT else "")
    else:
        there = values[~np.isnan(values)]
        missing, found = len(values) - len(there), np.unique(there)
        num_distinct = len(found)
        text = "" if not num_distinct else _range(there, found, kind)
    return name, role, kind, f"{missing / num_rows:.1%}" if missing else "", f"{num_distinct:,}", text or "no value"


def _range(there: Array, found: Array, kind: str) -> str:
    if kind == "boolean":
        return f"true {np.mean(there == 1):.1%}"
    if kind == "date":
        return f"{_day(found[0])} to {_day(found[-1])}"
    return f"{number(found[0])} to {number(found[-1])}, median {number(float(np.median(there)))}"


def _day(days: float) -> str:
    try:
        moment = _EPOCH + timedelta(days=days)
    except OverflowError:
        return f"day {days:.6g}"
    return moment.strftime("%Y-%m-%d") if days == int(days) else moment.strftime("%Y-%m-%d %H:%M")


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:21]}..."


def _counted(kinds: dict[str, str]) -> str:
    plural = {"number": "numbers", "boolean": "booleans", "date": "dates", "category": "categories", "": "others"}
    found = Counter(kinds.values()).most_common()
    return ", ".join(f"{count} {plural.get(kind, kind) if count > 1 else kind or 'other'}" for kind, count in found)


def part(what: str, rows: Sequence[tuple[str, ...]], count: int) -> Part:
    header = ("name", "role", "kind", "missing", "distinct", "values")
    keep = [k for k in range(len(header)) if k in (0, 2, 4, 5) or any(row[k] for row in rows)]
    title = what if count <= SHOWN else f"{what} (the first {SHOWN} of {count:,})"
    return Part(
        title=title, header=tuple(header[k] for k in keep), rows=[tuple(row[k] for k in keep) for row in rows],
        numbers=tuple(place for place, k in enumerate(keep) if k in (3, 4)),
    )  # fmt: skip


def draw(
    source: Source, samples: Samples, values: dict[str, Array], targets: Sequence[str], kinds: dict[str, str], side: int
) -> Figure:
    from pipeline.plots.data import columns

    spec, y = source.spec, samples.y
    shown = dict(values)
    if not task(spec.task).has_decisions and not targets:
        names = spec.targets if len(spec.targets) > 1 else [str(k) for k in range(y.shape[1])]
        targets = ["y"] if y.shape[1] == 1 else [f"y {name}" for name in names]
        shown |= dict(zip(targets, y.T.astype(np.float64), strict=False))
    is_by_class = y.ndim == 1 and bool(spec.classes)
    if is_by_class:  # the colors are the target
        shown = {name: column for name, column in shown.items() if name not in targets}
        targets = ()
    labels, classes = (y, spec.classes) if is_by_class else (None, ())
    return columns(shown, labels=labels, classes=classes, first=targets, kinds=kinds)
