"""What a report shows of a run's data: how many samples of what, some of them, and those on which the model is furthest off."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline import calibration
from pipeline.answers import Answers
from pipeline.data.loader import open_split
from pipeline.data.prepare import read_manifest, read_raw
from pipeline.pages import figures
from pipeline.pages.page import number, picture
from pipeline.run import Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_MOST_CLASSES, _EACH = 12, 2  # of which images are shown, and how many of each
_ROWS, _COLUMNS = 5, 12  # of a table
_TOP_IMAGES, _TOP_ROWS = 15, 10
_MOST_FEATURES = 40


def counts(run: Run, data: Path) -> list[dict[str, Any]]:
    """Return for each class, label or target its name and what each split has of it: a count, or mean and deviation."""
    targets = {name: open_split(data, name).y.numpy() for name, count in run.data.counts.items() if count}
    names = run.data.classes or run.data.targets or ("target",)
    rows = []
    for k, name in enumerate(names):
        row: dict[str, Any] = {"name": name, "splits": {}}
        for split, y in targets.items():
            if run.task.has_decisions:
                having = int((y[:, k] if y.ndim == 2 else y == k).sum())
                row["splits"][split] = {"count": having}
            else:
                each = y[:, k].astype(np.float64)
                told = f"{number(each.mean())} ± {number(each.std())} ({number(each.min())} to {number(each.max())})"
                row["splits"][split] = {"text": told}
        rows.append(row)
    for split in targets if run.task.has_decisions else ():
        largest = max(row["splits"][split]["count"] for row in rows)
        for row in rows:
            row["splits"][split]["of_largest"] = row["splits"][split]["count"] / max(1, largest)
    return rows


def examples(run: Run, data: Path, split: str) -> dict[str, Any]:
    """Return some samples: images of training, or the first rows of a table as they were, or what each feature is."""
    if run.data.is_image:
        train = open_split(data, "train")
        y = train.y.numpy()
        chosen = []
        if y.ndim == 1:
            for k in range(min(_MOST_CLASSES, len(run.data.classes))):
                chosen += np.flatnonzero(y == k)[:_EACH].tolist()
        else:
            chosen = [*range(min(_EACH * _MOST_CLASSES, len(y)))]
        images = [{"src": picture(train.x[i].numpy()), "text": _label(run, y[i])} for i in chosen]
        return {"images": images, "of": "training"}
    if run.data.columns:
        raw, y = read_raw(data), open_split(data, split).y.numpy()
        shown = run.data.columns[:_COLUMNS]
        rows = [[*(_cell(raw[c.name][i], c.kind) for c in shown), _label(run, y[i])] for i in range(min(_ROWS, len(y)))]
        names = [column.name for column in shown]
        return {"header": [*names, "target"], "rows": rows, "of": split, "more": len(run.data.columns) - len(names)}
    features = range(min(_MOST_FEATURES, len(run.data.mean)))
    told = [[f"feature {k}", number(run.data.mean[k]), number(run.data.std[k])] for k in features]
    more = len(run.data.mean) - len(told)
    return {"header": ["", "mean", "deviation"], "rows": told, "of": "training", "more": more}


def columns(run: Run) -> list[dict[str, Any]]:
    """Return what the columns of a table are."""
    found = []
    for column in run.data.columns:
        about = ", ".join(column.categories[:8]) + (", ..." if len(column.categories) > 8 else "")
        if not column.is_category:
            about = f"mean {number(column.center)}, deviation {number(column.scale)}"
        found.append({"name": column.name, "kind": column.kind, "about": about, "missing": column.has_missing})
    return found


def top_losses(run: Run, data: Path, found: Answers) -> dict[str, Any]:
    """Return the samples that cost most, the worst first: as images, or as rows of the table that they are of."""
    cost = figures.losses(found)
    order = np.argsort(-cost, kind="stable")
    split = open_split(data, found.split)
    names = read_manifest(data).get("names", {}).get(found.split)
    if run.data.is_image:
        tiles = []
        for i in order[:_TOP_IMAGES]:
            text = [f"is {_label(run, found.target[i])}", f"taken for {_decided(run, found, i)}", f"loss {number(cost[i], 3)}"]
            if names:
                text.append(str(names[i]))
            wrong = found.decided is not None and not np.array_equal(found.decided[i], found.target[i])
            tiles.append({"src": picture(split.x[int(i)].numpy()), "text": text, "wrong": wrong})
        return {"images": tiles}
    raw = read_raw(data) if run.data.columns else {}
    shown = run.data.columns[: _COLUMNS // 2]
    rows = [
        [str(i), _label(run, found.target[i]), _decided(run, found, int(i)), number(cost[i], 3),
         *(_cell(raw[c.name][i], c.kind) for c in shown)]
        for i in order[:_TOP_ROWS]
    ]  # fmt: skip
    what = "error" if found.decided is None else "loss"
    return {"header": ["row", "is", "predicted", what, *(column.name for column in shown)], "rows": rows}


def confusions(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the pairs of classes that are taken for each other most often."""
    counts = np.array(matrix)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:15]
    pairs = [divmod(int(k), len(classes)) for k in order]
    return [{"true": classes[i], "predicted": classes[j], "count": int(counts[i, j])} for i, j in pairs if counts[i, j]]


def _label(run: Run, y: Any) -> str:
    """Return what a target says, in words."""
    if not run.task.has_decisions:
        return ", ".join(number(float(v), 5) for v in y)
    if np.ndim(y) == 1:
        return ", ".join(name for name, value in zip(run.data.classes, y, strict=True) if value) or "none"
    return run.data.classes[int(y)]


def _decided(run: Run, found: Answers, i: int) -> str:
    if found.decided is None:
        return _label(run, found.scores[i])
    sure = calibration.confidence(found.scores[i : i + 1], has_labels=run.task.has_labels)[0]
    each = f" ({sure[0]:.3f})" if len(sure) == 1 else ""
    return _label(run, found.decided[i]) + each


def _cell(value: Any, kind: str) -> str:
    """Return a value of a table's column as a person reads it: a date, which is days since 1970 there, as a date."""
    if value is None or value != value:
        return "-"
    if kind == "date":
        return str(np.datetime64(0, "D") + np.timedelta64(int(value), "D"))
    if kind == "boolean":
        return "true" if value else "false"
    return number(float(value), 6) if isinstance(value, (float, np.floating)) else str(value)[:60]


def shades(matrix: Sequence[Sequence[int]]) -> list[list[Mapping[str, Any]]]:
    """Return the cells of a confusion matrix with the share of their true class."""
    return [[{"count": n, "share": n / max(1, sum(row))} for n in row] for row in matrix]
