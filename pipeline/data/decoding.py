"""Many image files on all cores: what their headers and bytes say, and their pixels in blocks, never all at once.

Threads, not processes: Pillow lets go of the interpreter while it decodes, converts and resizes.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.data import images
from pipeline.data.spec import Placed
from pipeline.errors import UserError
from pipeline.output import log, say

Array = NDArray[np.generic]

_BLOCK = 8  # files that a thread takes at a time: few, so that a signal is obeyed and a bar moves
_QUIET = 1.0  # s without a bar: short work needs none
_EVERY = 10.0  # s between lines where there is no terminal
_NAMED = 20  # bad files that a sentence names
_HEAD = 1 << 16  # bytes of a file in a bucket that are read for its header
_KNOWN = 1_000_000  # files whose header and hash are remembered as long as they do not change


class Stamp(NamedTuple):
    """By what a change of a file is noticed."""

    size: int
    modified: int  # ns
    changed: int  # ns, of the inode: a copy that keeps the time of modification cannot keep this one

    @classmethod
    def of(cls, path: Path) -> Stamp:
        found = path.stat()
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class Remote(Protocol):
    """A folder whose files are no paths: they are read where they lie."""

    def __hash__(self) -> int: ...
    def read(self, name: str, most: int = -1) -> bytes:
        """Return a file, or its first bytes. Raises Failure where it cannot be had."""
        ...

    def stamp(self, name: str) -> Stamp:
        """Return what a file is now. Raises OSError."""
        ...


Folder = Path | Remote


class Bad(NamedTuple):
    """A file that cannot be read, and what it is instead: `is cut off (...)`."""

    name: str
    reason: str


class ImageFiles:
    """`pipeline.data.spec.Images` in files: RGB or grey, each squashed to side x side, decoded anew by each `fill`.

    Each file is decoded once, and one that was changed since its `stamps` were taken is an error. Only where a `fill` meets a
    bad file are those decoded too that no `fill` has asked for yet, so that all bad ones are named at once.
    """

    def __init__(self, folder: Folder, names: Sequence[str], stamps: Sequence[Stamp], *, channels: int, side: int, given: str):
        self.folder, self.names, self.stamps = folder, names, stamps
        self.shape = (len(names), channels, side, side)
        self.given = given  # as the user named the data set
        self.seen = np.zeros(len(names), bool)  # what was decoded

    def __len__(self) -> int:
        return len(self.names)

    def picked(self, rows: Sequence[int]) -> ImageFiles:
        """Return these images alone."""
        names, stamps = [self.names[row] for row in rows], [self.stamps[row] for row in rows]
        return ImageFiles(self.folder, names, stamps, channels=self.shape[1], side=self.shape[2], given=self.given)

    def fill(self, out: Placed, rows: Array) -> None:
        """Decode image rows[i] to out[i], uint8 (C, side, side), on all cores.

        Raises UserError at the end, naming all files of the data set that cannot be decoded, or were changed.
        """
        own = threading.local()

        def decode(index: int, row: int) -> None:
            if not hasattr(own, "pixels"):
                own.pixels = np.empty(self.shape[1:], np.uint8)
            images.decode_into(own.pixels, _file(self.folder, self.names[row]))
            out[index] = own.pixels

        if bad := self._decode(rows, decode, what="decoding"):
            raise UserError(sentence(self.given, bad + self.unreadable(np.flatnonzero(~self.seen))))

    def unreadable(self, rows: Array) -> list[Bad]:
        """Return the files that cannot be decoded, by decoding them. Raises UserError for those that were changed."""
        return self._decode(
            rows,
            lambda index, row: images.decode(_file(self.folder, self.names[row]), self.shape[1]),
            what="looking for broken images",
        )

    def _decode(self, rows: Array, decode: Callable[[int, int], object], *, what: str) -> list[Bad]:
        """Call `decode` for each of the rows and its place among them; return the files where it raised BadImage."""
        bad: list[Bad] = []
        changed: list[str] = []

        def work(index: int) -> None:
            row, reason = int(rows[index]), ""
            try:
                decode(index, row)
            except images.BadImage as error:
                reason = str(error)
            if self._was_changed(row):  # also while it was being read
                changed.append(self.names[row])
            elif reason:
                bad.append(Bad(self.names[row], reason))

        for_each(len(rows), work, what=what)
        self.seen[rows] = True
        if changed:
            raise UserError(
                f"dataset={self.given} has {counted(len(changed), 'file')} that somebody changed or took away after a "
                f"first look: {listed(sorted(changed))}. Start again when nobody writes there."
            )
        return sorted(bad)

    def _was_changed(self, row: int) -> bool:
        try:
            return stamp_of(self.folder, self.names[row]) != self.stamps[row]
        except OSError:
            return True


def _file(folder: Folder, name: str) -> Path | bytes:
    return folder / name if isinstance(folder, Path) else folder.read(name)


def stamp_of(folder: Folder, name: str) -> Stamp:
    """Return what a file is now. Raises OSError."""
    return Stamp.of(folder / name) if isinstance(folder, Path) else folder.stamp(name)


def sentence(given: str, bad: Sequence[Bad]) -> str:
    """Return what is said of bad files: the first of them by name, how many, and what to do."""
    return (
        f"dataset={given} has {counted(len(bad), 'file')} that cannot be read: {listed([' '.join(b) for b in sorted(bad)])}. "
        "Mend them or take them away, or leave them out with --skip_bad true."
    )


def listed(items: Sequence[str], most: int = _NAMED) -> str:
    """Return the first items with commas, and how many more there are, on one line whatever names hold."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(item if item.isprintable() else ascii(item)[1:-1] for item in items[:most]) + more


