"""The command `cache`: what lies in the folder of prepared tensors, and making room there. No run is ever removed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pipeline import files, reuse, stages
from pipeline.data.prepare import lock_of, read_manifest, use_of
from pipeline.errors import UserError
from pipeline.output import say
from pipeline.release import CacheConfig

_GB = 1e9


@dataclass(frozen=True)
class Kept:
    """A folder of the cache: what it holds, its bytes, and when it was last used, in seconds since 1970."""

    folder: Path
    what: str
    size: int
    used: float

    @property
    def is_in_use(self) -> bool:
        return any(files.is_locked(path) for path in (lock_of(self.folder), use_of(self.folder)))


def main(config: CacheConfig, given: Mapping[str, str]) -> int:
    """List what is there, or remove what was used longest ago; `given` are the flags. Returns the exit status."""
    if config.action == "list" and "max_gb" in given:
        raise UserError(f"max_gb={config.max_gb:g} has no effect on `cache list`. Use `cache gc`, or leave --max_gb out.")
    if config.action == "gc" and "max_gb" not in given:
        raise UserError("max_gb: nothing was given. Add --max_gb N: what may stay, in GB.")
    root = config.cache_dir.expanduser()
    kept = sorted(_kept(root), key=lambda each: each.used)
    if config.action == "gc":
        return _collect(root, kept, config.max_gb * _GB)
    say(f"{root}: {_gb(sum(each.size for each in kept))} in {len(kept)} folders")
    for each in reversed(kept):
        in_use = ", in use" if each.is_in_use else ""
        say(f"  {_gb(each.size):>10}  last used {_time(each.used)}  {each.what:16}  {each.folder.name}{in_use}")
    runs = reuse.known_runs()
    say(f"{reuse.RUNS.absolute()}: {len(runs)} runs that `run` and `train` know again, and that are never removed here")
    for folder, known in runs:
        arguments = known["train"]["arguments"]
        done = ", ".join(name for name in ("train", *stages.LATER) if name in known)
        when = _time((folder / stages.FILE).stat().st_mtime)
        say(f"  {when}  {folder.name}: {arguments['model']} on {arguments['dataset']} ({done})")
    return 0


def _kept(root: Path) -> Iterator[Kept]:
    """Yield what commands of ours have left in a cache; any other folder is passed over."""
    for folder in sorted(root.iterdir()) if root.is_dir() else ():
        if folder.is_symlink() or not folder.is_dir():
            continue
        what = ""
        if folder.name == "onnxruntime-web":
            what = "for web pages"
        elif folder.suffix == ".part" and lock_of(folder.with_suffix("")).exists():
            what = "half prepared"
        elif lock_of(folder).exists():
            with suppress(OSError, ValueError, KeyError, TypeError):
                what = f"prepared {read_manifest(folder)['identity']['dataset']}"
        if what:
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            yield Kept(folder, what, size, folder.stat().st_mtime)


def _collect(root: Path, kept: list[Kept], most: float) -> int:
    """Remove folders, those used longest ago first, until no more than `most` bytes are left."""
    left, removed = sum(each.size for each in kept), 0
    for each in kept:
        if left <= most:
            break
        place = each.folder.with_suffix("") if each.folder.suffix == ".part" else each.folder
        try:
            with files.locked(lock_of(place), wait=0), files.locked(use_of(place), wait=0):
                gone = each.folder.with_name(f".{each.folder.name}.gone")
                each.folder.rename(gone)  # whoever looks for it sees all of it or nothing
                shutil.rmtree(gone)
        except files.Locked:
            say(f"{each.folder.name} is in use, and stays")
            continue
        say(f"removed {each.folder.name} ({_gb(each.size)})")
        left, removed = left - each.size, removed + 1
    say(f"{root}: {removed} folders removed, {_gb(left)} left")
    if left > most:
        say(f"{_gb(left)} is more than --max_gb {most / _GB:g}: what is in use cannot be removed", error=True)
        return 1
    return 0


def _gb(size: float) -> str:
    return f"{size / _GB:.3f} GB"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
