"""Files that are made from the ONNX file and lose something: with which layers left in float, decided on samples of no test.

All layers are changed at first. Then each one is changed alone, which tells how much it loses. Where the result misses its
gate, the layers that lose most are left in float, one after the other, until it does not; a file that never gets there is made
all the same, and `verify` has the last word.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export import gates, graph
from export.formats import Format
from export.gates import Limits
from pipeline.data.loader import open_split
from pipeline.output import say
from pipeline.task import Task

Array = NDArray[Any]

NUM_CALIBRATION, NUM_CHOICE, NUM_LAYER = 512, 2048, 128  # samples: for ranges, for the gate, for the error of each layer
MOST_IN_FLOAT = 8  # layers
_CHUNK = 256


@dataclass(frozen=True)
class Samples:
    """`calibration` (N, *input_shape); `x` and `y` the samples by which a setting is chosen, of the split `split`."""

    calibration: Array
    x: Array
    y: Array
    split: str


def samples(data: Path) -> Samples:
    """Draw samples of a prepared folder, always the same: training samples for ranges, validation samples for the choice.

    Without any for validation, the choice is made on training samples that were not drawn for the ranges, if there are more.
    """
    train, val = open_split(data, "train"), open_split(data, "val")
    order = np.random.default_rng(0).permutation(len(train))
    drawn, rest = order[:NUM_CALIBRATION], order[NUM_CALIBRATION:][:NUM_CHOICE]
    name, split = ("val", val) if len(val) else ("train", train)
    chosen = np.random.default_rng(0).permutation(len(val))[:NUM_CHOICE] if len(val) else (rest if len(rest) else drawn)
    chosen, drawn = np.sort(chosen), np.sort(drawn)
    return Samples(train.x[drawn].numpy(), split.x[chosen].numpy(), split.y[chosen].numpy(), name)


def derive(each: Format, content: bytes, drawn: Samples, *, task: Task, limits: Limits) -> bytes:
    """Return the file of a derived format, from the bytes of its base; it says in its metadata how it was made.

    Raises ValueError where there is nothing to derive.
    """
    assert each.derivation
    made = each.derivation(content, drawn.calibration)
    few = drawn.x[:NUM_LAYER]
    want = _answers(content, drawn.x)

    def error(in_float: Collection[str]) -> float:
        return _error(_answers(made.make(in_float), few), want[: len(few)])

    alone = {node: error([other for other in made.layers if other != node]) for node in made.layers}
    order = sorted(alone, key=lambda node: -alone[node])
    in_float: list[str] = []
    tried: list[tuple[bool, dict[str, Any], bytes]] = []
    while True:
        candidate = made.make(in_float)
        found = gates.figures(_answers(candidate, drawn.x), want, drawn.y, task)
        passes = not [*gates.missed(found, Limits(max_metric_drop=limits.max_metric_drop), task=task, split=drawn.split)]
        figures = {key: _short(found[key]) for key in ("metric", "metric_drop", "agreement") if key in found}
        tried.append((passes, {"float_layers": [made.layers[node] for node in in_float]} | figures, candidate))
        if passes or len(in_float) == min(len(order) - 1, MOST_IN_FLOAT):  # with all in float, nothing is derived
            break
        in_float = order[: len(in_float) + 1]
    passes, chosen, best = tried[-1] if tried[-1][0] else max(tried, key=lambda entry: _goodness(entry[1]))
    worst = {"layer": made.layers[order[0]], "error": _short(alone[order[0]]), "error_of_all": _short(error([]))}
    setting = {
        "float_layers": chosen["float_layers"], "num_layers": len(made.layers), **made.setting,
        "chosen_on": drawn.split, "num_samples": len(drawn.x), "passes": passes, "worst_layer": worst,
        "tried": [entry for _, entry, _ in tried],
    }  # fmt: skip
    say(f"{each.name}: {_told(setting)}")
    return graph.with_metadata(best, {"format": each.name, "quantization": setting})


def _told(setting: dict[str, Any]) -> str:
    """Return how a file was made, for the log."""
    last, worst, kept = setting["tried"][-1], setting["worst_layer"], setting["float_layers"]
    layers = f"{setting['num_layers'] - len(kept)} of {setting['num_layers']} layers"
    parts = [layers + (f", without {', '.join(kept)}" if kept else "")]
    parts.append(f"{worst['layer']} loses most")
    if not setting["passes"]:
        agreement = f", agreement {last['agreement']}" if "agreement" in last else ""
        parts.append(
            f"none of {len(setting['tried'])} settings keeps its limits on the {setting['chosen_on']} samples (the last: "
            f"metric drop {last['metric_drop']}{agreement}), so verify may reject it"
        )
    return "; ".join(parts)


def _goodness(figures: dict[str, Any]) -> tuple[float, float]:
    drop = figures["metric_drop"]
    return figures.get("agreement", 0.0), -math.inf if drop is None else -drop


def _answers(content: bytes, x: Array) -> Array:
    """Return the first output (N, K) for samples, on one thread: the choice must not hang on how many there are."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name, first = session.get_inputs()[0].name, [session.get_outputs()[0].name]
    return np.concatenate([session.run(first, {name: x[k : k + _CHUNK]})[0] for k in range(0, len(x), _CHUNK)])


def _error(got: Array, want: Array) -> float:
    """Return the root of the mean squared difference, as a share of the spread of what is wanted; infinite for NaN."""
    spread = float(want.std()) or 1.0
    value = float(np.sqrt(np.mean((got.astype(np.float64) - want) ** 2))) / spread
    return value if math.isfinite(value) else math.inf


def _short(value: float | None) -> float | None:
    """Return a number that JSON can hold, and that reads well."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")
