"""Sentences: what differs between an artifact and the run, and why, as far as it can be found out.

Called with the result of an isolated process and its comparison with torch. Every sentence is a reason to fail.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.compare import ATOL, RTOL, Comparison, Difference, matches
from export.module import BATCH
from export.runner import CASES, RunResult

Array = NDArray[Any]

SETS = {"test": "test set", "train": "training set"}  # what a split of a prepared folder is called
_NUM_WEIGHTS = 3  # differing tensors that are named one by one


@dataclass(frozen=True)
class Input:
    """One input that a file has to declare: its name, what type, and the shape of one sample, a name where it may vary."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


def interface(facts: Mapping[str, Any], *, names: Sequence[str], inputs: Sequence[Input]) -> Iterator[str]:
    """Say where a file that declares its inputs and outputs does so otherwise than the run has them."""
    if facts["checker"]:
        yield f"onnx.checker refuses it: {facts['checker']}"
    found, outputs = facts["inputs"], [o["name"] for o in facts["outputs"]]
    if [i["name"] for i in found] != [i.name for i in inputs]:
        yield f"its inputs are named {_list(i['name'] for i in found)}, not {_list(i.name for i in inputs)}"
    for here, there in zip(found, inputs, strict=False):
        which = "input" if len(inputs) == 1 else f"input {there.name}"
        if here["dtype"] != there.dtype:
            yield f"its {which} is declared {here['dtype']}, training took {there.dtype}"
        if list(here["shape"][1:]) != list(there.shape):
            yield f"its {which} takes samples of shape {tuple(here['shape'][1:])}, training took {there.shape}"
        frozen = here["shape"][0] if here["shape"] else None
        if isinstance(frozen, int):
            yield f"the batch is frozen at {frozen}: the first axis of its {which} is declared {frozen}, not '{BATCH}'"
    if sorted(outputs) != sorted(names):
        yield f"its outputs are named {_list(outputs)}, not {_list(names)}"
    elif outputs != list(names):
        yield f"its outputs come in the order {_list(outputs)}, not {_list(names)}"


def origin(found: Mapping[str, Any], expected: Mapping[str, object], *, complete: bool) -> Iterator[str]:
    """Say where the metadata of an artifact are not the run's; `complete` wants each of them to be there."""
    for key, value in expected.items():
        if key not in found:
            if complete:
                yield f"its metadata lacks {key}"
        elif found[key] != value and key != "trainyard_version":  # an older version's export is as good
            yield f"its metadata says {key}={json.dumps(found[key])}, the run has {json.dumps(value)}"


def behavior(
    result: RunResult, comparison: Comparison, *, names: Sequence[str], want: Mapping[str, Sequence[Array]], split: str
) -> Iterator[str]:
    """Say which batch sizes fail, and which outputs differ, by how much and where; `split` is `test` or `train`."""
    yield from batches(result, names=names, want=want, split=split)
    for index, name in enumerate(names):
        failing = {c: ds[index] for c, ds in comparison.differences.items() if index < len(ds) and not ds[index].agrees}
        if failing:
            yield from _output(name, failing, split)
    score = comparison.score
    if score and score.flips:
        yield f"{score.flips} of {len(want['all'][0])} {split} samples are classified otherwise than by torch"
    if score and not np.isclose(score.value, score.want, rtol=RTOL, atol=ATOL, equal_nan=True):
        yield f"the metric over the {SETS[split]} is {score.value:.6g}, torch's is {score.want:.6g}"


def batches(result: RunResult, *, names: Sequence[str], want: Mapping[str, Sequence[Array]], split: str) -> Iterator[str]:
    """Say which batch sizes fail, or give another number of outputs or rows."""
    if result.facts["errors"]:
        yield _failed_batches(result.facts["errors"], split)
    for case, outputs in result.outputs.items():
        if len(outputs) != len(names):
            yield f"it gives {len(outputs)} outputs, not {len(names)} ({_list(names)})"
            break
        rows = outputs[0].shape[:1]
        if rows != want[case][0].shape[:1]:
            yield f"the batch is frozen: it gives {rows[0] if rows else 'no'} rows for {_cases([case], split)}"
            break


def _failed_batches(errors: Mapping[str, str], split: str) -> str:
    good = [case for case in CASES if case not in errors]
    message = next(iter(errors.values()))
    if not good:
        return f"it cannot be run on real samples: {message}"
    return f"it runs for {_cases(good, split)} only, and fails for {_cases(errors, split)}: {message}"


