"""Where a run's derived files lie: in `export/`, or in `rejected/` with the reason beside it, whichever the last proof decided.

A proof judges both, so a file that was rejected comes back when it passes: with other limits, say. Cut off anywhere, the
manifest names the one place that counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from export.artifacts import FOLDER, REJECTED, rejection
from export.formats import FORMATS
from export.gates import Limits
from pipeline import files, manifest
from pipeline.config import RunConfig, format_names
from pipeline.run import Run


def exported(run: Run) -> dict[str, str]:
    """Return the formats that a run was exported to, as `export/config.json` says, and where each one's file lies."""
    formats = _asked(run).get("formats", RunConfig.formats)
    return {name: _place(run, name) for name in format_names(formats) if name in FORMATS}


def limits(run: Run) -> Limits:
    """Return the limits that a run was exported with."""
    asked = _asked(run)
    names = ("max_metric_drop", "min_speedup")
    return Limits(**{name: asked.get(name, getattr(RunConfig, name)) for name in names})


def settle(run: Run, parts: Mapping[str, Mapping[str, Any]]) -> None:
    """Have each derived file of a run lie where its problems, or that there are none, say that it belongs."""
    for name, part in parts.items():
        here = _place(run, name)
        there = f"{REJECTED if part['problems'] else FOLDER}/{FORMATS[name].file}"
        if here != there:
            manifest.move(run.folder, run.mlflow_run_id, here, there)
        for stray in {f"{folder}/{FORMATS[name].file}" for folder in (FOLDER, REJECTED)} - {there}:
            (run.folder / stray).unlink(missing_ok=True)  # of a move that was cut off
        if part["problems"]:
            told = {key: part[key] for key in ("sha256", "problems", "metric")} | {"file": FORMATS[name].file}
            gate = part["gate"] | ({} if part["gate"]["min_speedup"] else {"speedup": None})  # no clock, where none was asked
            files.write_json(run.folder / rejection(name), {"format": name, **told, "gate": gate})
        else:
            (run.folder / rejection(name)).unlink(missing_ok=True)
    folder = run.folder / REJECTED
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _asked(run: Run) -> dict[str, Any]:
    path = run.folder / FOLDER / "config.json"
    asked: dict[str, Any] = json.loads(path.read_text())["config"] if path.is_file() else {}
    return asked


def _place(run: Run, name: str) -> str:
    """Return the name of a format's file: the one that the manifest names, or else one that is there."""
    places = [f"{folder}/{FORMATS[name].file}" for folder in (FOLDER, REJECTED)]
    sealed = manifest.read(run.folder)[1]
    there = [place for place in places if place in sealed] or [place for place in places if (run.folder / place).is_file()]
    return (there or places)[0]
