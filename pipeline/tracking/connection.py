"""The way to MLflow: which store, whether it answers, and what may be said of it. A password in its address is never shown.

Every text that came from MLflow, SQLAlchemy or requests, or that holds an address, goes through `redacted` before it is
printed, logged or sent. What a start needs from MLflow goes through `ask`, which has an end, whatever the other side does.
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TypeVar
from urllib.parse import unquote

from pipeline.errors import UserError

Answer = TypeVar("Answer")

_WAIT_FOR_SERVER = 30.0  # s for a whole question, all its reads and repetitions together
_WAIT_FOR_DATABASE = 120.0  # s; one that is new is first filled with tables, for which a slow machine takes its time
_SQLITE = b"SQLite format 3\0"
_NO_ENTRY = "UNAUTHENTICATED"  # MLflow's codes: the password is wrong, and what the user may not do
_FORBIDDEN = "PERMISSION_DENIED"
_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # MLflow's codes for an id that nothing belongs to

_USERINFO = re.compile(r"(\b[A-Za-z][\w+.-]*://)(?!git@)[^\s/?#'\"]+@")
_PARAMETER = re.compile(
    r"(?i)(\b[\w-]*(?:passw|pwd|token|secret|credential|signature|\bsig\b|api_?key|access_?key)[\w-]*=)[^\s&;'\"]+"
)


def uri() -> str:
    """Return the address of the store as the user gave it; `shown` is for printing."""
    return os.environ.get("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")


def shown() -> str:
    """Return the address of the store without its password."""
    return redacted(uri())


def place() -> str:
    """Return where a new run would be, without a password: the store, and the experiment unless the data set names it."""
    number, name = (os.environ.get(f"MLFLOW_EXPERIMENT_{which}", "") for which in ("ID", "NAME"))
    return redacted(f"{uri()} {number or name}".strip())


def redacted(text: str) -> str:
    """Return a text without passwords and tokens: those of any address in it, and those of the store wherever they stand."""
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, "***")
    return _PARAMETER.sub(r"\1***", _USERINFO.sub(r"\1***@", text))


def _secrets() -> set[str]:
    """Return what must not be read anywhere, as it is written in the variables and as it is meant."""
    found = {os.environ.get(f"MLFLOW_TRACKING_{name}", "") for name in ("PASSWORD", "TOKEN")}
    rest = uri().partition("://")[2] if "://" in uri() else uri().removeprefix("//")
    user, at, _ = rest.rpartition("@")
    if at and not rest.startswith("/"):  # sqlite:////home/me@work/x.db names nobody
        found |= {user, user.partition(":")[2]}  # also where a slash in it was not encoded
    found |= {unquote(secret) for secret in found}
    return {secret for secret in found if len(secret) > 3}  # a shorter one goes with the address around it


def first_line(error: BaseException) -> str:
    """Return the beginning of what an error says, fit to be shown."""
    lines = redacted(str(error)).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def unreachable_error(problem: BaseException | str) -> UserError:
    """Return what to tell the user when the server does not answer."""
    told = problem if isinstance(problem, str) else first_line(problem)
    return UserError(
        f"MLFLOW_TRACKING_URI={shown()} does not answer ({told}). Start the server, or unset the variable to track in "
        "./mlflow.db."
    )


def ask(question: Callable[[], Answer]) -> Answer:
    """Return what `question`, a call of MLflow, returns. Raises UserError where it fails, or has no end.

    MLflow's own limits are those of a single read: a server that sends a byte now and then would hold it for hours.
    """
    given: queue.SimpleQueue[tuple[list[Answer], BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            given.put(([question()], None))
        except BaseException as error:  # whatever a server, a proxy or a store raises: it is told by who waits
            given.put(([], error))

    limit = _WAIT_FOR_SERVER if uri().startswith("http") else _WAIT_FOR_DATABASE
    threading.Thread(target=work, name="asking", daemon=True).start()
    try:
        answer, error = given.get(timeout=limit)
    except queue.Empty:
        raise unreachable_error(f"nothing whole came within {limit:.0f} s") from None
    if isinstance(error, UserError):
        raise error
    if isinstance(error, ModuleNotFoundError):
        raise UserError(
            f"MLFLOW_TRACKING_URI={shown()} needs the package {error.name}, which is not installed. Install it, or unset the "
            "variable to track in ./mlflow.db."
        ) from error
    if error:
        raise _refused_error(error) or unreachable_error(error) from error
    return answer[0]


def _refused_error(error: BaseException) -> UserError | None:
    """Return what to tell the user where the server answers, but not to this user."""
    code, user = getattr(error, "error_code", ""), os.environ.get("MLFLOW_TRACKING_USERNAME", "")
    if code == _NO_ENTRY:
        who = f"the user {user} with this password" if user else "anybody without a user name and a password"
        return UserError(
            f"MLFLOW_TRACKING_URI={shown()} does not let in {redacted(who)}. Set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD as its administrator gave them to you."
        )
    if code == _FORBIDDEN:
        return UserError(
            f"MLFLOW_TRACKING_URI={shown()} does not permit this ({first_line(error)}). Ask its administrator, or have an "
            "experiment of your own: MLFLOW_EXPERIMENT_NAME."
        )
    return None


def refuse_registry() -> str:
    """Return what is wrong with where MLflow keeps its registry, as far as its address says it, or nothing."""
    address, other = uri(), os.environ.get("MLFLOW_REGISTRY_URI", "")
    if other and other != address:
        return (
            f"MLFLOW_REGISTRY_URI={redacted(other)} is another place than MLFLOW_TRACKING_URI={shown()}, "
            "where the run is. Unset it."
        )
    if "://" in address and not address.startswith("file:"):
        return ""
    return (
        f"MLFLOW_TRACKING_URI={shown()} is a folder, in which no two processes can use a registry at once. Give a "
        "database (sqlite:////folder/mlflow.db) or a server (http://...), or unset the variable to track in ./mlflow.db."
    )


def is_missing(error: Exception) -> bool:
    """Tell whether MLflow says that there is no such run or experiment, or that its id cannot be one."""
    return getattr(error, "error_code", "") in _NOT_THERE


def is_unseen(error: Exception) -> bool:
    """Tell whether MLflow has no such thing to show. A server with passwords says of what is not there that it is forbidden."""
    return is_missing(error) or getattr(error, "error_code", "") == _FORBIDDEN


def is_missing_model(error: Exception, name: str) -> bool:
    """Tell whether MLflow says that there is no such registered model, or no such version or alias of it.

    A server with passwords forbids what is not there; it lists what the user may see.
    """
    from mlflow import MlflowClient

    if getattr(error, "error_code", "") != _FORBIDDEN:
        return is_missing(error)
    return not MlflowClient().search_registered_models(filter_string=f"name = '{name}'", max_results=1)


def configure(*, check: bool = True) -> None:
    """Choose the store explicitly, and have a dead server answer in seconds.

    `check` asks it something, and raises UserError if it does not answer, or does not know the run of MLFLOW_RUN_ID.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "5")
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # or a logged model would carry uv.lock and its hosts
    os.environ.setdefault("MLFLOW_LOG_UV_FILES", "false")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # a bar a file, wherever tqdm is installed
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the last words are ours: what to do next
    os.environ.setdefault("MLFLOW_TRACKING_URI", uri())
    if context := os.environ.get("MLFLOW_RUN_CONTEXT"):  # JSON that MLflow makes tags of, a run's and a model's
        os.environ["MLFLOW_RUN_CONTEXT"] = redacted(context)
    import mlflow

    _quieten()
    if not uri().startswith("http"):
        import mlflow.store.db.utils

        mlflow.store.db.utils.MAX_RETRY_COUNT = 3  # of ten, which take 100 s for a database that is not there
    if not check:
        mlflow.set_tracking_uri(uri())
        return
    _refuse_other_files()
    ask(_check)


