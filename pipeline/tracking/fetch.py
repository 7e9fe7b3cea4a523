"""What MLflow has of a run, brought here: its sealed files for a later stage, or its checkpoints for a rank 0 on another host.

`--upload_checkpoints true` puts checkpoints there. What this host has already is kept where it is as new.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pipeline import manifest
from pipeline import run as run_folder
from pipeline.errors import UserError
from pipeline.files import locked, remove, written_as
from pipeline.output import say
from pipeline.run import Run
from pipeline.tracking import connection, runs
from pipeline.tracking.journal import Journal
from pipeline.tracking.sender import NOT_METRICS

_FETCHED = ("checkpoints", *manifest.JOURNALS)  # what a takeover that was cut off may have left, before config.json


def find_run(text: str, *, stage: str = "", trust_code: bool = False) -> Run:
    """Return the run that `--run` names: a run folder, or an MLflow run id whose artifacts are fetched if not here.

    They are laid in `runs/<id>`. What `stage` makes anew is not checked. Raises UserError where there is no such run, or where
    it was fetched and its model or its loss is code of somebody whom `trust_code` does not trust.
    """
    run = _find_run(text, stage)
    own = run.own_files
    if own and run.folder.name == run.mlflow_run_id and not trust_code:  # the name of a folder that was fetched
        raise UserError(
            f"run={text} was fetched, and its {' and its '.join(own)} {'are' if len(own) > 1 else 'is'} code that would be run "
            f"here ({' and '.join(own.values())}). Read it, and add --trust_code true."
        )
    return run


def _find_run(text: str, stage: str) -> Run:
    if not text:
        raise UserError("run: nothing was given. Add --run FOLDER or --run MLFLOW_RUN_ID.")
    if os.path.exists(text) or os.sep in text:
        return Run.open(Path(text), stage=stage)
    if not re.fullmatch("[0-9a-f]{32}", text):  # it becomes the name of a folder
        raise UserError(
            f"run={text[:100]} is neither a folder nor an MLflow run id (32 digits from 0 to f). Look it up with `mlflow ui`."
        )
    connection.configure()
    import mlflow
    from mlflow.exceptions import MlflowException

    def get() -> Any:
        try:
            return mlflow.MlflowClient().get_run(text)
        except MlflowException as error:
            if not connection.is_unseen(error):
                raise
            raise UserError(
                f"run={text} is neither a folder nor a run that can be seen at {connection.shown()}. "
                "Look it up with `mlflow ui`, or set MLFLOW_TRACKING_URI to where it was trained."
            ) from error

    trained = Path(
        connection.ask(get).data.tags.get("output_dir", "")
    )  # a hint that anybody may have written: the folder has to agree
    here = Path("runs") / text
    for candidate in (trained, here):
        if runs.is_folder_of(candidate, text):
            return Run.open(candidate, stage=stage)
    return _fetch_run(text, here)


def _fetch_run(run_id: str, folder: Path) -> Run:
    """Download what the run's manifest names, and nothing else, and give it its name when it is whole."""
    from mlflow.exceptions import MlflowException

    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(f".{folder.name}.lock")
    with locked(lock):
        if runs.is_folder_of(folder, run_id):  # another process has fetched it meanwhile
            remove(lock)
            return Run.open(folder)
        if folder.exists():
            raise UserError(f"run={run_id} would be fetched into {folder}, which holds something else. Move that away.")
        for path in folder.parent.iterdir():
            if written_as(path.name) == folder.name:  # left by a process that was killed
                remove(path)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            _download_sealed(run_id, temporary)
            if (fetched := Run.open(temporary).mlflow_run_id) != run_id:
                raise UserError(f"its config.json is of MLflow run {fetched}")
            temporary.chmod(0o755)
            temporary.rename(folder)
        except (MlflowException, OSError) as error:
            raise UserError(f"run={run_id} has no artifacts that can be fetched: {connection.first_line(error)}") from error
        except UserError as error:
            raise UserError(
                f"run={run_id}: what was fetched of it from {connection.shown()} cannot be used: {error}"
            ) from error
        finally:
            remove(temporary)
            remove(lock)
    return Run.open(folder)


def _download_sealed(run_id: str, folder: Path) -> None:
    """Fetch the manifest of a run, what it names, and the journals."""
    import mlflow

    there = {item.path for item in mlflow.MlflowClient().list_artifacts(run_id)}
    if manifest.MANIFEST not in there:
        raise UserError(f"it has no {manifest.MANIFEST} there, so it was not trained to the end, or not by this program")
    mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=manifest.MANIFEST, dst_path=str(folder))
    for name in (*manifest.read(folder)[1], *(there & set(manifest.JOURNALS))):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, dst_path=str(path.parent))


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
        elif Run.open(folder, check=False).mlflow_run_id != run_id or _newest(folder) >= step:
            return
        _fetch_checkpoints(folder, run_id)
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


def _fetch_checkpoints(folder: Path, run_id: str) -> None:
    run_folder.ensure_writable(folder)
    with run_folder.locked(folder):
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".takeover."))
        try:
            _download_checkpoints(run_id, temporary)
            (folder / "checkpoints").mkdir(exist_ok=True)
            for note in (temporary / "checkpoints").glob("slot-*.json"):
                path = folder / "checkpoints" / f"step-{int(json.loads(note.read_text())['step']):09d}.pt"
                if note.with_suffix(".pt").exists() and not path.with_suffix(".json").exists():
                    note.with_suffix(".pt").rename(path)
                    note.rename(path.with_suffix(".json"))
            for name in (*manifest.JOURNALS, *manifest.CODE.values(), "config.json"):  # which makes it a run
                if (temporary / name).exists() and not (folder / name).exists():
                    (temporary / name).rename(folder / name)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"output_dir={folder}: the checkpoints of run {run_id} cannot be fetched ({connection.first_line(error)})."
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _add_rows(folder / manifest.METRICS, run_id)


def _download_checkpoints(run_id: str, folder: Path) -> None:
    """Fetch what a resumed run needs. Raises ValueError if some of it names another run than `run_id`."""
    import mlflow

    names = {item.path for item in mlflow.MlflowClient().list_artifacts(run_id)}
    for name in sorted(names & {"config.json", "checkpoints", *manifest.CODE.values(), *manifest.JOURNALS}):
        mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, dst_path=str(folder))
    for path in (folder / "config.json", *(folder / "checkpoints").glob("slot-*.json")):
        if (owner := json.loads(path.read_text())["mlflow_run_id"]) != run_id:
            raise ValueError(f"its {path.relative_to(folder)} is of run {owner}")


def _add_rows(path: Path, run_id: str) -> None:
    """Append the metrics that MLflow has and the journal has not: those of steps behind the checkpoint."""
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
    for (step, moment), metrics in sorted(missing.items()):
        journal.append({"step": step, "time": moment} | metrics)
    journal.close()
