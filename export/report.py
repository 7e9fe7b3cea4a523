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
    gates = {"metric_drop": f"{report['metric']}_drop"} | {key: key for key in ("agreement", "size_ratio", "speedup")}
    parts = report["artifacts"] | report.get("rejected", {})
    found = {(kind, name): part[key] for kind, part in parts.items() for key, name in names.items()}
    found |= {(kind, name): part["gate"][key] for kind, part in parts.items() if "gate" in part for key, name in gates.items()}
    found |= {
        (kind, "originals_argmax_flips"): part["originals"].get("argmax_flips")
        for kind, part in parts.items()
        if "originals" in part
    }
    return {f"{prefixes[kind]}/{name}": float(value) for (kind, name), value in found.items() if value is not None}


def markdown(report: Mapping[str, Any]) -> str:
    """Return the report as Markdown: the verdict, what differs, and the tables."""
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    metric, reference, tolerance = report["metric"], report["reference"], report["tolerance"]
    rejected: Mapping[str, Mapping[str, Any]] = report.get("rejected", {})
    artifacts: Mapping[str, Mapping[str, Any]] = report["artifacts"] | rejected
    yield f"# Parity of {report['model']} on {report['dataset']}"
    yield ""
    good = [kind for kind, part in artifacts.items() if not part["problems"]]
    exact, smaller = ([kind for kind in good if ("gate" in artifacts[kind]) == has_gate] for has_gate in (False, True))
    if not report["passed"]:
        bad = [kind for kind in artifacts if kind not in good and kind not in rejected]
        yield f"**FAILED**: {', '.join(bad)} must not be used."
    elif exact:
        yield f"**PASSED**: {', '.join(exact)} {'predicts' if len(exact) == 1 else 'predict'} as the trained model does."
    else:
        yield f"**PASSED**: {', '.join(smaller)} keeps its limits."
    yield ""
    if exact and smaller:
        yield f"{', '.join(smaller)} {'keeps its' if len(smaller) == 1 else 'keep their'} limits: see Smaller files."
        yield ""
    if rejected:
        yield f"**REJECTED**, and moved to `rejected/`: {', '.join(rejected)}. The other files are not touched by that."
        yield ""
    if report["split"] == "train":
        yield "No samples were held out for a test: the files are held against the model on the samples that it was trained on."
        yield ""
    if report["problems"]:
        yield "## What differs"
        yield ""
        yield from (f"- {problem}" for problem in report["problems"])
        yield ""
    if rejected:
        yield "## Why files were rejected"
        yield ""
        yield from (f"- {part['file']}: {problem}" for part in rejected.values() for problem in part["problems"])
        yield ""
    yield f"## The whole {SETS[report['split']]}"
    yield ""
    header = ["format", "runtime", "max abs diff", "mean abs diff", f"argmax flips (n = {report['num_samples']})"]
    yield from table(
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
        if "argmax_flips" in (found := part.get("originals", {})):
            yield (
                f"{kind}, from the {found['num_images']} original images as they are: {found['argmax_flips']} flips, {metric} "
                f"{_short(found['metric'], digits=6)}, max abs diff {_short(found['max_abs_diff'])} of the first output."
            )
            yield ""
    if gates := {kind: part["gate"] for kind, part in artifacts.items() if "gate" in part}:
        yield from _gates(gates, artifacts, metric)
    yield "## Each batch size"
    yield ""
    yield from table(
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
        f"Allowed: {tolerance['allowed']}, no flips, the same {metric}."
    )
    yield ""
    yield from table(
        ["file", "SHA-256"],
        [[part["file"], part["sha256"]] for part in artifacts.values()]
        + [["weights.safetensors", report["weights_sha256"]], ["data", report["data_sha256"]]],
    )


def _gates(gates: Mapping[str, Any], artifacts: Mapping[str, Mapping[str, Any]], metric: str) -> Iterator[str]:
    limits = next(iter(gates.values()))
    yield "## Smaller files"
    yield ""
    header = ["format", "setting", metric, f"{metric} drop", "agreement", "flips", "size", "speed", "loses most"]
    yield from table(
        header,
        [
            [
                kind, _setting(gate), _short(artifacts[kind]["metric"], digits=6), _short(gate["metric_drop"]),
                "-" if gate["agreement"] is None else f"{gate['agreement']:.3%}", _short(gate["argmax_flips"]),
                *(f"{gate[key]:.2f} x" if gate[key] else "-" for key in ("size_ratio", "speedup")), _worst(gate),
            ]
            for kind, gate in gates.items()
        ],
    )  # fmt: skip
    yield ""
    speed = f", and at least {limits['min_speedup']:g} times its speed" if limits["min_speedup"] else ""
    yield (
        f"Allowed: a drop of {limits['max_metric_drop']:g}{' (as a share)' if metric == 'rmse' else ''}; where there are "
        f"decisions, {limits['min_agreement']:.1%} of them are torch's{speed}. Size and speed are those of model.onnx; times "
        "were taken in turns, batch 1."
    )
    yield ""


def _setting(gate: Mapping[str, Any]) -> str:
    """Return which layers a file leaves in float, as it says itself."""
    setting = gate["setting"] or {}
    if "float_layers" not in setting:
        return "-"
    layers = f"in float: {', '.join(setting['float_layers'])}" if setting["float_layers"] else "all layers"
    return layers + (", weights of 7 bits" if setting.get("reduce_range") else "")


def _worst(gate: Mapping[str, Any]) -> str:
    worst = (gate["setting"] or {}).get("worst_layer")
    if not worst:
        return "-"
    alone, of_all = ("not finite" if v is None else f"{100 * v:.2g} %" for v in (worst["error"], worst["error_of_all"]))
    return f"{worst['layer']} (error alone {alone}, of all {of_all})"


def table(header: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Yield the lines of a table in Markdown."""
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
