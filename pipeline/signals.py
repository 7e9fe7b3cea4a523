"""How a process ends. SIGTERM and SIGINT are noted while a model trains, so that all ranks stop at the same step, and obeyed
at once elsewhere.

A second signal is always obeyed at once. ORPHANED is what the system sends when the launcher dies: it counts as one SIGTERM, as
Linux sends it again for every thread of the launcher that its children pass to while it dies.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

ORPHANED = signal.SIGUSR2

_pending = 0  # the signal received while deferring
_deferring = False
_received = 0
_ignoring_first = False


class Interrupted(SystemExit):
    """The process was asked to stop. Exit status 143 for SIGTERM, 130 for SIGINT."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)


def install() -> None:
    """Handle all three signals from now on, and let SIGHUP pass: a terminal that is gone ends no training."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _handle)
    signal.signal(ORPHANED, _handle_orphaned)


def _handle(signum: int, _frame: object) -> None:
    global _pending, _received
    _received += 1
    if _ignoring_first and _received == 1:
        return
    if not _deferring or _pending:
        raise Interrupted(signum)
    _pending = signum


def _handle_orphaned(_signum: int, frame: object) -> None:
    if not _received:
        _handle(signal.SIGTERM, frame)


def pending_signal() -> int:
    """Return the signal that was received since `defer_signals` began, or 0."""
    return _pending


@contextmanager
def defer_signals() -> Iterator[None]:
    """Only note a first signal in the block; whoever runs it asks `pending_signal` and stops where it can."""
    global _pending, _deferring
    _pending, _deferring = 0, True
    try:
        yield
        if _pending:
            raise Interrupted(_pending)
    finally:
        _pending, _deferring = 0, False


@contextmanager
def ignore_first_signal() -> Iterator[None]:
    """Let a first signal pass in the block, which only closes what is ending anyway; a second one is obeyed at once."""
    global _ignoring_first
    _ignoring_first = True
    try:
        yield
    finally:
        _ignoring_first = False


def exit_now(status: int) -> NoReturn:
    """End the process at once, its output flushed, without Python's tear-down.

    That frees a million objects one by one, two seconds behind the last word of a command; and gloo threads that outlive the
    interpreter were seen to abort the process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
