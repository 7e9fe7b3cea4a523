"""One process at a time moves an alias: a lock that any registry of MLflow can hold, also one behind HTTP.

MLflow has no way to change an alias only if nobody else has. But a name is given once: of all who create a registered model of
one name, one succeeds. So a lock is an empty registered model `NAME.ALIAS.lock-N`. Its holder notes N in a tag of NAME at the
end, and removes it. A number counts once: who creates N too late finds it noted, and takes no part.

A holder that was killed leaves its lock. Who has seen it for `LEASE` seconds takes N + 1, which again one alone gets. A holder
works for less time than that, and looks before and after it moves the alias whether it was overtaken.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pipeline.errors import Failure, UserError
from pipeline.output import say
from pipeline.tracking import connection, runs

LEASE = 60.0  # s that a lock is another's, from when it is first seen
_WORK = 0.75  # of it, after which its holder writes no more: clocks differ, and a request takes its time
_WAIT = 300.0  # s for all who come before
_PAUSES = (0.1, 3.0)  # s between two looks: the first, and the longest, as many may wait


@dataclass(frozen=True)
class Lease:
    """A lock that this process holds; its `number` is this alias's alone, and larger than those before."""

    name: str
    alias: str
    number: int
    until: float  # of time.monotonic()
    overtaken: tuple[int, ...] = field(default=())

    def check(self) -> None:
        """Raise Failure where the time is over, or somebody else has gone on without waiting for it."""
        if time.monotonic() < self.until and not connection.ask(lambda: _holder(_lock(self, self.number + 1))):
            return
        raise Failure(
            f"{self.name}@{self.alias}: this took longer than {_WORK * LEASE:.0f} s, so another promotion may have gone on "
            "without it. Look at what the alias is now, and try again."
        )


@contextmanager
def held(name: str, alias: str) -> Iterator[Lease]:
    """Hold the lock of an alias of a registered model, which is there. Raises Failure where others hold it for too long."""
    lease = _acquire(name, alias)
    try:
        yield lease
    finally:
        if time.monotonic() < lease.until:  # otherwise it is left to who overtakes it, or its number would come twice
            try:
                connection.ask(lambda: _release(lease))
            except UserError as error:
                say(f"the lock of {name}@{alias} is left behind ({error}); it is passed over after {LEASE:.0f} s", error=True)


def _acquire(name: str, alias: str) -> Lease:
    token, deadline, pause = uuid.uuid4().hex, time.monotonic() + _WAIT, _PAUSES[0]
    seen: dict[str, float] = {}  # since when, by the token of a holder
    while True:
        started = time.monotonic()
        wanted = Lease(name, alias, 0, started + _WORK * LEASE)
        last, holders = connection.ask(partial(_look, wanted))
        *_, newest = [{}, *holders.values()]
        since = seen.setdefault(str(newest.get("token")), started)
        if not holders or started - since >= LEASE:
            number = max(holders, default=last) + 1
            lease = Lease(name, alias, number, wanted.until, overtaken=tuple(holders))
            if connection.ask(partial(_create, lease, token)):
                return lease
        elif started > deadline:
            raise Failure(
                f"{name}@{alias} is being moved by others ({newest.get('host')}, process {newest.get('pid')}) for more than "
                f"{_WAIT:.0f} s. Try again."
            )
        time.sleep(random.uniform(0.5, 1.0) * pause)
        pause = min(2 * pause, _PAUSES[1])


def _look(lease: Lease) -> tuple[int, dict[int, Mapping[str, str]]]:
    """Return the last number that was noted, and who holds which one now."""
    last, holders = _noted(lease), {}
    number = last + 1
    while holder := _holder(_lock(lease, number)):
        holders[number] = holder
        number += 1
    return last, holders


def _create(lease: Lease, token: str) -> bool:
    """Create a lock; tell whether it is ours, and counts."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    lock = _lock(lease, lease.number)
    about = f"Somebody moves {lease.name}@{lease.alias}. This is removed at the end; it holds no model."
    try:
        MlflowClient().create_registered_model(lock, tags={"token": token, **runs.owner()}, description=about)
    except MlflowException as error:
        if error.error_code == "TEMPORARILY_UNAVAILABLE":  # SQLite, while others write
            return False
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        if _holder(lock).get("token") != token:  # ours, if an answer was lost and MLflow asked again
            return False
    if _noted(lease) < lease.number:
        return True
    _remove(lock)  # its holder has ended since we looked
    return False


def _release(lease: Lease) -> None:
    from mlflow import MlflowClient

    MlflowClient().set_registered_model_tag(lease.name, _tag(lease), str(lease.number))
    for number in (*lease.overtaken, lease.number):
        _remove(_lock(lease, number))


def _noted(lease: Lease) -> int:
    from mlflow import MlflowClient

    text = MlflowClient().get_registered_model(lease.name).tags.get(_tag(lease), "0")
    if not (text.isascii() and text.isdigit()):
        raise UserError(
            f"name={lease.name}: its tag {_tag(lease)} is {text[:80]!r}, and counts who has moved the alias. Set it to a "
            "number that is larger than those of all tags promotion.*."
        )
    return int(text)


def _holder(lock: str) -> Mapping[str, str]:
    """Return the tags of a lock, nothing where there is none."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        tags: dict[str, Any] = MlflowClient().get_registered_model(lock).tags
    except MlflowException as error:
        if not connection.is_missing_model(error, lock):
            raise
        return {}
    return {"token": "", **tags}


def _remove(lock: str) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):  # it is gone already
        MlflowClient().delete_registered_model(lock)


def _lock(lease: Lease, number: int) -> str:
    return f"{lease.name}.{lease.alias}.lock-{number}"


def _tag(lease: Lease) -> str:
    return f"lock.{lease.alias}"
