"""The parity report: one set of values, as JSON for programs and as tables for people.

It holds no time and no path, so that two reports of the same files differ in nothing but latency.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from export.compare import Comparison
from export.explain import SETS
from export.runner import RunResult


def artifact(result: RunResult, comparison: Comparison, *, problems: Sequence[str]) -> dict[str, Any]:
    """Return one artifact's part of the report."""
    score = comparison.score
    return {
        **({"opset": result.facts["opset"]} if "opset" in result.facts else {}),
        "runtime": result.facts.get("runtime"),
        "version": result.facts.get("version"),
        "max_abs_diff": comparison.largest(),
        "mean_abs_diff": comparison.mean("all"),
        "argmax_flips": score.flips if score else None,
        "metric": nan_to_none(score.value) if score else None,
        "metric_diff": nan_to_none(score.value - score.want) if score else None,
        "latency_ms_b1": result.latency_ms,
        "cases": {
            case: {
                "max_abs_diff": comparison.largest(case),
                "mean_abs_diff": comparison.mean(case),
                "outputs": {
                    d.output: {
                        "shape": list(d.shape),
                        "max_abs_diff": d.largest,
                        "num_outside_tolerance": d.num_outside,
                        "num_not_finite": d.num_not_finite,
                    }
                    for d in differences
                },
            }
            for case, differences in comparison.differences.items()
        },
        "problems": list(problems),
    }


def metrics(report: Mapping[str, Any], *, prefixes: Mapping[str, str]) -> dict[str, float]:
    """Return the numbers of a report as MLflow metrics, each artifact's under its prefix."""
    names = {
        "max_abs_diff": "max_abs_diff",
        "mean_abs_diff": "mean_abs_diff",
        "argmax_flips": "argmax_flips",
        "metric_diff": f"{report['metric']}_diff",
        "latency_ms_b1": "latency_ms_b1",
    }
    return {
        f"{prefixes[kind]}/{name}": float(part[key])
        for kind, part in report["artifacts"].items()
        for key, name in names.items()
        if part[key] is not None
    } | {
        f"{prefixes[kind]}/original_files_argmax_flips": part["original_files"]["argmax_flips"]
        for kind, part in report["artifacts"].items()
        if "argmax_flips" in part.get("original_files", {})
    }


def markdown(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown: the verdict, what differs, and the tables."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    metric, reference, tolerance = report["metric"], report["reference"], report["tolerance"]
    artifacts: Mapping[str, Mapping[str, Any]] = report["artifacts"]
    yield f"# Parity of {report['model']} on {report['dataset']}"
    yield ""
    good = [kind for kind, part in artifacts.items() if not part["problems"]]
    if report["passed"]:
        yield f"**PASSED**: {', '.join(good)} {'predicts' if len(good) == 1 else 'predict'} as the trained model does."
    else:
        yield f"**FAILED**: {', '.join(kind for kind in artifacts if kind not in good)} must not be used."
    yield ""
    if report["split"] == "train":
        yield "No samples were held out for a test: the files are held against the model on the samples that it was trained on."
        yield ""
    if report["problems"]:
        yield "## What differs"
        yield ""
        yield from (f"- {problem}" for problem in report["problems"])
        yield ""
    yield f"## The whole {SETS[report['split']]}"
    yield ""
    header = ["format", "runtime", "max abs diff", "mean abs diff", f"argmax flips (n = {report['num_samples']})"]
    yield from _table(
        [*header, metric, f"{metric} difference", f"latency, batch 1, {report['num_threads']} thread (ms)"],
        [
            [
                kind, f"{part['runtime'] or '-'} {part['version'] or ''}".strip(),
                _short(_of(part, "all", "max_abs_diff")),
                _short(part["mean_abs_diff"]), _short(part["argmax_flips"]), _short(part["metric"], digits=6),
                _short(part["metric_diff"]), _short(part["latency_ms_b1"]),
            ]
            for kind, part in artifacts.items()
        ],
    )  # fmt: skip
    yield ""
    for kind, part in artifacts.items():
        if "argmax_flips" in (found := part.get("original_files", {})):
            yield (
                f"{kind}, from the {found['num_files']} original files as they are: {found['argmax_flips']} flips, {metric} "
                f"{_short(found['metric'], digits=6)}, max abs diff {_short(found['max_abs_diff'])} of the first output."
            )
            yield ""
    yield "## Each batch size"
    yield ""
    yield from _table(
        ["format", "batch", "max abs diff", "mean abs diff"],
        [
            [kind, case, _short(_of(part, case, "max_abs_diff")), _short(_of(part, case, "mean_abs_diff"))]
            for kind, part in artifacts.items()
            for case in part["cases"]
        ],
    )
    yield ""
    yield (
        f"Held against {reference['runtime']} {reference['version']}, "
        f"whose {metric} is {_short(reference['metric'], digits=6)}. "
        f"Allowed: {tolerance['atol']:g} + {tolerance['rtol']:g} x |torch|, no flips, the same {metric}."
    )
    yield ""
    yield from _table(
        ["file", "SHA-256"],
        [[part["file"], part["sha256"]] for part in artifacts.values()]
        + [["weights.safetensors", report["weights_sha256"]], ["data", report["data_sha256"]]],
    )


def _table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _of(part: Mapping[str, Any], case: str, key: str) -> float | None:
    return part["cases"].get(case, {}).get(key)


def _short(value: float | None, *, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def nan_to_none(value: float) -> float | None:
    """Return a number that JSON can hold, or None."""
    return value if math.isfinite(value) else None
