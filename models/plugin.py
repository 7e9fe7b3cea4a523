"""`file.py:Name` and `package.module:Name` to an object: own models, data and losses. Torch is not imported here.

A file is loaded by its path, into a package of a private name that stands for its folder: so that folder, or one beside the
file, may be called models or pipeline. `from .blocks import Block` finds blocks.py beside it at any time, `import blocks` only
while the file is being loaded: what it imports so is forgotten again, as two files may each have another utils.py beside them.

Every error is a PluginError whose text is the end of a sentence that begins with flag=value: `model=net.py:Net has no ...`.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.machinery
import importlib.util
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import reduce
from pathlib import Path
from types import ModuleType

_OURS = ("models", "pipeline", "export")  # what a user's folder may be called as well
_HOME = Path(__file__).resolve().parents[1]
_MOST_BYTES = 10_000_000  # of one source file
_PRIVATE = "_trainyard_"  # begins the names of the packages that stand for users' folders
_TEXT = 100  # characters of a line that are shown
_loaded: dict[str, ModuleType] = {}  # by the private name, which has the hash of path and content in it


class PluginError(ValueError):
    """What is wrong with a name or with what it stands for: the end of a sentence that begins `flag=value `."""


@dataclass(frozen=True)
class Source:
    """The file that a name stands for, as bytes, and in `files` this one and those of its folder that it imports.

    `files` maps names relative to the folder to bytes, the file itself first. `sha256` covers them all; of one file it is the
    file's own, of several that of the lines `<sha256>  <name>`, sorted, as sha256sum prints them.
    """

    path: Path
    content: bytes
    files: dict[str, bytes]
    sha256: str


@dataclass(frozen=True)
class Code:
    """What a run keeps of own code: `name` is file:Name within a folder of `files`, relative names and bytes."""

    name: str
    files: dict[str, bytes]
    sha256: str


def load(spec: str) -> object:
    """Return what `file.py:Name` or `package.module:Name` names; a file is loaded once, and anew when it was changed.

    Raises PluginError where there is no such thing, or where loading it raises or calls sys.exit.
    """
    place, name = parts(spec)
    check(spec)
    module = _load_file(_path_of(place)) if is_file(place) else _load_module(place)
    try:
        value = reduce(getattr, name.split("."), module)
    except AttributeError:
        raise PluginError(_without(name, place, [key for key in vars(module) if not key.startswith("_")])) from None
    if not callable(value):
        raise PluginError(
            f"is of type {type(value).__name__} and cannot be called. Name a class, or a function that returns what is needed."
        )
    return value


def check(spec: str) -> None:
    """Raise PluginError for what can be told without running anything: no file, a syntax error, no such name in it."""
    place, name = parts(spec)
    path = locate(place, name)
    if path is None:  # not written in Python
        return
    names = _names(_tree(path, _read(path)))
    if names is not None and name.partition(".")[0] not in names:
        raise PluginError(_without(name, place, names))


def source_of(spec: str) -> Source:
    """Return the source of a name without running it. Raises PluginError where there is none to read."""
    place, _ = parts(spec)
    path = locate(place)
    if path is None:
        raise PluginError("is not written in Python, so that its source cannot be kept. Name a class of a .py file.")
    content = _read(path)
    files = {path.name: content}
    if is_file(place):
        _add_siblings(path, path.parent, files)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    listing = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return Source(path, content, files, digests[path.name] if len(files) == 1 else hashlib.sha256(listing.encode()).hexdigest())


def code_of(spec: str) -> Code | None:
    """Return the code of `file.py:Name`, with the files beside it that it imports; None for a name in an installed package.

    Raises PluginError where there is none, or one lies deeper than one folder below, which is not kept.
    """
    place, name = parts(spec)
    if not is_file(place):
        return None
    found = source_of(spec)
    if deep := [file for file in found.files if file.count("/") > 1]:
        raise PluginError(f"imports {deep[0]}, more than one folder below, which is not kept in a run. Lay it nearer.")
    return Code(f"{found.path.name}:{name}", found.files, found.sha256)


def parts(spec: str) -> tuple[str, str]:
    """Split `place:Name`. Raises PluginError where one of the two is missing."""
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not all(part.isidentifier() for part in name.split(".")):
        raise PluginError("is not of the form file.py:Name or package.module:Name.")
    return place, name


def is_file(place: str) -> bool:
    """Tell a file from a module of a package."""
    return place.endswith(".py") or "/" in place or "\\" in place


def locate(place: str, name: str = "Name") -> Path | None:
    """Return the source file of a place; None where it is not written in Python. Nothing is run. Raises PluginError."""
    if is_file(place):
        return _path_of(place)
    if not all(part.isidentifier() for part in place.split(".")):
        raise PluginError(
            f"names {place!r}, which is neither a .py file nor a module. Give file.py:Name or package.module:Name."
        )
    spec, folders, full = None, None, ""
    for part in place.split("."):
        full = f"{full}.{part}" if full else part
        try:
            if folders is None:  # of a top level only, as for others the packages around them would be run
                spec = importlib.util.find_spec(full)
            else:
                spec = importlib.machinery.PathFinder.find_spec(full, folders)
        except (ImportError, ValueError):
            spec = None
        if spec is None:
            raise PluginError(_no_module(place, full, name))
        folders = list(spec.submodule_search_locations or ())
    assert spec is not None
    return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None


def networks_in(path: Path) -> list[str]:
    """Return the names of the classes of a file that look like networks, by its text alone."""
    found: list[str] = []
    for node in _tree(path, _read(path)).body:
        if isinstance(node, ast.ClassDef):
            bases = [ast.unparse(base) for base in node.bases]
            if any(base in found or base.endswith("Module") or base.split(".")[0] == "nn" for base in bases):
                found.append(node.name)
    return found


def line_of(error: BaseException, *, skip: tuple[str, ...] = ()) -> str:
    """Return the innermost line of an error's traceback that is not in the folders `skip`, as `file.py:4: text`, or nothing."""
    outside = (*skip, str(_HOME / "models"), "<")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(outside)]
    if not frames:
        return ""
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}: `{(frames[-1].line or '')[:_TEXT]}`"


