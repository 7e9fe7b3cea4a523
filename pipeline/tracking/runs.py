"""MLflow runs: create one, search them, close those that a kill left open."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from pipeline import manifest
from pipeline import run as run_folder
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.output import say
from pipeline.tracking.connection import ask, is_missing, redacted, shown, unreachable_error
from pipeline.tracking.connection import configure as configure

_RUN_ID = re.compile(r"[A-Za-z0-9][\w-]{7,63}")  # MLflow's are 32 hexadecimal digits; a folder is named by the first eight
_EXPERIMENT_ID = re.compile(r"\w[\w-]{0,63}")
_LONGEST_NAME = 250  # characters of an experiment's, so that every database takes it
_CLOCK = 2.0  # s by which the time of birth of one and the same process may seem to differ


def owner() -> dict[str, str]:
    """Return the tags that tell which process works on a run: a process id is given again, with another time of birth."""
    started = psutil.Process().create_time()
    return {"host": socket.gethostname(), "pid": str(os.getpid()), "process_started": f"{started:.2f}"}


def create_run(*, dataset: str = "Default", output_dir: str = "", tags: Mapping[str, str] | None = None) -> str:
    """Return the id of the run that `mlflow run` opened for this process, or else of a new one.

    Whose it is goes to MLflow in the one call that begins it: a process that is killed after that leaves nothing RUNNING that
    a later start could not close. The run gets the name of its folder later, unless it has one that somebody gave it. More
    `tags` go with the same call: a run with a parent is below it from its first moment.
    """
    from mlflow import MlflowClient
    from mlflow.entities import RunTag
    from mlflow.tracking.context.registry import resolve_tags

    own = owner() | ({"output_dir": str(Path(output_dir).resolve())} if output_dir else {}) | dict(tags or {})
    context = {key: redacted(str(value)) for key, value in resolve_tags().items()}
    if Path(context.get("mlflow.source.name", "")).parts[-2:] == ("pipeline", "__main__.py"):  # of which a table shows the end
        context["mlflow.source.name"] = "trainyard"
    if name := os.environ.get("MLFLOW_RUN_NAME"):
        context["mlflow.runName"] = name
    wrapper = os.environ.pop("MLFLOW_RUN_ID", None)

    def new_run() -> str:
        client = MlflowClient()
        if wrapper:
            found = client.get_run(wrapper).data.tags  # `mlflow run` notes where the project came from, with the password
            clean = {k: redacted(v) for k, v in found.items() if redacted(v) != v}
            client.log_batch(wrapper, tags=[RunTag(k, v) for k, v in (clean | own).items()])
            return wrapper
        experiment, begun = _experiment(client, dataset), time.time_ns() // 1_000_000
        run_id = client.create_run(experiment, start_time=begun, tags=context | own).info.run_id
        if not _RUN_ID.fullmatch(str(run_id)):
            raise unreachable_error(f"it names a new run {str(run_id)[:80]!r}, which is no id")
        _remove_twins(client, experiment, str(run_id), begun, own)
        return str(run_id)

    return ask(new_run)


def _remove_twins(client: Any, experiment: str, run_id: str, begun: int, own: Mapping[str, str]) -> None:
    """Remove the runs of the same call: MLflow asks again where an answer was lost, and each time there is one more."""
    from mlflow import MlflowException

    for run in client.search_runs([experiment], f"attributes.start_time = {begun} and tags.pid = '{own['pid']}'"):
        if run.info.run_id != run_id and own.items() <= run.data.tags.items():
            client.set_terminated(run.info.run_id, "KILLED")
            with suppress(MlflowException):  # in an experiment that a colleague began, not everybody may delete
                client.delete_run(run.info.run_id)


def abort_run(run_id: str, status: str = "FAILED") -> None:
    """Close a run that could not even begin. Where MLflow does not let it, a later start will."""
    from mlflow import MlflowClient

    try:
        ask(lambda: MlflowClient().set_terminated(run_id, status))
    except UserError as error:
        say(f"MLflow run {run_id} could not be closed: {error}", error=True)


def is_made_up(name: str) -> bool:
    """Tell whether MLflow made up a run's name, as `fun-hare-638`, because nobody gave it one."""
    from mlflow.utils import name_utils

    words = name.lower().split("-")
    if len(words) != 3 or not words[2].isdigit():
        return False
    return all(
        word in {known.lower() for known in getattr(name_utils, names, [word])}
        for word, names in zip(words, ("_GENERATOR_PREDICATES", "_GENERATOR_NOUNS"), strict=False)
    )


def check_new(dataset: str) -> None:
    """Raise UserError where MLflow's variables, or the name of the data set, leave no place for a new run; create nothing."""
    from mlflow import MlflowClient

    if wrapper := os.environ.get("MLFLOW_RUN_ID"):
        found = ask(lambda: MlflowClient().get_run(wrapper))
        if found.info.status == "FINISHED" and "data_sha256" in found.data.tags:
            raise UserError(
                f"MLFLOW_RUN_ID={wrapper} is a training that has finished. Unset it, or all metrics would be mixed."
            )
    else:
        ask(lambda: _experiment(MlflowClient(), dataset, create=False))


