"""Shards where they can be mapped: in their own folder, or fetched from a bucket into one of this host, and never half of one.

What was fetched has its name only after its SHA-256 is what the index says, and is hashed again by the process that maps it if
it was touched since. Processes of one host share what they fetch; a lock for each shard keeps two from fetching the same.
Beyond `limit` bytes, those go that are needed last.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipeline import environment, files
from pipeline.data.shards import table
from pipeline.data.shards.places import FULL, Place, answered
from pipeline.errors import Failure
from pipeline.output import say

Array = NDArray[Any]

_LOOK = 0.02  # s between two looks whether there is room
_AT_ONCE = 4  # shards that are fetched ahead at the same time: one connection does not fill a network
_OPEN = 256  # shards that are mapped at a time
_SLOW = 5.0  # s after which it is said what a training waits for


def fetch(place: Place, entry: Mapping[str, Any], path: Path) -> Path:
    """Return `path`, to which a file of a place was fetched; what is there already is taken.

    A connection that breaks, or bytes that are others, are tried again. Raises Failure where it cannot be had, OSError where
    the disk takes no more.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.locked(path.with_name(f".{path.name}.lock")):
        if is_whole(path, entry, path.parent):
            return path

        def ask() -> None:
            digest = hashlib.sha256()
            with files.atomic(path) as temporary:
                with temporary.open("wb") as file:
                    for part in place.parts(entry["file"]):
                        digest.update(part)
                        file.write(part)
                if digest.hexdigest() != entry["sha256"]:
                    raise ValueError("its bytes are not those that were written (its SHA-256 differs)")

        try:
            answered(ask)
            _keep_seal(path, path.parent)
            return path
        except FileNotFoundError:
            problem = "it is not there"
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            problem = (str(error).splitlines() or [type(error).__name__])[0][:200]
    raise Failure(
        f"dataset={place.address}: {entry['file']} cannot be had: {problem}. Mend the place, and go on with --resume true."
    )


def is_whole(path: Path, entry: Mapping[str, Any], folder: Path) -> bool:
    """Tell whether a file has the SHA-256 of its entry. Raises OSError where it cannot be read.

    It is hashed only if it was touched since it last had: `folder` keeps the times that it had then.
    """
    try:
        before = _stamp(path)
        with suppress(OSError, ValueError):
            if _seal(path, folder).read_text() == before:
                return True
        if path.stat().st_size != entry["bytes"] or files.sha256(path) != entry["sha256"]:
            return False
        if _stamp(path) == before:
            _keep_seal(path, folder)
    except FileNotFoundError:  # or another process of this host has just made room
        return False
    return True


def _keep_seal(path: Path, folder: Path) -> None:
    with suppress(OSError):  # a disk that is full or not ours: it is hashed again then
        folder.mkdir(parents=True, exist_ok=True)
        _seal(path, folder).write_text(_stamp(path))


def _seal(path: Path, folder: Path) -> Path:
    return folder / f".{path.name}.seal"


def _stamp(path: Path) -> str:
    found = path.stat()
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"


def remove(path: Path) -> None:
    """Remove a file that was fetched; its lock stays, as another process may hold it."""
    path.unlink(missing_ok=True)
    _seal(path, path.parent).unlink(missing_ok=True)


