"""Temperature scaling: probabilities that are those of logits / T, with T fitted on the validation samples.

Logits and decisions stay as they are. `export/config.json` keeps T, the files say it in their metadata, and the proof asks
both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pipeline import calibration
from pipeline.data.loader import open_split
from pipeline.errors import Failure, UserError
from pipeline.output import say
from pipeline.run import Run

if TYPE_CHECKING:
    from export.module import ExportModule

KEY = "temperature"  # of a file's metadata
_CHUNK = 512


def refuse(run: Run) -> None:
    """Raise UserError for a run whose probabilities cannot be calibrated."""
    why = ""
    if not run.task.has_decisions:
        why = f"has no effect on {run.data.task}, which has no probabilities. Leave --calibrate out"
    elif not run.data.counts.get("val"):
        why = (
            "needs validation samples, as those of the test must not be fitted to, and this run has none (val_split=0). Leave "
            "--calibrate out, or train with --val_split 0.1"
        )
    if why:
        raise UserError(f"calibrate={run.config.calibrate} {why}.")


def fit(module: ExportModule, data: Path, *, has_labels: bool) -> dict[str, Any]:
    """Return how a model is calibrated, as JSON values: the `temperature`, and what it does to the validation samples.

    Computed on one thread, so that it is the same each time. Raises Failure where no temperature is best.
    """
    split = open_split(data, "val")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            scores = np.concatenate([module(part)[0].numpy() for part in split.x.split(_CHUNK)])
    finally:
        torch.set_num_threads(before)
    target = split.y.numpy()
    try:
        found = calibration.fit_temperature(scores, target)
    except ValueError as error:
        raise Failure(f"calibrate=temperature: {error}. Export with --calibrate none.") from error
    decided = scores > 0 if has_labels else calibration.of_classes(scores).argmax(axis=1)[:, None]
    right = decided == (target if has_labels else target[:, None])
    told = {}
    for name, value in (("before", 1.0), ("after", found)):
        sure = calibration.confidence(scores, has_labels=has_labels, temperature=value)
        told[name] = {
            "nll": float(calibration.negative_log_likelihood(scores, target, temperature=value).mean()),
            "ece": float(calibration.expected_error(calibration.table(sure, right))),
        }
    told = {name: {key: float(f"{value:.6g}") for key, value in values.items()} for name, values in told.items()}
    nll, ece = (f"{told['before'][key]:.4g} -> {told['after'][key]:.4g}" for key in ("nll", "ece"))
    say(
        f"temperature {found:g}, fitted on {len(target)} validation samples: negative log-likelihood {nll}, expected "
        f"calibration error {ece}"
    )
    return {"method": "temperature", KEY: found, "split": "val", "num_samples": len(target), **told}


def kept(run: Run) -> dict[str, Any]:
    """Return how the exported files of a run were calibrated, as `export/config.json` says; empty where they were not."""
    path = run.folder / "export" / "config.json"
    found: dict[str, Any] = json.loads(path.read_text()).get("calibration", {}) if path.is_file() else {}
    return found


def wrong(found: Mapping[str, Any], temperature: float) -> Iterator[str]:
    """Say that a file tells another temperature than the run's, which was exported with none."""
    if temperature == 1 and KEY in found and found[KEY] != 1:
        yield f"its metadata says {KEY}={json.dumps(found[KEY])}, and the run was exported without one"


def said(found: Mapping[str, Any], temperature: float) -> float:
    """Return the temperature that a file tells in its metadata; where it tells none that can be one, the run's."""
    value = found.get(KEY)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0:
        return float(value)
    return temperature
