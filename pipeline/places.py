"""The files and folders that flags name: what a name may look like, and what may lie there.

A name is looked at where a flag becomes a value, also when it comes from a stored configuration; the disk only when a command
begins, as the folders of another machine need not be there.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

FOLDERS = {  # fields that name a folder, and what it is for
    "data_dir": "raw files", "cache_dir": "prepared tensors", "output_dir": "a run", "output": "what is made",
    "run": "a run", "runtime": "onnxruntime-web", "repository": "models",
}  # fmt: skip
_WRITTEN = ("cache_dir", "output_dir", "output", "repository")
FIELDS = frozenset(FOLDERS) | {"onnx", "input", "weights"}
NAMES_OR_FILES = ("dataset", "model", "loss", "storage")  # a name, file.py:function, an address of a database, or a file
_LONGEST_NAME, _LONGEST_PATH = 255, 3000  # bytes: what Linux takes, less what the pipeline adds


def expanded(text: str) -> str:
    """Return a path with `~` as the home folder. Raises ValueError with the end of a sentence that begins `name=text `."""
    path = os.path.expanduser(text)
    if str(Path(path)).startswith("~"):
        raise ValueError("begins with ~, which is no home folder here. Give the path in full.")
    check_length(path)
    return path


def check_length(path: str) -> None:
    """Raise ValueError, with the end of a sentence as `expanded`, where no file system has room for such a name."""
    if len(path.encode()) > _LONGEST_PATH or any(len(part.encode()) > _LONGEST_NAME for part in path.split("/")):
        raise ValueError(f"is longer than a file system takes ({_LONGEST_NAME} bytes a name). Give a shorter one.")


def is_somewhere() -> bool:
    """Tell whether the working folder is still there: without one, libraries end the process with words of their own."""
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def occupied(values: Mapping[str, object], *, written: Collection[str] = ()) -> Iterator[tuple[str, str]]:
    """Yield the field and the message for every folder among `values` that cannot be one; `written` are files to be written."""
    for name in written:
        if text := str(values.get(name) or ""):
            path = Path(text)
            is_other = path.exists() and not path.is_file()  # a folder, or a device, which a file would replace
            if reason := "is no file" if is_other else _obstacle(path.parent) or _unwritable(path.parent):
                yield name, f"{name}={text} {reason}. Give the name of a file."
    for name, purpose in FOLDERS.items():
        if name in written or not (path := Path(str(values.get(name) or ""))).name:
            continue
        if reason := _obstacle(path) or (_unwritable(path) if name in _WRITTEN else ""):
            yield name, f"{name}={path} {reason}. Give a folder for {purpose}."


def _unwritable(path: Path) -> str:
    """Return why nothing can be written there, or into the folder where it would be made; try it with a file without a name."""
    from tempfile import TemporaryFile

    try:
        with TemporaryFile(dir=next(folder for folder in (path, *path.absolute().parents) if folder.exists())):
            return ""
    except OSError as error:
        return f"cannot be written ({error.strerror})"


def _obstacle(path: Path) -> str:
    """Return why there can be no folder of that name, or nothing: whatever is not there can be made."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "is a link to nothing" if path.is_symlink() else ""
    except NotADirectoryError:
        return "lies in a file, not in a folder"
    except OSError as error:
        return f"cannot be looked at ({error.strerror})"
    return "" if stat.S_ISDIR(mode) else "is a file, not a folder"
