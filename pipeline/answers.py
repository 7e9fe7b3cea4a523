"""What a trained model gave for each sample that it was evaluated on: kept once, and read by everything that counts again.

A run's report and a comparison of runs so need neither the model nor its code, and a comparison not even the data. Which
samples they are is told by the SHA-256 of the prepared split: runs with the same one can be compared sample by sample.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import files, manifest
from pipeline.data.prepare import split_digest
from pipeline.errors import UserError
from pipeline.run import Run

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Scores (N, K) float32 of a run's best weights, targets as the data has them, and decisions of the targets' shape.

    A regression decides nothing: `decided` then is None. `split` is test or train, `split_sha256` says which samples they are.
    """

    scores: Array
    target: Array
    decided: Array | None
    split: str
    split_sha256: str


def keep(run: Run, arrays: Mapping[str, Array], *, data: Path, split: str) -> None:
    """Write the `scores`, `target` and, where there are any, `decided` of a split of the prepared folder `data`."""
    from safetensors.numpy import save

    about = {"mlflow_run_id": run.mlflow_run_id, "split": split, "split_sha256": split_digest(data, split)}
    with files.atomic(run.folder / manifest.ANSWERS) as path:  # one entry, as several have no order of their own
        path.write_bytes(save({k: a.copy() for k, a in arrays.items()}, {"about": json.dumps(about)}))


def read(run: Run) -> Answers:
    """Return what the last evaluation of a run has kept. Raises UserError where none has come to its end."""
    from safetensors import SafetensorError, safe_open

    manifest.need(run.folder, "evaluate")
    path = run.folder / manifest.ANSWERS
    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["about"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        owner, split, sha256 = (about[name] for name in ("mlflow_run_id", "split", "split_sha256"))
        found = Answers(
            scores=arrays["scores"], target=arrays["target"], decided=arrays.get("decided"), split=split, split_sha256=sha256
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"run={run.folder}: {manifest.ANSWERS} cannot be read ({error}). Make it anew: python -m pipeline evaluate --run "
            f"{run.folder}"
        ) from error
    if owner != run.mlflow_run_id:
        raise UserError(
            f"run={run.folder}: {manifest.ANSWERS} is of MLflow run {str(owner)[:80]}, and not of {run.mlflow_run_id}. Put the "
            "file back that was there."
        )
    return found
