"""Who moved an alias, when, and from where to where: a tag of the registered model for each move, `promotion.ALIAS.NUMBER`.

The moves tell the champions before: a promotion puts a version on top of them, a rollback takes off what lies above the version
that it goes back to. So a second rollback goes one further back, and not forward again.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import socket
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

PROMOTION, ROLLBACK = "promotion", "rollback"


@dataclass(frozen=True, kw_only=True)
class Move:
    """One move of an alias. `before` is "" where it was nowhere; `at` is UTC."""

    kind: str
    before: str
    after: str
    at: str = ""
    by: str = ""
    reason: str = ""


def read(name: str, alias: str) -> list[Move]:
    """Return the moves of an alias in their order; nothing where there is no such model. A tag that is none is left out."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    from pipeline.tracking.connection import is_missing_model

    try:
        tags = MlflowClient().get_registered_model(name).tags
    except MlflowException as error:
        if not is_missing_model(error, name):
            raise
        return []
    numbered = {
        int(found[1]): text for key, text in tags.items() if (found := re.fullmatch(rf"promotion\.{alias}\.(\d+)", key))
    }
    return [move for _, text in sorted(numbered.items()) if (move := _parsed(text))]


def _parsed(text: str) -> Move | None:
    try:
        move = Move(**json.loads(text))
    except (ValueError, TypeError, RecursionError):
        return None
    return move if all(isinstance(value, str) for value in vars(move).values()) else None


def note(name: str, alias: str, number: int, move: Move) -> None:
    """Keep a move; its number is that of the lock under which it was done."""
    from mlflow import MlflowClient

    signed = asdict(move) | {"at": datetime.now(UTC).isoformat(timespec="seconds"), "by": f"{_user()}@{socket.gethostname()}"}
    MlflowClient().set_registered_model_tag(name, f"promotion.{alias}.{number:06d}", json.dumps(signed))


def standing(moves: list[Move]) -> list[str]:
    """Return the versions that were champion one after the other and were not rolled back, the newest last."""
    versions: list[str] = []
    for move in moves:
        if move.before and move.before not in versions[-1:]:  # somebody has set it by hand
            versions.append(move.before)
        if move.kind == ROLLBACK:
            while versions and versions[-1] != move.after:
                versions.pop()
        if move.after not in versions[-1:]:
            versions.append(move.after)
    return versions


def before(moves: list[Move], now: str) -> list[str]:
    """Return the versions that a rollback may go back to, the nearest first; `now` is where the alias is, "" for nowhere."""
    versions = standing(moves)
    if now in versions:
        versions = versions[: len(versions) - 1 - versions[::-1].index(now)]
    return [version for version in reversed(versions) if version != now]


def _user() -> str:
    """Return who this is to MLflow, where it asks for names, or else to this host."""
    if user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        return user
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