def _experiment(client: Any, dataset: str, *, create: bool = True) -> str:
    """Return the id of the experiment that MLflow's variables name, or else of the one that is named like the data set.

    "" where it is not there and need not be created. Raises UserError where there cannot be one.
    """
    from mlflow import MlflowException

    number, named = (os.environ.get(f"MLFLOW_EXPERIMENT_{which}") for which in ("ID", "NAME"))
    name = named or dataset
    given = f"MLFLOW_EXPERIMENT_ID={number[:80]}" if number else f"MLFLOW_EXPERIMENT_NAME={named[:80]}" if named else ""
    other = "Give another, or unset it." if given else "Name another: MLFLOW_EXPERIMENT_NAME."
    if not number and len(name) > _LONGEST_NAME:
        raise UserError(f"{given or name[:80]}... is a name of {len(name)} characters. Give one of at most {_LONGEST_NAME}.")
    try:
        found = client.get_experiment(number) if number else client.get_experiment_by_name(name)
    except MlflowException as error:
        if not is_missing(error):
            raise
        if not number:
            found = None
        else:
            raise UserError(f"{given} is not an experiment at {shown()}. {other}") from error
    if not found and create:
        try:
            return str(client.create_experiment(name))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another process began it at the same moment
    if not found:
        return ""
    if not _EXPERIMENT_ID.fullmatch(str(found.experiment_id)):
        raise unreachable_error(f"it names an experiment {str(found.experiment_id)[:80]!r}, which is no id")
    if found.lifecycle_stage == "deleted":
        raise UserError(
            f"{given or 'the experiment ' + name} is an experiment that was deleted. {other} Or restore it: "
            f"mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    if number and named and found.name != named:
        raise UserError(
            f"MLFLOW_EXPERIMENT_ID={number[:80]} is the experiment {found.name}, and MLFLOW_EXPERIMENT_NAME says "
            f"{named[:80]}. Unset one of them."
        )
    return str(found.experiment_id)


def search(query: str) -> Iterator[Any]:
    """Yield the MLflow runs that a filter finds, in whatever experiment, the newest first."""
    from mlflow import MlflowClient

    client = MlflowClient()
    experiments, token = [], None
    while True:
        page = client.search_experiments(page_token=token)
        experiments += [each.experiment_id for each in page]
        if not (token := page.token):
            break
    while True:
        runs = client.search_runs(experiments, query, order_by=["attributes.start_time DESC"], page_token=token)
        yield from runs
        if not (token := runs.token):
            return


def set_parent_run(run_id: str, more: Mapping[str, str] | None = None) -> None:
    """Show the run that `mlflow run` opened for this stage under the training's run, with `more` tags; it gets no metrics.

    It is told whose it is, as a training's is, so that it too is closed if this process and `mlflow run` are killed.
    """
    wrapper = os.environ.pop("MLFLOW_RUN_ID", None)
    if wrapper and wrapper != run_id:
        from mlflow import MlflowClient
        from mlflow.entities import RunTag

        tags = [RunTag(key, value) for key, value in (owner() | {"mlflow.parentRunId": run_id} | dict(more or {})).items()]
        ask(lambda: MlflowClient().log_batch(wrapper, tags=tags))


def close_abandoned(*, but: str = "", status: str = "KILLED") -> None:
    """Close the runs of this host that are still RUNNING though nobody works on them any more.

    That is: no process holds their folder, or, where there is no such folder, the process that began them is gone. One that
    lives after all, on a host of the same name, reopens its run. Their own `tracking.json` may know a better status than
    `status`: a job that ended while no server could be reached.
    """
    from mlflow import MlflowClient

    for run in list(search(f"attributes.status = 'RUNNING' and tags.host = '{socket.gethostname()}'")):
        run_id, tags = run.info.run_id, run.data.tags
        folder = Path(tags["output_dir"]) if tags.get("output_dir") else None
        begun = folder is not None and is_folder_of(folder, run_id)
        if run_id == but or (run_folder.in_use(folder) if folder and begun else not is_gone(tags)):
            continue
        parts = _read(folder / manifest.TRACKING).get("parts", {}) if folder and begun else {}
        ended = parts.get("status", {}).get("value") or status
        MlflowClient().set_terminated(run_id, ended)
        where = folder if begun else "which had not begun"
        say(f"MLflow run {run_id} ({where}) was left RUNNING by a process that is gone: now {ended}", error=True)


def is_gone(tags: Mapping[str, str]) -> bool:
    """Tell whether the process of this host that `owner` noted has ended; False where none was noted."""
    try:
        pid, started = int(tags["pid"]), float(tags["process_started"])
        process = psutil.Process(pid)
        return abs(process.create_time() - started) > _CLOCK or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except (KeyError, ValueError, OverflowError, psutil.Error):
        return False


def close_after_failure() -> None:
    """Close the run of workers that have failed, if rank 0 could not do it itself. Says so if MLflow does not let it."""
    try:
        configure(check=False)
        ask(lambda: close_abandoned(status="FAILED"))
    except UserError as error:  # the job has failed for another reason
        say(f"MLflow cannot be told that the run failed: {error}", error=True)


def is_folder_of(folder: Path, run_id: str) -> bool:
    return bool(_read(folder / "config.json").get("mlflow_run_id") == run_id)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
