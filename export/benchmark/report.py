"""The report of a benchmark: one set of values, as JSON for programs, as a table for people, as metrics to sort runs by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from export.benchmark import figures, machine
from export.benchmark.rounds import Contender, Found, Plan
from export.benchmark.samples import Inputs
from export.report import table
from pipeline.run import Run

FIGURES = ("p50_ms", "p95_ms", "p99_ms", "samples_per_s")
_OF_FILES = ("size_bytes", "load_ms", "peak_mb")


def values(
    run: Run, contenders: Sequence[Contender], found: Mapping[Plan, Found], inputs: Inputs, *, batch_sizes: Sequence[int],
    threads: Sequence[int], rounds: int, seconds: float, others_before: float,
) -> dict[str, Any]:  # fmt: skip
    """Return the report as JSON values. A figure that is not stated is null, with the `reason` beside it."""
    rows = [
        figures.row(
            each.name, batch=size, threads=number, rounds=rounds, slices=found[each.name, number].slices.get(size, []),
            failure=found[each.name, number].failures.get(size, ""),
        )
        for each in contenders
        for number in threads
        for size in batch_sizes
    ]  # fmt: skip
    files = {each.name: _file(each, [found[each.name, number] for number in threads]) for each in contenders}
    must = {each.name for each in contenders if each.must}
    refused = [_where(row) for row in rows if row["reason"] and not row["failed"]]
    refused += [f"{name}, time to load: {part['reason']}" for name, part in files.items() if part["reason"]]
    failed = list(dict.fromkeys(f"{row['format']}: {row['reason']}" for row in rows if row["failed"]))
    return {
        "model": Path(run.config.model).name, "dataset": run.data.name, "mlflow_run_id": run.mlflow_run_id,
        "machine": {"processor": machine.processor(), "cores": len(machine.cores()), "others_before": round(others_before, 3)},
        "samples": inputs.what, "sample_shape": list(run.data.sample_shape), "columns": len(run.data.columns),
        "rounds": rounds, "seconds": seconds, "max_spread": figures.MAX_SPREAD, "max_load_spread": figures.MAX_LOAD_SPREAD,
        "rows": rows, "files": files,
        "refused": refused, "failed": failed,
        "broken": [text for text in failed if text.partition(":")[0] in must],
    }  # fmt: skip


def _file(contender: Contender, found: Sequence[Found]) -> dict[str, Any]:
    """Return what is said of one contender as a whole: who answers, its size, and what it takes to have it loaded."""
    loaded = [each for part in found for each in part.loaded]
    load_ms, reason = figures.load_ms([each["load_ms"] for each in found[0].loaded])
    peaks = [peak for part in found for peak in part.peaks_mb]
    facts = loaded[0] if loaded else {}
    return {
        "file": contender.file, "sha256": contender.sha256, "size_bytes": contender.size_bytes,
        **{key: facts.get(key) for key in ("runtime", "version", "provider")},
        "load_ms": load_ms, "peak_mb": max(peaks, default=None), "reason": reason or None,
    }  # fmt: skip


def _where(row: Mapping[str, Any]) -> str:
    return f"{row['format']}, batch {row['batch']}, {_threads(row['threads'])}: {row['reason']}"


def _threads(number: int) -> str:
    return f"{number} thread{'s' * (number > 1)}"


def metrics(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures that are stated, as MLflow metrics, whose names come behind those of the curves in its alphabet."""
    found = {
        f"verify/speed/{row['format']}/b{row['batch']}_t{row['threads']}/{key}": row[key]
        for row in report["rows"]
        for key in FIGURES
    }
    found |= {f"verify/speed/{name}/{key}": part[key] for name, part in report["files"].items() for key in _OF_FILES}
    return {name: float(value) for name, value in found.items() if value is not None}


def markdown(report: Mapping[str, Any]) -> str:
    return "\n".join(_lines(report)) + "\n"


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    found = report["machine"]
    yield f"# Benchmark of {report['model']} on {report['dataset']}"
    yield ""
    yield (
        f"{found['processor']}, {found['cores']} core{'s' * (found['cores'] > 1)}; {report['samples']} of "
        f"{'x'.join(map(str, report['sample_shape']))}, from the beginning again where a batch has more. "
        f"{report['rounds']} rounds over all, {report['seconds']:g} s each; every process is fresh, and alone."
    )
    yield ""
    if report["columns"]:
        yield (
            f"ONNX files take the {report['columns']} raw columns of the table and encode them; all others take the "
            "matrix that was encoded before."
        )
        yield ""
    if report["refused"]:
        yield "## Not stated"
        yield ""
        yield from (f"- {text}" for text in report["refused"])
        yield ""
    if report["failed"]:
        yield "## Not measured"
        yield ""
        yield from (f"- {text}" for text in report["failed"])
        yield ""
    yield "## Latency and throughput"
    yield ""
    reference = {(row["batch"], row["threads"]): row["p50_ms"] for row in report["rows"] if row["format"] == "torch"}
    yield from table(
        ["format", "threads", "batch", "p50 (ms)", "p95 (ms)", "p99 (ms)", "samples/s", "times torch", "spread of rounds"],
        [_cells(row, reference.get((row["batch"], row["threads"]))) for row in report["rows"]],
    )
    yield ""
    yield (
        "A call goes from arrays to arrays. p95 needs 20 calls, p99 100. Where the slowest round took more than "
        f"{report['max_spread']:.0%} longer than the fastest, or other processes had the cores, nothing is stated."
    )
    yield ""
    yield "## Files"
    yield ""
    yield from table(
        ["format", "file", "answered by", "size (kB)", "load (ms)", "peak memory (MB)"],
        [
            [
                name, part["file"], f"{part['runtime']} {part['version']}, {part['provider']}" if part["runtime"] else "-",
                f"{part['size_bytes'] / 1000:.1f}", _short(part["load_ms"]), _short(part["peak_mb"]),
            ]
            for name, part in report["files"].items()
        ],
    )  # fmt: skip
    yield ""
    yield (
        "Load: from the file to the first answer, the runtime imported already; torch-compile compiles in it. Peak memory: the "
        "most that a process had, runtime and batches included."
    )


def _cells(row: Mapping[str, Any], torch_ms: float | None) -> list[str]:
    ratio = f"{torch_ms / row['p50_ms']:.2f}" if torch_ms and row["p50_ms"] else "-"
    rate = "-" if row["samples_per_s"] is None else f"{row['samples_per_s']:,.0f}".replace(",", " ")
    spread = "-" if row["spread"] is None else f"{row['spread']:.0%}"
    names = [row["format"], str(row["threads"]), str(row["batch"])]
    return [*names, *(_short(row[key]) for key in ("p50_ms", "p95_ms", "p99_ms")), rate, ratio, spread]


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