def describe(error: BaseException, *, skip: tuple[str, ...] = ()) -> str:
    """Return in one line what an error of somebody else's code says, of which type it is, and where it was raised."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "").rstrip(".")
    line = line_of(error, skip=skip)
    return type(error).__name__ + (f": {first[:300]}" if first else "") + (f" ({line})" if line else "")


def _path_of(place: str) -> Path:
    path = Path(place).expanduser()
    if not place.endswith(".py"):
        raise PluginError(f"names {place}, which is no .py file. Give file.py:Name.")
    if not path.is_file():
        kind = "is not a file" if path.exists() else "does not exist"
        raise PluginError(f"names {path.absolute()}, which {kind}. Give the path of a .py file.")
    return path.resolve()


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise PluginError(
                f"names {path}, which has more than {_MOST_BYTES // 1_000_000} MB and is no source. Give another."
            )
        return path.read_bytes()
    except OSError as error:
        raise PluginError(f"names {path}, which cannot be read ({error.strerror}).") from error


def _tree(path: Path, content: bytes) -> ast.Module:
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(content, str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise PluginError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    if not isinstance(error, SyntaxError):
        return f"cannot be loaded: {path.name} is no Python source ({describe(error)})."
    text = f" (`{error.text.strip()[:_TEXT]}`)" if error.text and error.text.strip() else ""
    file = Path(error.filename or path).name
    return f"cannot be loaded: {file}:{error.lineno or 1}: {error.msg}{text}. Mend that line."


def _names(tree: ast.Module) -> list[str] | None:
    """Return what a module binds at its top level, classes first; None where only running it can tell."""
    classes, others = [], []
    for node in _top_level(tree.body):
        if isinstance(node, ast.ClassDef):
            classes.append(node.name)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            others.append(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            if any(alias.name == "*" for alias in node.names):
                return None
            others += [alias.asname or alias.name.partition(".")[0] for alias in node.names]
        else:
            others += [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
            called = {n.func.id for n in ast.walk(node) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
            if called & {"globals", "exec", "setattr", "vars", "locals"}:
                return None
    return None if "__getattr__" in others else list(dict.fromkeys(classes + others))


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, (ast.If, ast.Try, ast.With, ast.For, ast.While)):
            yield from _top_level([n for n in ast.iter_child_nodes(node) if isinstance(n, ast.stmt)])
            yield from _top_level([n for h in getattr(node, "handlers", []) for n in h.body])
        yield node


def _without(name: str, place: str, names: list[str]) -> str:
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {place}:{near[0]}?" if near else ""
    shown = ", ".join(names[:10]) + (" and more" if len(names) > 10 else "")
    return f"has no {name}.{hint} " + (f"{place} has: {shown}." if names else f"{place} defines nothing.")


def _no_module(place: str, missing: str, name: str) -> str:
    file = Path(*place.split(".")).with_suffix(".py")
    if file.is_file():
        return f"names {place}, which is not installed. There is a file of that name here: give {file}:{name}."
    top = place.partition(".")[0]
    ours = f" ({top} is a part of this program: own code of that name is given as a file)" if top in _OURS else ""
    return (
        f"names {place}, and there is no module {missing}{ours}. Install its package, or give the path of a file: file.py:Name."
    )


def _load_module(place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        raise _failed(error, place) from error


def _failed(error: BaseException, place: str) -> PluginError:
    """Return what is to be raised for an error while loading; a SystemExit that stands for a signal is raised as it is."""
    if isinstance(error, SystemExit):
        if type(error) is not SystemExit:
            raise error
        where = line_of(error, skip=("<",))
        return PluginError(
            f'cannot be loaded: {where or place} ends the program. Put what is to be run under `if __name__ == "__main__":`.'
        )
    if isinstance(error, PluginError):
        return error
    if isinstance(error, SyntaxError):
        return PluginError(_unreadable(Path(place), error))
    if isinstance(error, ModuleNotFoundError) and error.name:
        missing = "." + error.name.partition(".")[2] if error.name.startswith(_PRIVATE) else error.name
        return PluginError(
            f"cannot be loaded: it needs the module {missing}, which is neither installed nor in its folder ({line_of(error)})."
        )
    return PluginError(f"cannot be loaded: {describe(error)}.")


def _load_file(path: Path) -> ModuleType:
    content = _read(path)
    package = _PRIVATE + hashlib.sha256(str(path).encode() + b"\0" + content).hexdigest()[:16]
    if package in _loaded:
        return _loaded[package]
    folder = ModuleType(package)
    folder.__path__ = [str(path.parent)]
    spec = importlib.util.spec_from_file_location(f"{package}.{path.stem}", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules |= {package: folder, module.__name__: module}
    try:
        with _beside(path.parent):  # the bytes that were hashed, and no __pycache__ in somebody else's folder
            exec(compile(content, str(path), "exec", dont_inherit=True), vars(module))
    except BaseException as error:
        for name in [n for n in sys.modules if n.partition(".")[0] == package]:
            del sys.modules[name]
        if isinstance(error, (Exception, SystemExit)):
            raise _failed(error, str(path)) from error
        raise
    return _loaded.setdefault(package, module)


@contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """Let `import x` find x in `folder`, also where x is called as a package of ours, and forget what came from there."""
    before, path = dict(sys.modules), list(sys.path)
    hidden = {name for name in _OURS if folder != _HOME and _provides(folder, name)}
    for name in [n for n in sys.modules if n.partition(".")[0] in hidden]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        tops = {name.partition(".")[0] for name in sys.modules} - {name.partition(".")[0] for name in before} | hidden
        theirs = {top for top in tops if _provides(folder, top)}
        for name in [n for n in sys.modules if n.partition(".")[0] in theirs]:
            del sys.modules[name]
        sys.modules |= {name: module for name, module in before.items() if name.partition(".")[0] in hidden}


def _provides(folder: Path, name: str) -> bool:
    """Tell whether a folder has a module or a package of this name in it."""
    return (folder / f"{name}.py").is_file() or next((folder / name).glob("*.py"), None) is not None


def _add_siblings(path: Path, root: Path, files: dict[str, bytes]) -> None:
    """Add the files below `root` that the file at `path` imports, and those that they import."""
    for node in ast.walk(_tree(path, files[path.relative_to(root).as_posix()])):
        if isinstance(node, ast.Import):
            wanted = [(root, alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1] if 0 < node.level <= len(path.parents) else root
            stem = node.module.split(".") if node.module else []
            wanted = [(base, [*stem, alias.name]) for alias in node.names]
        else:
            continue
        for base, names in wanted:
            if not base.is_relative_to(root) or (base == _HOME and names[0] in _OURS):
                continue
            for length in range(len(names) + 1):
                stem_path = base.joinpath(*names[:length])
                for file in (stem_path.with_name(stem_path.name + ".py"), stem_path / "__init__.py"):
                    if not file.is_relative_to(root) or not file.is_file():
                        continue
                    relative = file.relative_to(root).as_posix()
                    if relative not in files:
                        files[relative] = _read(file)
                        _add_siblings(file, root, files)
