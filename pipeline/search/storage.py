"""Where a study is kept: a journal file, which needs no server and no locks of the file system, or a database."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import UserError
from pipeline.tracking.connection import first_line, redacted

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

_BUSY = 60  # s that a writer waits for the others
_PAUSES = (0.001, 0.05)  # s between two tries to write: the first, and the longest
_TRIES = 5  # to make the tables of a new database, which several workers may begin at once


def need_optuna() -> None:
    """Raise UserError where Optuna is not installed."""
    if importlib.util.find_spec("optuna") is None:
        raise UserError(
            "search needs optuna, which is not installed. Install it: pip install 'trainyard[search]', or uv sync --extra "
            "search."
        )


def is_url(storage: str) -> bool:
    return "://" in storage


def shown(storage: str) -> str:
    """Return where a study is kept, without a password."""
    return redacted(storage)


def open_storage(storage: str) -> BaseStorage:
    """Open a storage, or make it. Raises UserError where that cannot be done."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)  # what it says of each trial, we say ourselves
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    with asking(storage):
        return _database(storage) if is_url(storage) else _journal(Path(storage).absolute())


class Lock:
    """The lock of a journal, which the system lets go of however its holder ends: Optuna's own one would stay for 30 s.

    Not `files.locked`, which does not keep two threads of a process apart: a lease is renewed by one of its own.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._handle = path, -1

    def acquire(self) -> bool:
        """Wait for the lock. Raises TimeoutError where another process holds it for too long."""
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        deadline, pause = time.monotonic() + _BUSY, _PAUSES[0]
        try:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"{self._path} is held by another process for more than {_BUSY} s") from None
                time.sleep(pause)
                pause = min(2 * pause, _PAUSES[1])
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        return True

    def release(self) -> None:
        handle, self._handle = self._handle, -1
        os.close(handle)


def _journal(path: Path) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    if path.is_dir():
        raise UserError(f"storage={path} is a folder. Give the name of a file, or an address of a database.")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock: Any = Lock(path.with_name(f"{path.name}.lock"))
    if path.exists():
        with path.open("rb") as file:
            if file.read(1) not in (b"{", b""):
                raise UserError(f"storage={path} is no journal of a study. Give another file, or one that does not exist yet.")
        lock.acquire()
        try:
            _cut_off_half_a_line(path)
        finally:
            lock.release()
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def _cut_off_half_a_line(path: Path) -> None:
    """Remove what a full disk has left at the end: the next line would be glued to it, and the whole journal unreadable."""
    with path.open("rb+") as file:
        content = file.read()
        if not content.endswith(b"\n"):
            file.truncate(content.rfind(b"\n") + 1)


def _database(url: str) -> BaseStorage:
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import OperationalError, ProgrammingError

    options: dict[str, Any] = {"connect_args": {"timeout": _BUSY}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    for _ in range(_TRIES - 1):
        try:
            return RDBStorage(url, engine_kwargs=options)
        except (OperationalError, ProgrammingError) as error:  # another worker has just made this table
            if "already exists" not in str(error):
                raise
    return RDBStorage(url, engine_kwargs=options)


@contextmanager
def asking(storage: str) -> Iterator[None]:
    """Have whatever a storage raises told in one sentence, without a password."""
    from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    try:
        yield
    except (UserError, UpdateFinishedTrialError):
        raise
    except (ArgumentError, NoSuchModuleError) as error:
        raise UserError(
            f"storage={shown(storage)} is no address of a database ({first_line(error)}). Give one as "
            "sqlite:////folder/study.db or postgresql://user@host/name, or the name of a file."
        ) from error
    except ImportError as error:  # the name of the package stands in its cause
        missing = getattr(error.__cause__, "name", None) or error.name or first_line(error)
        raise UserError(f"storage={shown(storage)} needs the package {missing}, which is not installed. Install it.") from error
    except (SQLAlchemyError, StorageInternalError, OSError, ValueError, KeyError) as error:
        raise UserError(
            f"storage={shown(storage)} cannot be used ({_reason(error)}). What was found is kept; run the same command again "
            "when it can."
        ) from error


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error
    if isinstance(cause, OSError) and cause.strerror:
        return os.strerror(cause.errno) if cause.errno else cause.strerror
    return first_line(cause)