def counted(number: int, what: str) -> str:
    """Return `1 file`, `2 files`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}{'es' if what.endswith('s') else 's'}"


def headers(folder: Folder, names: Sequence[str], stamps: Sequence[Stamp]) -> list[images.Header | str]:
    """Return what each file says of itself, or the reason why it cannot be read."""
    found: list[images.Header | str] = [""] * len(names)

    def read(index: int) -> None:
        try:
            found[index] = _header(folder, names[index], stamps[index])
        except images.BadImage as error:
            found[index] = str(error)

    for_each(len(names), read, what="reading headers")
    return found


@lru_cache(_KNOWN)
def _header(folder: Folder, name: str, stamp: Stamp) -> images.Header:
    if isinstance(folder, Path):
        return images.header(folder / name)
    content = folder.read(name, _HEAD)
    try:
        return images.header(content)
    except images.BadImage:
        if len(content) < _HEAD:
            raise
    return images.header(folder.read(name))  # what says so stands behind the pixels


def contents(folder: Folder, names: Sequence[str], stamps: Sequence[Stamp]) -> NDArray[np.int64]:
    """Return a number for each file, the same for files of the same bytes: the place of the first of them.

    Only files of equal size are read. One that cannot be is equal to no other.
    """
    of_size: dict[int, list[int]] = {}
    for index, stamp in enumerate(stamps):
        of_size.setdefault(stamp.size, []).append(index)
    alike = [index for group in of_size.values() if len(group) > 1 for index in group]
    digests: dict[int, bytes] = {}

    def read(place: int) -> None:
        index = alike[place]
        with suppress(OSError):  # whoever decodes it says why
            digests[index] = _digest(folder, names[index], stamps[index])

    for_each(len(alike), read, what="comparing files of equal size")
    numbers = np.arange(len(names), dtype=np.int64)
    first: dict[bytes, int] = {}
    for index in sorted(digests):
        numbers[index] = first.setdefault(digests[index], index)
    return numbers


@lru_cache(_KNOWN)
def _digest(folder: Folder, name: str, stamp: Stamp) -> bytes:
    if not isinstance(folder, Path):
        return hashlib.sha256(folder.read(name)).digest()
    with (folder / name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def for_each(count: int, work: Callable[[int], None], *, what: str) -> None:
    """Call `work` for 0 to count - 1, in one thread a core, and show how far it is. An error of `work` is raised."""

    def block(start: int) -> int:
        end = min(start + _BLOCK, count)
        for index in range(start, end):
            work(index)
        return end - start

    cores = len(os.sched_getaffinity(0))
    pool = ThreadPoolExecutor(cores, thread_name_prefix="images")
    waiting: set[Future[int]] = set()
    try:
        with images.quiet, _progress(count, what) as advance:
            for start in range(0, count, _BLOCK):
                waiting.add(pool.submit(block, start))
                if len(waiting) >= 4 * cores:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    advance(sum(future.result() for future in done))
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                advance(sum(future.result() for future in done))
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _progress(count: int, what: str) -> Iterator[Callable[[int], None]]:
    """Yield a function of how many more files are done: a bar on a terminal, a line every 10 s elsewhere and in the log."""
    started = told = time.perf_counter()
    done = 0
    bar: Any = None
    terminal = sys.stdout.isatty()

    def advance(more: int) -> None:
        nonlocal done, told, bar
        done += more
        now = time.perf_counter()
        rate = done / (now - started)
        if terminal and bar is None and now - started > _QUIET:
            bar = _bar()
            bar.add_task(what, total=count)
        if bar is not None:
            bar.update(bar.task_ids[0], completed=done, description=f"{what}  {done}/{count}  {rate:,.0f} files/s")
        if now - told > _EVERY:
            told = now
            text = f"{what}: {done} of {count} files, {rate:,.0f} files/s, {(count - done) / rate:.0f} s left"
            (log if terminal else say)(text)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.stop()


def _bar() -> Any:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(TextColumn("{task.description}"), BarColumn(bar_width=20), TimeRemainingColumn())
    bar.start()
    return bar
