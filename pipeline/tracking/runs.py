"""MLflow runs: choose the store, begin a run, find one again, fetch its files, close those that a kill left open."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import manifest, store
from pipeline.config import UserError
from pipeline.files import remove, written_as
from pipeline.store import Run


def uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")


def configure(*, check: bool = True) -> None:
    """Choose the store explicitly, and have a dead server answer in seconds.

    `check` asks it something, and raises UserError if it does not answer.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "5")
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # or a logged model would carry uv.lock and its hosts
    os.environ.setdefault("MLFLOW_LOG_UV_FILES", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the last words are ours: what to do next
    os.environ.setdefault("MLFLOW_TRACKING_URI", uri())
    import mlflow
    from mlflow.exceptions import MlflowException

    for name in ("mlflow", "alembic"):  # after the import, which sets them
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)  # it misses pip, which uv environments do without
    mlflow.set_tracking_uri(uri())
    if not check:
        return
    try:
        if wrapper := os.environ.get("MLFLOW_RUN_ID"):
            mlflow.MlflowClient().get_run(wrapper)
        else:
            mlflow.MlflowClient().search_experiments(max_results=1)
    except MlflowException as error:
        if os.environ.get("MLFLOW_RUN_ID") and uri().startswith("sqlite:///") and not uri().startswith("sqlite:////"):
            raise UserError(
                f"MLFLOW_TRACKING_URI={uri()} is relative, and `mlflow run` started this in another folder. Give an absolute "
                "path (sqlite:////...), or unset it."
            ) from error
        raise no_answer(error) from error


def no_answer(error: Exception) -> UserError:
    """Return what to tell the user when the server does not answer."""
    return UserError(
        f"MLFLOW_TRACKING_URI={uri()} does not answer ({str(error).splitlines()[0][:200]}). Start the server, or unset "
        "the variable to track in ./mlflow.db."
    )


def begin() -> str:
    """Return the id of the run that `mlflow run` opened for this process, or else of a new one."""
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.tracking.context.registry import resolve_tags

    if wrapper := os.environ.pop("MLFLOW_RUN_ID", None):
        return wrapper
    client = mlflow.MlflowClient()
    try:
        return str(client.create_run(experiment(client), tags=resolve_tags()).info.run_id)
    except MlflowException as error:
        raise no_answer(error) from error


def give_up(run_id: str) -> None:
    """Close a run that could not even begin."""
    from mlflow import MlflowClient

    MlflowClient().set_terminated(run_id, "FAILED")


def experiment(client: Any) -> str:
    """Return the id of the experiment that MLflow's variables name; the default one otherwise."""
    if number := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return number
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))


def nest_wrapper(run_id: str) -> None:
    """Show the run that `mlflow run` opened for this stage under the training's run, and write nothing else into it."""
    wrapper = os.environ.pop("MLFLOW_RUN_ID", None)
    if wrapper and wrapper != run_id:
        from mlflow import MlflowClient

        MlflowClient().set_tag(wrapper, "mlflow.parentRunId", run_id)


def close_abandoned(*, but: str = "", status: str = "KILLED") -> None:
    """Close the runs of this host that are still RUNNING though no process holds their folder any more.

    Their own `tracking.json` may know a better status than `status`: a job that ended while no server could be reached.
    """
    from mlflow import MlflowClient

    client = MlflowClient()
    experiments = [experiment(client)]
    host = socket.gethostname()
    for run in client.search_runs(experiments, f"attributes.status = 'RUNNING' and tags.host = '{host}'"):
        folder = Path(run.data.tags.get("output_dir", ""))
        if run.info.run_id == but or not _is_folder_of(folder, run.info.run_id) or store.in_use(folder):
            continue
        parts = _read(folder / store.TRACKING).get("parts", {})
        ended = parts.get("status", {}).get("value") or status
        client.set_terminated(run.info.run_id, ended)
        print(
            f"MLflow run {run.info.run_id} ({folder}) was left RUNNING by a process that is gone: now {ended}", file=sys.stderr
        )


