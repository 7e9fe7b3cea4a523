"""MLflow runs: choose the store, begin a run, find one again, fetch its files, close those that a kill left open."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

from pipeline import store
from pipeline.config import UserError
from pipeline.data.prepare import read_json
from pipeline.output import say
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
        say(f"MLflow run {run.info.run_id} ({folder}) was left RUNNING by a process that is gone: now {ended}", error=True)


def close_after_failure() -> None:
    """Close the run of workers that have failed, if rank 0 could not do it itself. Says so if MLflow does not let it."""
    try:
        configure(check=False)
        close_abandoned(status="FAILED")
    except Exception as error:  # whatever a server, a proxy or a store raises: the job has failed for another reason
        say(f"MLflow at {uri()} cannot be told that the run failed ({str(error)[:200]})", error=True)


def _is_folder_of(folder: Path, run_id: str) -> bool:
    return bool(_read(folder / "config.json").get("mlflow_run_id") == run_id)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def find_run(text: str) -> Run:
    """Return the run that `--run` names: a run folder, or an MLflow run id whose artifacts are fetched if not here.

    They are laid in `runs/<model>-<first 8 of the id>`. Raises UserError where there is no such run.
    """
    if not text:
        raise UserError("run: nothing was given. Add --run FOLDER or --run MLFLOW_RUN_ID.")
    if Path(text).exists() or os.sep in text:
        return store.open_run(Path(text))
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
    folder = Path(found.data.tags.get("output_dir", ""))
    here = Path("runs") / f"{found.data.params.get('model', 'run')}-{text[:8]}"
    for candidate in (folder, here):
        if (candidate / "manifest.json").is_file():
            run = store.open_run(candidate)
            if run.mlflow_run_id == text:
                return run
    return _fetch(text, here)


def _fetch(run_id: str, folder: Path) -> Run:
    import mlflow
    from mlflow.exceptions import MlflowException

    if folder.exists():
        raise UserError(f"run={run_id} would be fetched into {folder}, which holds something else. Move that away.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        mlflow.artifacts.download_artifacts(run_id=run_id, dst_path=str(temporary))
        store.open_run(temporary)  # whole and unchanged, before it gets its name
        temporary.chmod(0o755)
        temporary.rename(folder)
    except MlflowException as error:
        raise UserError(f"run={run_id} has no artifacts that can be fetched: {str(error).splitlines()[0]}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return store.open_run(folder)