def _output(name: str, failing: Mapping[str, Difference], split: str) -> Iterator[str]:
    """Say what is wrong with one output, in one sentence for each kind of fault."""
    shaped = {c: d for c, d in failing.items() if d.shape != d.want_shape}
    if shaped:
        case, d = next(iter(shaped.items()))
        yield f"output {name} has the shape {d.shape}, not {d.want_shape}, for {_cases([case], split)}"
    broken = {c: d for c, d in failing.items() if d.num_not_finite}
    if broken:
        case, d = list(broken.items())[-1]
        share = f"{d.num_not_finite} of {np.prod(d.shape)} values"
        torch_too = f" (torch itself gives {d.torch_not_finite} such)" if d.torch_not_finite else ""
        yield f"output {name} is NaN or infinite in {share} for {_cases([case], split)}{torch_too}"
    outside = {c: d for c, d in failing.items() if d.num_outside}
    if outside:
        largest, allowed = max((d.largest or 0.0, d.allowed) for d in outside.values())
        yield f"output {name} differs from torch by up to {largest:.3g} for {_cases(outside, split)} (allowed: {allowed})"


def swapped(got: Mapping[str, Sequence[Array]], want: Mapping[str, Sequence[Array]], *, names: Sequence[str]) -> Iterator[str]:
    """Say which output holds the values of another."""
    for case in reversed(CASES):
        if case in got:
            for name, values, own in zip(names, got[case], want[case], strict=False):
                for other, theirs in zip(names, want[case], strict=True):
                    if other != name and not matches(values, own) and matches(values, theirs):
                        yield f"output {name} holds the values of {other}: the outputs are swapped"
            return


def unstandardized(got: Mapping[str, Sequence[Array]], plain: Mapping[str, Sequence[Array]]) -> Iterator[str]:
    """Say so if the outputs are those of the network on raw input; `plain` holds these."""
    shared = [case for case in plain if case in got]
    if shared and all(matches(a, b) for case in shared for a, b in zip(got[case], plain[case], strict=False)):
        yield "standardization is missing: the outputs equal those of the network fed with raw input"


def weights(found: Mapping[str, Array], expected: Mapping[str, Array]) -> Iterator[str]:
    """Say which tensors differ from weights.safetensors, the largest difference first, and how many are not in the file.

    A tensor is found by its name (a prefix and `_` for `.` allowed), or else by equal values, also transposed.
    """
    by_name = {name.removeprefix("model.").removeprefix("model_").replace(".", "_"): a for name, a in found.items()}
    differ: list[tuple[float, str]] = []
    absent: list[str] = []
    for name, value in expected.items():
        same = by_name.get(name.replace(".", "_"))
        if same is not None and same.shape == value.shape:
            distance = np.abs(same.astype(np.float64) - value.astype(np.float64))
            if not (distance == 0).all():
                largest = float(np.nanmax(distance)) if np.isfinite(distance).any() else float("nan")
                changed = int((distance != 0).sum())
                differ.append((largest, f"{name} in {changed} of {distance.size} values by up to {largest:.3g}"))
        elif not any(np.array_equal(a, v) for a in found.values() for v in (value, value.T)):
            absent.append(f"{name} {value.shape}")
    if differ:
        differ.sort(key=lambda entry: -np.nan_to_num(entry[0], nan=np.inf))
        yield f"its weights differ from weights.safetensors: {_first([text for _, text in differ])}"
    if absent:
        yield (
            f"{len(absent)} of the {len(expected)} tensors of weights.safetensors are not in it: {_first(absent)}. They are of "
            "another training, or another program has put them together, as a normalization with the layer before it"
        )


def _first(texts: Sequence[str]) -> str:
    more = f"; and {len(texts) - _NUM_WEIGHTS} more tensors" if len(texts) > _NUM_WEIGHTS else ""
    return "; ".join(texts[:_NUM_WEIGHTS]) + more


def _cases(cases: Iterable[str], split: str) -> str:
    names = list(cases)
    sizes = [case for case in names if case != "all"]
    parts = [f"batches of {', '.join(sizes)}"] if sizes else []
    return " and ".join([*parts, f"the whole {SETS[split]}"] if "all" in names else parts)


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
