"""The MLflow run of a search: the parent of its trainings. What it holds can be told again: a server may fail meanwhile."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.output import say
from pipeline.tracking import connection, runs
from pipeline.tracking.connection import redacted

CHILD = "mlflow.parentRunId"  # the tag by which MLflow shows a run below another one
_LONGEST = 500  # characters of a parameter's value in a search, of the 6 000 that MLflow takes


def begin(*, dataset: str, name: str, tags: Mapping[str, str], params: Mapping[str, str]) -> str:
    """Open the run of a new search and return its id. Raises UserError where MLflow does not answer."""
    from mlflow import MlflowClient
    from mlflow.entities import Param

    connection.configure()
    runs.check_new(dataset)
    run_id = runs.create_run(dataset=dataset, tags=dict(tags))
    told = [Param(key, redacted(value)[:_LONGEST]) for key, value in params.items()]

    def describe() -> None:
        client = MlflowClient()
        known = client.get_run(run_id).data.params
        client.log_batch(run_id, params=[param for param in told if param.key not in known])
        if runs.is_made_up(client.get_run(run_id).info.run_name or ""):
            client.update_run(run_id, name=name)

    connection.ask(describe)
    return run_id


def join(run_id: str) -> None:
    """Be one of a search's workers: its run is RUNNING, and this process's. Raises UserError where MLflow has no such run."""
    from mlflow import MlflowClient, MlflowException
    from mlflow.entities import RunTag

    connection.configure(check=False)
    runs.set_parent_run(run_id)

    def reopen() -> None:
        client = MlflowClient()
        try:
            client.log_batch(run_id, tags=[RunTag(key, value) for key, value in runs.owner().items()])
        except MlflowException as error:
            if not connection.is_missing(error):
                raise
            raise UserError(
                f"MLFLOW_TRACKING_URI={connection.shown()} has no run {run_id}, under which this study's trials are. Set it to "
                "where the study was begun, or give another --study."
            ) from error
        client.update_run(run_id, status="RUNNING")

    connection.ask(reopen)


def tell(run_id: str, metrics: Mapping[str, float], *, step: int = 0, tags: Mapping[str, str] | None = None) -> None:
    """Log metrics and tags; where MLflow does not take them that is said, and the search goes on."""
    from mlflow import MlflowClient
    from mlflow.entities import Metric, RunTag

    now = time.time_ns() // 1_000_000
    rows = [Metric(name, float(value), now, step) for name, value in metrics.items()]
    _try(lambda: MlflowClient().log_batch(run_id, metrics=rows, tags=[RunTag(k, v) for k, v in (tags or {}).items()]))


def end(run_id: str, status: str, *, files: Sequence[tuple[Path, str]] = ()) -> None:
    """Send files, each into a folder of artifacts, and say how the search ended."""
    from mlflow import MlflowClient

    def close() -> None:
        client = MlflowClient()
        for path, folder in files:
            client.log_artifact(run_id, str(path), folder or None)
        client.set_terminated(run_id, status)

    _try(close)


def child_id(folder: Path) -> str:
    """Return the MLflow run of a trial's folder; empty where there is none."""
    from pipeline.files import read_json

    try:
        return str(read_json(folder / "config.json")["mlflow_run_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _try(call: Any) -> None:
    try:
        connection.ask(call)
    except UserError as error:
        say(f"the search's MLflow run has not taken everything: {error}", error=True)
