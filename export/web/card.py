"""What a page is told of its model: how it is asked, from what stands in the ONNX file, and what is shown beside the answers.

The file says which columns there are and which categories they know; of numbers it knows mean and deviation of the training
rows, so a slider goes two deviations to either side. Nothing here names a folder of this machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from export.serve.model import Model
from pipeline import __version__, manifest
from pipeline.data.columns import Column
from pipeline.run import Run

MOST_FIELDS = 64  # numbers of a vector that get a field each
_PAD = 64  # pixels: what is small and grey can be drawn
_RANGE = 2.0  # deviations

Description = dict[str, Any]


def describe(run: Run, model: Model, *, part: Mapping[str, Any], proof: Mapping[str, Any], size: int) -> Description:
    """Return page.json. `part` is what parity.json says of the file, `proof` all of it; `size` is in bytes."""
    fields = _fields(run, model)
    names = model.names or tuple("prediction" for _ in range(run.data.num_outputs))
    name = run.config.model if run.config.model.isidentifier() else run.config.model.rpartition("/")[2]
    return {
        "title": f"{name} on {run.data.name}",
        "summary": f"{run.task.name} model with {_counted(len(names), *_OF[model.has_decisions])}",
        "task": model.task, "has_decisions": model.has_decisions, "names": list(names), "outputs": list(model.decisive),
        "shape": list(model.input_shape), "dtype": model.dtype, "any_size": model.any_size,
        "is_image": model.is_image, "is_table": bool(model.columns), "fields": fields, "hint": _hint(model, fields),
        "has_pad": model.is_image and model.input_shape[0] == 1 and max(model.input_shape[1:]) <= _PAD,
        "is_dark": bool(run.data.mean) and run.data.mean[0] < 128,
        "card": [*_card(run, model, part, proof, size)],
        "lineage": [*_lineage(run, part)],
    }  # fmt: skip


_OF = {True: ("class", "classes"), False: ("target", "targets")}


def _counted(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"


def _fields(run: Run, model: Model) -> list[Description]:
    """Return the fields of a form; none where the input is no table and no short vector."""
    if model.columns:
        return [_field(column) for column in model.columns]
    if len(model.input_shape) != 1 or model.input_shape[0] > MOST_FIELDS or model.dtype != "float32":
        return []
    means, deviations = run.data.mean or [0.0] * model.input_shape[0], run.data.std or [1.0] * model.input_shape[0]
    called = "x" if model.input_shape[0] == 1 else "x{}"
    return [
        {"name": called.format(k), "kind": "number", **_numbers(mean, deviation, mean)}
        for k, (mean, deviation) in enumerate(zip(means, deviations, strict=True), start=1)
    ]


def _field(column: Column) -> Description:
    field: Description = {"name": column.name, "kind": column.kind}
    if column.kind == "category":
        other = "another one"
        while other in column.categories or other in column.missing_texts:
            other += "_"
        start = column.categories[0] if column.categories else other
        return field | {"categories": list(column.categories), "other": other, "start": start}
    if column.kind == "boolean":
        return field | {"start": int(column.fill > 0.5)}
    if column.kind == "date":
        day = min(max(column.fill, -700_000.0), 2_900_000.0)  # the years 53 to 9909
        return field | {"start": f"{(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=round(day))).date().isoformat()}"}
    return field | _numbers(column.center, column.scale, column.fill)


def _numbers(mean: float, deviation: float, start: float) -> Description:
    """Return the range of a number, its steps, and where it begins, rounded to what matters beside its deviation."""
    step = 10.0 ** math.floor(math.log10(deviation / 10)) if deviation > 0 else 1.0
    low = math.floor((mean - _RANGE * deviation) / step) * step
    high = math.ceil((mean + _RANGE * deviation) / step) * step
    digits = max(0, -math.floor(math.log10(step)))
    low, high, start = (round(value, digits) for value in (low, high, start))
    return {"low": low, "high": high if high > low else low + step, "step": round(step, digits), "start": start}


def _hint(model: Model, fields: list[Description]) -> str:
    if fields:
        empty = " What is not known may stay empty." if model.columns else ""
        return f"Sliders go two deviations to either side of the mean of the training samples; a number may be any.{empty}"
    shape = " x ".join(map(str, model.input_shape))
    kind = "whole numbers from 0 to 255" if model.dtype == "uint8" else "numbers"
    return f"{math.prod(model.input_shape)} {kind} ({shape}), with spaces, commas or brackets between them."


def _card(run: Run, model: Model, part: Mapping[str, Any], proof: Mapping[str, Any], size: int) -> Iterator[tuple[str, str]]:
    shape = " x ".join(map(str, model.input_shape))
    yield "Data", run.data.name
    yield "Samples", ", ".join(f"{count} {name}" for name, count in run.data.counts.items() if count)
    if model.columns:
        yield "Input", _counted(len(model.columns), "column", "columns")
    elif model.any_size:
        yield "Input", f"images of any size, which the model makes {shape}"
    else:
        yield "Input", f"{shape}, {model.dtype}"
    yield from _tested(run)
    yield "File", f"{part['file']}, {_size(size)}, opset {part['opset']}"
    flips = "" if part.get("argmax_flips") is None else f"{part['argmax_flips']} decisions differ from torch, "
    num = f"on {proof['num_samples']} samples ({proof['split']})"
    yield "Proof", f"passed {num}: {flips}largest difference {part['max_abs_diff']:.1e}"


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def _tested(run: Run) -> Iterator[tuple[str, str]]:
    """Yield the test figures that a run has; those of the training samples where nothing was held out."""
    sealed = manifest.read(run.folder)[1]
    for name in manifest.EVALUATIONS:
        if name in sealed:
            figures = json.loads((run.folder / name).read_text())
            for key in ("accuracy", "roc_auc", "rmse", "r2"):
                if isinstance(figures.get(key), float):
                    yield f"{name.partition('.')[0].capitalize()} {key}", f"{figures[key]:.4f}"
            return


def _lineage(run: Run, part: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "ONNX file SHA-256", part["sha256"]
    yield "Data SHA-256", run.data.sha256
    yield "Weights SHA-256", manifest.read(run.folder)[1][manifest.WEIGHTS]
    yield "Git commit", run.git_commit or "unknown"
    yield "MLflow run", run.mlflow_run_id
    yield "Trainyard", __version__
