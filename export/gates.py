"""What matters for a file that loses something on purpose: the metric, the decisions, and if asked for its speed.

No number of it has to be torch's. But it takes and gives what the exact files do, for every batch size, and its probabilities
are those of its own scores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from export import compare
from export.explain import batches
from export.report import nan_to_none
from export.runner import RunResult
from pipeline.task import Task

Array = NDArray[Any]

MIN_AGREEMENT = 0.995  # of decisions that are torch's
_CLOSE = 0.01  # of probabilities, which somebody else's file may hold in 8 bits


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`max_metric_drop`: absolute for accuracy, of RMSE the share by which it may be worse. `min_speedup` 0 asks for none."""

    max_metric_drop: float = 0.005
    min_speedup: float = 0.0


def figures(got: Array, want: Array, labels: Array, task: Task) -> dict[str, Any]:
    """Return the metric of the first output (N, K) of all samples, how far it is below torch's, and the agreement with it.

    `agreement` is the share of equal decisions, `argmax_flips` the number of samples with another one; regression has neither.
    """
    score = compare.score(got, want, labels, task)
    if not task.has_decisions:
        worse = score.value - score.want
        drop = worse / score.want if score.want > 0 else (0.0 if worse == 0 else float("inf"))
        return {"metric": score.value, "reference_metric": score.want, "metric_drop": drop}
    decided, wanted = (task.decide(torch.from_numpy(a.astype(np.float64))) for a in (got, want))
    return {
        "metric": score.value, "reference_metric": score.want, "metric_drop": score.want - score.value,
        "agreement": float((decided == wanted).double().mean()), "argmax_flips": score.flips,
    }  # fmt: skip


def missed(found: Mapping[str, Any], limits: Limits, *, task: Task, split: str) -> Iterator[str]:
    """Say which limits the figures of a file miss, on the samples of a split."""
    drop, name = found["metric_drop"], task.metric
    if not drop <= limits.max_metric_drop + 1e-12:  # NaN misses it too
        much = f"{drop:.2%} worse" if not task.has_decisions else f"{drop:.4f} lower"
        allowed = f"{limits.max_metric_drop:.2%}" if not task.has_decisions else f"{limits.max_metric_drop:g}"
        yield (
            f"its {name} over the {split} samples is {found['metric']:.6g}, {much} than torch's "
            f"{found['reference_metric']:.6g}: {allowed} is allowed (max_metric_drop)"
        )
    if "agreement" in found and not found["agreement"] >= MIN_AGREEMENT:
        yield (
            f"{found['agreement']:.2%} of its decisions over the {split} samples are torch's ({found['argmax_flips']} samples "
            f"flip): {MIN_AGREEMENT:.1%} are needed"
        )
    if limits.min_speedup and "speedup" in found and not (found["speedup"] or 0.0) >= limits.min_speedup:
        yield (
            f"it is {found['speedup'] or 0.0:.2f} times as fast as model.onnx at batch 1: {limits.min_speedup:g} is asked for "
            "(min_speedup)"
        )


def is_what_it_is_called(facts: Mapping[str, Any], kind: str) -> Iterator[str]:
    """Say that a file which is to be judged as a derived one has no weights of that type."""
    types = {"onnx-int8": ("int8", "uint8"), "onnx-fp16": ("float16",)}.get(kind, ())
    if types and not {*types} & {*facts["weight_types"]}:
        yield f"it holds no weights of {types[0]}, only of {', '.join(facts['weight_types']) or 'none'}"


def behavior(
    result: RunResult,
    *,
    names: Sequence[str],
    want: Mapping[str, Sequence[Array]],
    task: Task,
    split: str,
    temperature: float = 1.0,
) -> Iterator[str]:
    """Say where a file does not behave as a model, whatever its figures: batches, shapes, numbers that are none.

    Its probabilities have to be those of its logits / `temperature`.
    """
    wrong = [*batches(result, names=names, want=want, split=split)]
    yield from wrong
    for index, name in enumerate(names):
        outputs = {case: arrays[index] for case, arrays in result.outputs.items() if index < len(arrays)}
        if shapes := [f"{a.shape} for {want[c][index].shape}" for c, a in outputs.items() if a.shape != want[c][index].shape]:
            if not wrong:
                yield f"its output {name} has another shape: {shapes[0]}"
            return
        if bad := sum(int((~np.isfinite(a)).sum()) for a in outputs.values()):
            yield f"its output {name} has {bad} values that are not finite"
            return
        yield from _depends_on_batch(name, outputs, want["all"][index])
    if "probabilities" in names and "all" in result.outputs and len(result.outputs["all"]) == len(names):
        scores = torch.from_numpy(result.outputs["all"][0].astype(np.float32)) / temperature
        gap = np.abs(result.outputs["all"][names.index("probabilities")] - task.probabilities(scores).numpy()).max()
        if gap > _CLOSE:
            yield f"its probabilities are not those of its logits: they differ by up to {gap:.2g}"


def _depends_on_batch(name: str, outputs: Mapping[str, Array], want: Array) -> Iterator[str]:
    """A sample's answer may hang on its batch by no more than the file differs from torch at all."""
    if "all" not in outputs:
        return
    whole = outputs["all"].astype(np.float64)
    allowed = compare.ATOL + np.abs(whole - want).max() + compare.RTOL * np.abs(want).max()
    for case, values in outputs.items():
        if case != "all" and (gap := np.abs(values - whole[np.arange(len(values)) % len(whole)]).max()) > allowed:
            yield f"its output {name} hangs on the batch: for {case} samples it differs by {gap:.2g} from that for all"
            return


def part(found: Mapping[str, Any], *, limits: Limits, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a report says of a file beside what it says of exact ones."""
    setting = metadata.get("quantization")
    return {
        "metric_drop": nan_to_none(found["metric_drop"]) if "metric_drop" in found else None,
        "agreement": found.get("agreement"), "argmax_flips": found.get("argmax_flips"),
        "size_ratio": found.get("size_ratio"), "speedup": found.get("speedup"),
        "max_metric_drop": limits.max_metric_drop, "min_agreement": MIN_AGREEMENT, "min_speedup": limits.min_speedup,
        "setting": setting if isinstance(setting, dict) else None,
    }  # fmt: skip