def _quieten() -> None:
    """Have MLflow's loggers, once they are set up, warn only, and neither them nor a traceback of ours tell a password."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in (
        "mlflow.utils.environment",
        "mlflow.store.db.utils",
    ):  # pip is missed, which uv does without; each attempt is told
        logging.getLogger(name).setLevel(logging.ERROR)
    handlers = [*logging.getLogger("mlflow").handlers, *logging.getLogger().handlers, logging.lastResort]
    for handler in handlers:
        if handler:
            handler.addFilter(_redact_record)
    sys.excepthook = _tell


def _redact_record(record: logging.LogRecord) -> bool:
    record.msg, record.args = redacted(record.getMessage()), None
    if record.exc_info and not record.exc_text:
        record.exc_text = redacted(logging.Formatter().formatException(record.exc_info))
    return True


def _tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(redacted("".join(traceback.format_exception(kind, error, trace))))


def _sqlite_file() -> Path | None:
    if not uri().startswith("sqlite:///"):
        return None
    return Path(unquote(uri().removeprefix("sqlite:///").partition("?")[0]))


@contextmanager
def _alone_at_database() -> Iterator[None]:
    """Hold the folder of a SQLite file, so that two processes do not fill a new one with tables at one moment, and spoil it."""
    with ExitStack() as stack:
        if path := _sqlite_file():
            with suppress(OSError):  # a folder that is not there, or a file system without locks
                folder = os.open(path.parent, os.O_RDONLY)
                stack.callback(os.close, folder)  # which gives the lock back
                fcntl.flock(folder, fcntl.LOCK_EX)
        yield


def _refuse_other_files() -> None:
    """Raise UserError where a sqlite address names something that exists and is no database."""
    if not (path := _sqlite_file()):
        return
    is_other = path.is_dir()
    if path.is_file():
        with path.open("rb") as file:
            is_other = file.read(len(_SQLITE)) not in (_SQLITE, b"")
    if is_other:
        raise UserError(
            f"MLFLOW_TRACKING_URI={shown()} names {'a folder' if path.is_dir() else 'a file'} that is no SQLite database. "
            "Give the path of one or of a new file (sqlite:////folder/file.db), or unset the variable to track in ./mlflow.db."
        )


def _check() -> None:
    import mlflow

    mlflow.set_tracking_uri(uri())
    with _alone_at_database():
        client = mlflow.MlflowClient()
        list(client.search_experiments(max_results=1))
    if not (wrapper := os.environ.get("MLFLOW_RUN_ID")):
        return
    try:
        stage = client.get_run(wrapper).info.lifecycle_stage
    except mlflow.MlflowException as error:
        if not is_unseen(error):
            raise
        if uri().startswith("sqlite:///") and not uri().startswith("sqlite:////"):
            raise UserError(
                f"MLFLOW_TRACKING_URI={shown()} is relative, and `mlflow run` started this in another folder. Give an absolute "
                "path (sqlite:////...), or unset it."
            ) from error
        raise UserError(
            f"MLFLOW_RUN_ID={wrapper[:80]} is no run that can be seen at {shown()}. Unset it to begin a run, or set "
            "MLFLOW_TRACKING_URI to where it is."
        ) from error
    if stage == "deleted":
        raise UserError(
            f"MLFLOW_RUN_ID={wrapper[:80]} is a run that was deleted. Unset it to begin a run, or restore that one: "
            f"mlflow runs restore --run-id {wrapper[:80]}"
        )
