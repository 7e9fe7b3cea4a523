"""Rank 0 on another host than before: bring the run's configuration, checkpoints and rows here from MLflow.

`--upload_checkpoints true` puts them there. What this host has already is kept where it is as new.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pipeline import run as run_folder
from pipeline.config import UserError
from pipeline.output import say
from pipeline.tracking import connection, runs
from pipeline.tracking.journal import Journal
from pipeline.tracking.sender import NOT_METRICS

_FETCHED = ("checkpoints", *run_folder.JOURNALS)  # what a takeover that was cut off may have left, before config.json


def take_over(folder: Path, *, job_id: str) -> None:
    """Make `folder` hold the newest checkpoint of the torchrun job `job_id`, if MLflow has a newer one than it.

    Does nothing where no such job was tracked. Raises UserError if MLflow does not answer and there is no run here either.
    """
    from mlflow.exceptions import MlflowException

    connection.configure(check=False)
    try:
        found = _find(job_id, str(folder))
        if not found:
            return
        run_id, step = found.info.run_id, int(found.data.tags["checkpoint_step"])
        if not run_folder.is_run_dir(folder):
            run_folder.ensure_new(folder, but=_FETCHED)
        elif run_folder.open_run(folder, check=False).mlflow_run_id != run_id or _newest(folder) >= step:
            return
        _fetch(folder, run_id)
    except MlflowException as error:
        if not run_folder.is_run_dir(folder):
            raise connection.unreachable_error(error) from error
        say(f"MLflow at {connection.shown()} does not answer; going on from the checkpoints in {folder}")
        return
    say(f"run {run_id} was taken over from MLflow into {folder}, at step {step}")


def _find(job_id: str, output_dir: str) -> Any:
    """Return the newest MLflow run of a job with this run folder that has uploaded something, or None."""
    if not job_id or "'" in job_id:
        return None
    for run in runs.search(f"tags.job_id = '{job_id}'"):
        if run.data.params.get("output_dir") == output_dir and "checkpoint_step" in run.data.tags:
            return run
    return None


def _newest(folder: Path) -> int:
    steps = [int(path.stem.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*.json")]
    return max(steps, default=0)


def _fetch(folder: Path, run_id: str) -> None:
    run_folder.ensure_writable(folder)
    with run_folder.locked(folder):
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".takeover."))
        try:
            _download(run_id, temporary)
            (folder / "checkpoints").mkdir(exist_ok=True)
            for note in (temporary / "checkpoints").glob("slot-*.json"):
                path = folder / "checkpoints" / f"step-{int(json.loads(note.read_text())['step']):09d}.pt"
                if note.with_suffix(".pt").exists() and not path.with_suffix(".json").exists():
                    note.with_suffix(".pt").rename(path)
                    note.rename(path.with_suffix(".json"))
            for name in (*run_folder.JOURNALS, "config.json"):  # it is a run once its config.json is there
                if (temporary / name).exists() and not (folder / name).exists():
                    (temporary / name).rename(folder / name)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"output_dir={folder}: the checkpoints of run {run_id} cannot be fetched ({connection.first_line(error)})."
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _add_rows(folder / run_folder.METRICS, run_id)


def _download(run_id: str, folder: Path) -> None:
    """Fetch what a resumed run needs. Raises ValueError if some of it names another run than `run_id`."""
    import mlflow

    names = {item.path for item in mlflow.MlflowClient().list_artifacts(run_id)}
    for name in sorted(names & {"config.json", "checkpoints", *run_folder.JOURNALS}):
        mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, dst_path=str(folder))
    for path in (folder / "config.json", *(folder / "checkpoints").glob("slot-*.json")):
        if (owner := json.loads(path.read_text())["mlflow_run_id"]) != run_id:
            raise ValueError(f"its {path.relative_to(folder)} is of run {owner}")


def _add_rows(path: Path, run_id: str) -> None:
    """Append the figures that MLflow has and the journal has not: those of steps behind the checkpoint."""
    from mlflow import MlflowClient

    client = MlflowClient()
    journal = Journal(path)
    known = {(row["step"], name) for row in journal.all_rows() for name in row}
    missing: dict[tuple[int, int], dict[str, float]] = {}
    for name in client.get_run(run_id).data.metrics:
        if not name.startswith("system/") and name not in NOT_METRICS:
            for metric in client.get_metric_history(run_id, name):
                if (metric.step, name) not in known:
                    missing.setdefault((metric.step, metric.timestamp), {})[name] = metric.value
    for (step, moment), figures in sorted(missing.items()):
        journal.append({"step": step, "time": moment} | figures)
    journal.close()
