"""What a report says of exported files: their proof, their sizes and speed, and where all of a run came from."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import manifest
from pipeline.config import RUNTIME_FIELDS
from pipeline.files import read_json
from pipeline.resolve import applicable
from pipeline.run import Run, parse_rows
from pipeline.tracking.journal import Outbox

_OWN = ("model", "dataset", "loss", "weights")  # fields that may hold a path of this machine


def parity(run: Run) -> dict[str, Any] | None:
    """Return parity.json with all its files in one list, if a proof has come to its end."""
    if not manifest.is_sealed(run.folder, "verify"):
        return None
    found = read_json(run.folder / manifest.REPORTS[0])
    parts = found["artifacts"] | found.get("rejected", {})
    return {"rejected": {}} | found | {"files": [part | {"format": kind, "rejected": kind in found.get("rejected", {})}
                              for kind, part in parts.items()]}  # fmt: skip


def exported(run: Run, proof: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return name, format, size and SHA-256 of each exported file that the manifest names."""
    kinds = {part["sha256"]: part["format"] for part in (proof or {}).get("files", [])}
    found = []
    for name, digest in manifest.read(run.folder)[1].items():
        if name.startswith(("export/model.", "rejected/model.")) and not name.endswith(".json"):
            kind = kinds.get(digest) or _format(name)
            found.append({"name": name, "format": kind, "sha256": digest, "size": (run.folder / name).stat().st_size})
    return found


def _format(name: str) -> str:
    """Return the format of a file whose proof is not there, by its name."""
    from export.artifacts import FILES

    return next(kind for kind, file in FILES.items() if file == Path(name).name)


def benchmark(run: Run) -> dict[str, Any] | None:
    """Return the rows of benchmark.json and what it says of each format, if it was made and is whole."""
    if manifest.BENCHMARK not in manifest.read(run.folder)[1]:
        return None
    found: dict[str, Any] = read_json(run.folder / manifest.BENCHMARK)
    return {"rows": found.get("rows", []), "files": found.get("files", {})}


def calibrated(run: Run) -> dict[str, Any] | None:
    """Return how exported probabilities were calibrated, if they were."""
    from export import temperature

    return (temperature.kept(run) or None) if manifest.is_sealed(run.folder, "export") else None


def recipe(run: Run) -> dict[str, str]:
    """Return the fields that had an effect on the training, as texts that name no folder of this machine."""
    values = {name: value for name, value in applicable(run.config).items() if name not in RUNTIME_FIELDS}
    return {name: Path(str(value)).name if name in _OWN else str(value) for name, value in values.items()}


def lineage(run: Run, split_sha256: str) -> dict[str, str]:
    """Return where a run came from, and the hashes by which its parts are known."""
    sealed = manifest.read(run.folder)[1]
    values = {
        "MLflow run": run.mlflow_run_id, "git commit": run.git_commit or "unknown",
        "data (SHA-256 of all splits)": run.data.sha256, "evaluated samples (SHA-256)": split_sha256,
        "weights.safetensors (SHA-256)": sealed[manifest.WEIGHTS], "config.json (SHA-256)": sealed["config.json"],
        manifest.ANSWERS + " (SHA-256)": sealed[manifest.ANSWERS],
    }  # fmt: skip
    return values | {f"own {name} {code['name']} (SHA-256)": code["sha256"] for name, code in run.code.items()}


def moments(run: Run) -> dict[str, str]:
    """Return when a run was trained and where MLflow serves its model from: what differs when all is done again."""
    rows = parse_rows((run.folder / manifest.METRICS).read_bytes(), run.folder / manifest.METRICS)
    steps = [row["time"] / 1000 for row in rows if row["step"]]
    found = {}
    if steps:
        first, last = (datetime.fromtimestamp(t, UTC) for t in (min(steps), max(steps)))
        found["trained"] = f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"
    if address := Outbox(run.folder, run.mlflow_run_id).value("tags", {}).get("model_uri"):
        found["MLflow model"] = address
    return found
