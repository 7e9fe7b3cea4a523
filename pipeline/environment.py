"""What torchrun, or whoever starts the ranks, tells each of them in its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import UserError

LAUNCHED = "TRAINYARD_LAUNCHED"
_MOST = 1_000_000  # ranks; more is no number of them
_REQUIRED = ("RANK", "WORLD_SIZE")


@dataclass(frozen=True)
class Worker:
    """This process among all that torchrun has started; a process that nobody has started so is alone."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    num_restarts: int = 0


def is_worker() -> bool:
    """Tell whether torchrun (or our own launcher) started this process as one of its ranks."""
    return all(name in os.environ for name in _REQUIRED)


def is_launched() -> bool:
    """Tell whether it was our own launcher, which has said what this command does, and whose restarts are `--max_restarts`."""
    return LAUNCHED in os.environ


def worker() -> Worker:
    """Return what the environment says. Raises UserError where it contradicts itself or half of it is missing."""
    missing = [name for name in _REQUIRED if name not in os.environ]
    if missing == list(_REQUIRED):
        return Worker()
    if missing:
        (there,) = set(_REQUIRED) - set(missing)
        raise UserError(
            f"{there}={os.environ[there]} is set and {missing[0]} is not: torchrun sets both. Unset it, or start with torchrun."
        )
    world_size = _number("WORLD_SIZE", at_least=1, at_most=_MOST)
    rank = _number("RANK", at_most=world_size - 1)
    local_world_size = _number("LOCAL_WORLD_SIZE", 1, at_least=1, at_most=world_size)
    most = local_world_size - 1 if "LOCAL_WORLD_SIZE" in os.environ else world_size - 1
    found = Worker(
        rank, _number("LOCAL_RANK", at_most=most), world_size, local_world_size, _number("TORCHELASTIC_RESTART_COUNT")
    )
    if world_size > 1:
        if not os.environ.get("MASTER_ADDR"):
            raise UserError(f"WORLD_SIZE={world_size} ranks need MASTER_ADDR, where rank 0 is. Set it, or start with torchrun.")
        _number("MASTER_PORT", -1, at_least=1, at_most=65_535)
    return found


def refuse_decided(flags: Mapping[str, str]) -> None:
    """Raise UserError for a flag that our own launcher would obey, in a rank that torchrun has started."""
    if is_launched():
        return
    local = str(worker().local_world_size)
    decided = {"nproc": ("auto", local), "max_restarts": ("0",)}
    words = {"nproc": "--nproc-per-node", "max_restarts": "--max-restarts"}
    problems = [
        f"{name}={flags[name]} has no effect under torchrun. Give it as torchrun's own {words[name]}, and leave --{name} out."
        for name, same in decided.items()
        if name in flags and flags[name] not in same
    ]
    if problems:
        raise UserError(*problems)


def _number(name: str, default: int = 0, *, at_least: int = 0, at_most: int = _MOST) -> int:
    text = os.environ.get(name)
    try:
        value = default if text is None else int(text)
    except ValueError:
        value = -1
    if not at_least <= value <= at_most:
        given = f"{name}={text} is" if text is not None else f"{name} is not set, and should be"
        wanted = f"a whole number from {at_least} to {at_most}"
        raise UserError(f"{given}{' not' if text is not None else ''} {wanted}. Start with torchrun, or unset what it sets.")
    return value
