"""How the sides of a measurement are paired, and how what was seen is summed up, shown and kept."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import statistics
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Pair = tuple[float, float]


@dataclass(frozen=True)
class Row:
    """One line of the table: both sides, and the ratios by which the target is judged, one for each pair."""

    number: int  # of the target in docs/performance.md
    what: str
    unit: str
    ours: Sequence[float]
    theirs: Sequence[float]
    ratios: Sequence[float]
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def met(self) -> bool:
        return (self.at_least is None or self.ratio >= self.at_least) and (self.at_most is None or self.ratio <= self.at_most)

    @property
    def target(self) -> str:
        goals = ((">=", self.at_least), ("<=", self.at_most))
        return " ".join(f"{sign} {goal:g}" for sign, goal in goals if goal is not None)


def pairs(ours: Callable[[], float], theirs: Callable[[], float], count: int, *, warm_up: bool = True) -> list[Pair]:
    """Measure both sides in turn, `count` times, and each first every other time: a noisy machine then hits both.

    With `warm_up` a first pair is thrown away.
    """
    seen = []
    for number in range(count + warm_up):
        first, second = (ours, theirs) if number % 2 else (theirs, ours)
        a, b = first(), second()
        if number or not warm_up:
            seen.append((a, b) if number % 2 else (b, a))
    return seen


def worker(**more: Any) -> ProcessPoolExecutor:
    """Return a process for one side of a measurement, which ends when this one is killed: it would disturb the next."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_end_with_parent, **more)


def _end_with_parent() -> None:
    def end() -> None:
        parent = multiprocessing.parent_process()
        assert parent
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def row(number: int, what: str, unit: str, seen: Sequence[Pair], ratio: Callable[[float, float], float], **more: Any) -> Row:
    """Return the line for `seen`, pairs of (ours, theirs)."""
    return Row(number, what, unit, [a for a, _ in seen], [b for _, b in seen], [ratio(a, b) for a, b in seen], **more)


def _text(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.4g}" if values else "-"


def table(rows: Sequence[Row]) -> str:
    """Return the lines as a Markdown table."""
    lines = ["| # | what | ours | other side | ratio (median) | smallest to largest | n | target | |", "|" + "---|" * 9]
    for r in rows:
        spread = f"{min(r.ratios):.3g} to {max(r.ratios):.3g}"
        verdict = (("met" if r.met else "**missed**") if r.target else "") + (f" ({r.note})" if r.note else "")
        lines.append(
            f"| {r.number} | {r.what} ({r.unit}) | {_text(r.ours)} | {_text(r.theirs)} | {r.ratio:.3g} | {spread} "
            f"| {len(r.ratios)} | {r.target} | {verdict} |"
        )
    return "\n".join(lines)


def versions() -> dict[str, Any]:
    """Return what was measured with: versions, processor, cores, and what `--precision auto` means on it."""
    names = ("torch", "torchvision", "onnxruntime", "mlflow", "lightning", "pytorch-ignite", "skorch", "accelerate")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    cpu = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    return found | {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "precision": hardware_precision()}


def hardware_precision() -> str:
    """Return what `--precision auto` means to the measurements: bf16 where the hardware computes in it."""
    import torch

    from pipeline.precision import computes_bf16

    return "bf16" if computes_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu")) else "fp32"


def options(description: str | None) -> argparse.ArgumentParser:
    """Return the flags that every measurement takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default="", help="folder with the real MNIST, which some measurements need")
    parser.add_argument("--cache_dir", default="~/.cache/trainyard", help="folder for prepared tensors")
    parser.add_argument(
        "--precision", default="auto", choices=("fp32", "bf16", "auto"),
        help="of the trainings in rows 1 and 3 to 6; row 2 takes fp32 and what auto means here, in turn",
    )  # fmt: skip
    parser.add_argument("--pairs", type=int, default=5, help="how often each side is measured")
    parser.add_argument("--json", default="", help="file for the figures")
    return parser


def run(
    measure: Callable[[argparse.Namespace], list[Row]], description: str | None, *,
    flags: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> None:  # fmt: skip
    """Measure, print the table, and write the figures where `--json` says; `flags` adds a measurement's own flags."""
    parser = options(description)
    flags(parser)
    given = parser.parse_args()
    given.precision = hardware_precision() if given.precision == "auto" else given.precision
    rows = measure(given)
    print(f"\n{', '.join(f'{k} {v}' for k, v in versions().items())}\n\n{table(rows)}", flush=True)
    if given.json:
        content = {
            "versions": versions(),
            "rows": [vars(r) | {"ratio": r.ratio, "met": r.met, "target": r.target} for r in rows],
        }
        Path(given.json).write_text(json.dumps(content, indent=1) + "\n")