@contextmanager
def _said_when_slow(text: str) -> Iterator[None]:
    timer = threading.Timer(_SLOW, say, [text])
    timer.daemon = True
    if not environment.worker().local_rank:  # the others of this host wait for the same
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Store:
    """The shards of one split: `open(k)` maps one; `plan` says when each will be needed, and has them fetched before."""

    def __init__(
        self, place: Place, entries: Sequence[Mapping[str, Any]], shape: tuple[int, ...], folder: Path, limit: int = 0
    ) -> None:  # fmt: skip
        self.place, self.entries, self.shape, self.folder = place, list(entries), shape, folder
        self.limit = limit  # bytes of what was fetched that may lie here; 0: no limit
        self._maps: OrderedDict[int, Array] = OrderedDict()
        self._lock = threading.RLock()
        self._fetching = [threading.Lock() for _ in self.entries]  # a file's lock does not keep threads apart
        self._first: dict[int, int] = {}  # place in the epoch at which a shard is first needed, and last
        self._last: dict[int, int] = {}
        self._now = 0
        self._epoch = 0
        self._turn = threading.Lock()
        self._coming: set[int] = set()  # shards that are being fetched: they take room already

    def open(self, k: int) -> Array:
        """Return the samples of shard k (n, *shape), memory-mapped. Raises Failure where it cannot be had, or is not whole."""
        with self._lock:
            self._now = max(self._now, self._first.get(k, 0))
            if k in self._maps:
                self._maps.move_to_end(k)
                return self._maps[k]
        with _said_when_slow(f"waiting for {self.entries[k]['file']} of {self.place.address} ..."):
            mapped = self._mapped(k)
        with self._lock:
            found = self._maps[k] = mapped
            while len(self._maps) > _OPEN:
                self._maps.popitem(last=False)
            return found

    def _mapped(self, k: int) -> Array:
        if self.place.local:
            return table.open_x(self._local(k), self.shape)
        while True:
            path = self._fetched(k)
            with suppress(FileNotFoundError):  # another process of this host may have made room in between
                return table.open_x(path, self.shape)

    def rest(self) -> None:
        """Fetch nothing more ahead."""
        with self._lock:
            self._epoch += 1

    def plan(self, first: Mapping[int, int], last: Mapping[int, int]) -> None:
        """Take notice of where in an epoch each shard is needed first and last, and fetch ahead what does not lie here."""
        if self.place.local:
            return
        with self._lock:
            self._first, self._last, self._now = dict(first), dict(last), 0
            self._epoch += 1
            wanted = iter(sorted(self._first, key=self._first.__getitem__))
            arguments = (self._epoch, wanted)
        for _ in range(_AT_ONCE):
            threading.Thread(target=self._fetch_ahead, args=arguments, name="fetching shards", daemon=True).start()

    def _fetch_ahead(self, epoch: int, wanted: Iterator[int]) -> None:
        """Fetch in the order in which shards are needed, as far as there is room beside those that are needed now."""
        while (k := self._next(epoch, wanted)) is not None:
            try:
                self._fetched(k)
            except (Failure, OSError):  # told by who needs it
                return

    def _next(self, epoch: int, wanted: Iterator[int]) -> int | None:
        """Return the next shard that is to be fetched ahead, as soon as there is room for it, which is then its own."""
        with self._turn:  # only one waits for room, or a later shard could take that of an earlier one
            for k in wanted:
                while True:
                    with self._lock:
                        if epoch != self._epoch:
                            return None
                        if self._last[k] < self._now:  # and perhaps gone already
                            break
                        if not self.limit or self._kept_bytes(k) <= self.limit:
                            self._coming.add(k)
                            return k
                    time.sleep(_LOOK)
        return None

    def _here(self) -> list[int]:
        """Return the shards that lie here, or are about to."""
        there = (n for n, entry in enumerate(self.entries) if (self.folder / str(entry["file"])).is_file())
        return [*dict.fromkeys([*there, *self._coming])]

    def _kept_bytes(self, k: int) -> int:
        """Return the bytes of shard k and of those here that are still needed, or are in another thread's hands."""
        kept = {n for n in self._here() if self._last.get(n, -1) >= self._now} | self._coming | {k}
        return sum(int(self.entries[n]["bytes"]) for n in kept)

    def _fetched(self, k: int) -> Path:
        entry = self.entries[k]
        path = self.folder / str(entry["file"])
        with self._fetching[k]:
            while True:
                with self._lock:
                    if path.is_file() or self._make_room(k) or k in self._coming or not self._coming:
                        self._coming.add(k)
                        break
                time.sleep(_LOOK)  # until one that is coming is there, and can go if it must
            try:
                return fetch(self.place, entry, path)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                self._make_room(k, everything=True)
            finally:
                self._coming.discard(k)
            try:
                return fetch(self.place, entry, path)
            except OSError as error:
                raise Failure(
                    f"cache_dir: the disk of {self.folder} has no room for {entry['file']} ({entry['bytes'] / 1e6:,.0f} MB; "
                    f"{error.strerror}). Make room, or give another --cache_dir."
                ) from error

    def _make_room(self, k: int, *, everything: bool = False) -> bool:
        """Remove what was fetched and is needed no more, then what is needed last, so that shard k finds room below the limit.

        `everything` that is not needed now goes where the disk is full. Who has a file mapped keeps it. Returns whether there
        is room now.
        """
        if not self.limit and not everything:
            return True
        with self._lock:
            here = [n for n in self._here() if n != k]
            size = sum(int(self.entries[n]["bytes"]) for n in (*here, k))
            loose = [n for n in here if n not in self._coming]
            past = [n for n in loose if self._last.get(n, -1) < self._now]
            later = sorted((n for n in loose if self._first.get(n, -1) > self._now), key=self._first.__getitem__, reverse=True)
            for n in (*past, *later):
                if size <= self.limit and not everything:
                    break
                self._maps.pop(n, None)
                remove(self.folder / str(self.entries[n]["file"]))
                size -= int(self.entries[n]["bytes"])
            return size <= self.limit

    def _local(self, k: int) -> Path:
        """Return where shard k lies, after its hash was right at least once since it was last written."""
        assert self.place.local
        path = self.place.local / str(self.entries[k]["file"])
        try:
            path.stat()
            whole = is_whole(path, self.entries[k], self.folder)
        except OSError as error:
            raise Failure(
                f"dataset={self.place.address}: {path.name} cannot be read ({error.strerror}). Put it back."
            ) from error
        if not whole:
            raise Failure(
                f"dataset={self.place.address}: {path.name} is not what was written (its SHA-256 differs). Write it anew."
            )
        return path

    def __reduce__(self) -> tuple[Any, ...]:
        """What a loader's process is given: it maps the shards itself."""
        return Store, (self.place, self.entries, self.shape, self.folder, self.limit)