def close_after_failure() -> None:
    """Close the run of workers that have failed, if rank 0 could not do it itself. Says so if MLflow does not let it."""
    try:
        configure(check=False)
        close_abandoned(status="FAILED")
    except Exception as error:  # whatever a server, a proxy or a store raises: the job has failed for another reason
        print(f"MLflow at {uri()} cannot be told that the run failed ({str(error)[:200]})", file=sys.stderr)


def _is_folder_of(folder: Path, run_id: str) -> bool:
    return bool(_read(folder / "config.json").get("mlflow_run_id") == run_id)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def find_run(text: str, *, stage: str = "") -> Run:
    """Return the run that `--run` names: a run folder, or an MLflow run id whose artifacts are fetched if not here.

    They are laid in `runs/<id>`. What `stage` makes anew is not checked. Raises UserError where there is no such run.
    """
    if not text:
        raise UserError("run: nothing was given. Add --run FOLDER or --run MLFLOW_RUN_ID.")
    if os.path.exists(text) or os.sep in text:
        return store.open_run(Path(text), stage=stage)
    if not re.fullmatch("[0-9a-f]{32}", text):  # it becomes the name of a folder
        raise UserError(
            f"run={text[:100]} is neither a folder nor an MLflow run id (32 digits from 0 to f). Look it up with `mlflow ui`."
        )
    configure()
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        found = mlflow.MlflowClient().get_run(text)
    except MlflowException as error:
        raise UserError(
            f"run={text} is neither a folder nor a run at {mlflow.get_tracking_uri()}. "
            "Look it up with `mlflow ui`, or set MLFLOW_TRACKING_URI to where it was trained."
        ) from error
    trained = Path(found.data.tags.get("output_dir", ""))  # a hint that anybody may have written: the folder has to agree
    here = Path("runs") / text
    for candidate in (trained, here):
        if _is_folder_of(candidate, text):
            return store.open_run(candidate, stage=stage)
    return _fetch(text, here)


def _fetch(run_id: str, folder: Path) -> Run:
    """Download what the run's manifest names, and nothing else, and give it its name when it is whole."""
    from mlflow.exceptions import MlflowException

    folder.parent.mkdir(parents=True, exist_ok=True)
    with _alone_in(folder.parent):
        if _is_folder_of(folder, run_id):  # another process has fetched it meanwhile
            return store.open_run(folder)
        if folder.exists():
            raise UserError(f"run={run_id} would be fetched into {folder}, which holds something else. Move that away.")
        for path in folder.parent.iterdir():
            if written_as(path.name) == folder.name:  # left by a process that was killed
                remove(path)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            _download(run_id, temporary)
            if (fetched := store.open_run(temporary).mlflow_run_id) != run_id:
                raise UserError(f"its config.json is of MLflow run {fetched}")
            temporary.chmod(0o755)
            temporary.rename(folder)
        except (MlflowException, OSError) as error:
            raise UserError(f"run={run_id} has no artifacts that can be fetched: {str(error).partition(chr(10))[0]}") from error
        except UserError as error:
            raise UserError(f"run={run_id}: what was fetched of it from {uri()} cannot be used: {error}") from error
        finally:
            remove(temporary)
    return store.open_run(folder)


def _download(run_id: str, folder: Path) -> None:
    """Fetch the manifest of a run, what it names, and the journals."""
    import mlflow

    there = {item.path for item in mlflow.MlflowClient().list_artifacts(run_id)}
    if manifest.MANIFEST not in there:
        raise UserError(f"it has no {manifest.MANIFEST} there, so it was not trained to the end, or not by this program")
    mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=manifest.MANIFEST, dst_path=str(folder))
    for name in (*manifest.read(folder)[1], *(there & set(store.JOURNALS))):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, dst_path=str(path.parent))


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process fetches into a folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
