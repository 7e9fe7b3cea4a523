"""What a run has to tell MLflow, on disk first: rows that are only appended, and a note of what else is to be sent.

Nothing here talks to a server. Sending a row twice does no harm: MLflow keeps one of each (name, step, time, value), and rows
carry the time at which they were written.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import files, manifest
from pipeline import run as run_folder
from pipeline.files import read_json
from pipeline.output import say

_CHUNK = 1 << 18  # bytes of a journal that are read at once


class Journal:
    """A file of JSON lines that only grows. A half line, left by a kill, is cut off when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._unwritten = b""
        self._complained = False
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        content = path.read_bytes()
        os.ftruncate(self._file, content.rfind(b"\n") + 1)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row. What the disk does not take stays in memory and goes with the next row."""
        with self._lock:
            self._unwritten += json.dumps(row).encode() + b"\n"
            try:
                while self._unwritten:
                    self._unwritten = self._unwritten[os.write(self._file, self._unwritten) :]
            except OSError as error:
                if not self._complained:
                    say(f"{self.path} cannot be written ({error.strerror}): metrics wait in memory", error=True)
                self._complained = True

    def sync(self) -> None:
        """Have the system put all rows on the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)

    def size(self) -> int:
        return os.fstat(self._file).st_size

    def rows(self, start: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Return some of the rows from byte `start` on, and the byte behind the last of them."""
        content = os.pread(self._file, _CHUNK, start)
        content = content[: content.rfind(b"\n") + 1]
        return run_folder.parse_rows(content, self.path), start + len(content)

    def all_rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        start, end = -1, 0
        while start < end:  # until no whole line is left
            start = end
            more, end = self.rows(start)
            rows += more
        return rows


class Outbox:
    """`tracking.json`: the parts of a run that are to be sent besides its rows, and how much of everything was sent.

    A part is a value with a version; it waits as long as its newest version has not been sent.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self.folder, self.run_id = folder, run_id
        self._path = folder / manifest.TRACKING
        self._complained = False
        self._lock = threading.Lock()
        self._state: dict[str, Any] = {"mlflow_run_id": run_id, "sent_bytes": {}, "parts": {}}
        if self._path.exists():
            try:
                found = read_json(self._path)
                sent = {str(name): int(end) for name, end in found["sent_bytes"].items()}
                parts = {
                    str(name): {"value": part["value"], "version": int(part["version"]), "sent": int(part["sent"])}
                    for name, part in found["parts"].items()
                }
                self._state |= {"sent_bytes": sent, "parts": parts}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                say(f"{self._path} cannot be read ({error}): all rows are sent again", error=True)
        elif (folder / "manifest.json").exists():  # fetched from the server, so it has all that is here
            sizes = {name: path.stat().st_size for name in manifest.JOURNALS if (path := folder / name).exists()}
            self._state["sent_bytes"] = sizes

    def enqueue(self, part: str, value: Any) -> None:
        """Have `value` sent as the newest version of a part."""
        with self._lock:
            known = self._state["parts"].get(part, {"version": 0, "sent": 0})
            self._state["parts"][part] = {"value": value, "version": known["version"] + 1, "sent": known["sent"]}
            self._save()

    def discard(self, part: str) -> None:
        """Forget the value of a part; nothing is sent for it."""
        with self._lock:
            version = self._state["parts"].get(part, {"version": 0})["version"]
            self._state["parts"][part] = {"value": None, "version": version, "sent": version}
            self._save()

    def value(self, part: str, default: Any = None) -> Any:
        """Return the newest value of a part, sent or not."""
        with self._lock:
            return self._state["parts"].get(part, {"value": default})["value"] or default

    def pending(self, part: str) -> tuple[Any, int] | None:
        """Return value and version of a part that was not sent yet."""
        with self._lock:
            known = self._state["parts"].get(part)
            return (known["value"], known["version"]) if known and known["sent"] < known["version"] else None

    def is_behind(self) -> bool:
        """Tell whether a part or a row waits."""
        with self._lock:
            sizes = {name: path.stat().st_size for name in manifest.JOURNALS if (path := self.folder / name).exists()}
            return any(part["sent"] < part["version"] for part in self._state["parts"].values()) or any(
                self._state["sent_bytes"].get(name, 0) < size for name, size in sizes.items()
            )

    def is_told(self) -> bool:
        """Tell whether how the training ended was noted, as the last thing that a training does."""
        return not self.value("reopened") or self.value("status", "KILLED") != "KILLED"

    def sent(self, part: str, version: int) -> None:
        with self._lock:
            self._state["parts"][part]["sent"] = version
            self._save()

    def sent_bytes(self, journal: str) -> int:
        with self._lock:
            return int(self._state["sent_bytes"].get(journal, 0))

    def sent_up_to(self, journal: str, end: int) -> None:
        with self._lock:
            self._state["sent_bytes"][journal] = end
            self._save()

    def _save(self) -> None:
        try:
            files.write_json(self._path, self._state)
        except OSError as error:
            if not self._complained:
                say(f"{self._path} cannot be written ({error.strerror}); it is only in memory now", error=True)
            self._complained = True
