"""Where the words of a command go: to its terminal, and into the run's log. Neither of them can end it.

Whoever reads may leave at any time: a closed pipe, a terminal that died with its connection, a full disk behind `> file`. A
stream whose reader is gone leads nowhere from then on, for our words, for those of libraries and for child processes alike.
"""

from __future__ import annotations

import errno
import io
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ECONNRESET, errno.ENOTCONN, errno.ESHUTDOWN)
_PATIENCE = 60.0  # s that a command waits for a reader who does not read: other ranks wait too, and give up at some time

_lock = threading.Lock()
_log = -1  # the open file, if there is one
_only_logged = False
_early: deque[str] = deque(maxlen=1000)  # what was said before there was a log


class _Lasting(io.FileIO):
    """A file descriptor that takes everything: what cannot be written is lost, and nobody is told."""

    waits = True  # for a reader who is busy; one who has let us wait for too long is not waited for again until he reads

    def write(self, content: Any, /) -> int:
        view = memoryview(content)[: select.PIPE_BUF]  # what a pipe that can be written to takes without a pause
        written = None
        try:
            if select.select([], [self], [], _PATIENCE if self.waits else 0)[1]:
                written = super().write(view)
            self.waits = written is not None
        except OSError as error:
            if error.errno in _GONE:
                with suppress(OSError):
                    _lead_nowhere(self.fileno())
        return view.nbytes if written is None else written


def install() -> None:
    """Have all that this process writes outlive its readers, also where a stream was closed from the start."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # or the next file that is opened would take its place
            _lead_nowhere(number)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    for number, name in ((1, "stdout"), (2, "stderr")):
        before, raw = getattr(sys, name), _Lasting(number, "w", closefd=False)
        stream = io.TextIOWrapper(
            io.BufferedWriter(raw), encoding=before.encoding if before else "utf-8", errors="backslashreplace",
            line_buffering=number == 2 or raw.isatty() or bool(before and before.write_through),
        )  # fmt: skip
        setattr(sys, name, stream)


def _lead_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere == number:
        os.set_inheritable(number, True)
    else:
        os.dup2(nowhere, number)
        os.close(nowhere)


def say(text: str, *, error: bool = False) -> None:
    """Print a line, or several, and write the same into the run's log."""
    if error or not _only_logged:
        print(text, file=sys.stderr if error else sys.stdout, flush=True)
    log(text)


@contextmanager
def only_logged() -> Iterator[None]:
    """Have what is said in the block, but errors, go into the run's log alone; nothing of before is in that log."""
    global _only_logged
    end_log()
    _only_logged = True
    try:
        yield
    finally:
        _only_logged = False


def log(text: str) -> None:
    """Write a line, or several, into the run's log alone; what is said before there is one is kept for it."""
    with _lock:
        if _log < 0:
            _early.append(text)
        else:
            _append(text)


def log_to(path: Path) -> None:
    """Have `path` take what is said from now on, and what was said before. It is only appended to; a link is not followed."""
    global _log
    with _lock:
        if _log < 0:
            try:
                _log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
            except OSError:  # a full or a foreign disk: the words are still printed
                return
            while _early:
                _append(_early.popleft())


def _append(text: str) -> None:
    try:
        os.write(_log, f"{text}\n".encode(errors="backslashreplace"))
    except OSError:
        return


def end_log() -> None:
    """Forget the log and what was kept for one: another command begins."""
    global _log
    with _lock:
        if _log >= 0:
            os.close(_log)
        _log = -1
        _early.clear()
