"""`manifest.json`: which files of a run folder are whole, with the SHA-256 of each, and which stage makes them.

A stage takes the names of the files that it makes out of the manifest before it writes the first, and puts them back when the
last is written. So what a stage that was cut off has left behind counts for nothing, and that stage can be run again. No file
that this table does not name is ever sealed or sent, and none is reached through a link.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from pipeline import files
from pipeline.errors import UserError
from pipeline.files import read_json, sha256

WEIGHTS = "weights.safetensors"
LAST_WEIGHTS = "last.safetensors"
METRICS = "metrics.jsonl"
SYSTEM = "system.jsonl"
JOURNALS = (METRICS, SYSTEM)  # they grow, so they are never sealed
TRACKING = "tracking.json"
STAGES = "stages.json"  # by what each stage was done, its key
EVALUATIONS = ("test.json", "train.json")  # of a split each
LOG = "run.log"  # what the run has said; it grows too
FORMULA = "formula.txt"
ANSWERS = "answers.safetensors"  # what the model gave for each sample of its evaluation
PAGE = "report.html"
MANIFEST = "manifest.json"
LOCK = ".lock"

CODE: Mapping[str, str] = {"model": "code", "loss": "loss_code"}  # the folder of each field that may be own code
_SOURCES = tuple(f"{folder}/{name}" for folder in CODE.values() for name in ("*.py", "*/*.py"))

REPORTS = ("export/parity.json", "export/parity.md")
BENCHMARK = "benchmark/benchmark.json"

FILES: Mapping[str, tuple[str, ...]] = {
    "train": ("config.json", "parameters.md", WEIGHTS, LAST_WEIGHTS, *_SOURCES),
    "evaluate": (*EVALUATIONS, ANSWERS, FORMULA, "plots/*.png"),
    "export": ("export/config.json", "export/model.*", "rejected/model.*.onnx"),  # a file of each format, all sealed at once
    "verify": (*REPORTS, "rejected/*.json"),
    "benchmark": (BENCHMARK, "benchmark/benchmark.md", "benchmark/benchmark.png"),
    "report": (PAGE,),
}
"""What each stage makes: names, and patterns of names within one folder."""
REPLACES: Mapping[str, tuple[str, ...]] = {
    "train": sum(FILES.values(), ()),
    "evaluate": FILES["evaluate"] + FILES["report"],
    "export": FILES["export"] + FILES["verify"] + FILES["benchmark"] + FILES["report"],
    "verify": FILES["verify"] + FILES["report"],
    "benchmark": FILES["benchmark"] + FILES["report"],
    "report": FILES["report"],
}
"""What no longer holds when a stage begins to write: its own files, and those that speak of them."""
_OPTIONAL = (*EVALUATIONS, FORMULA, *_SOURCES, "rejected/model.*.onnx", "rejected/*.json")  # some runs have none
_UNSEALED = (MANIFEST, TRACKING, STAGES, LOG, *JOURNALS, LOCK, "checkpoints/step-*.pt", "checkpoints/step-*.json",
             "export/parity-*.json", "export/parity-*.md")  # the last two: of somebody else's file  # fmt: skip
_KNOWN = (*sum(FILES.values(), ()), *_UNSEALED)
_FOLDERS = {name.rpartition("/")[0] for name in _KNOWN} - {""}
_TEMPORARY_FOLDERS = ("upload", "takeover")


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Tell whether a name relative to the run folder is one of `patterns`; a star stands for no slash."""
    return any(name == p or (name.count("/") == p.count("/") and fnmatchcase(name, p)) for p in patterns)


def read(folder: Path) -> tuple[str, dict[str, str]]:
    """Return the MLflow run id of a manifest and the SHA-256 of each file it names; nothing where there is none.

    Raises UserError for one that cannot be read, or that names a file which no stage makes.
    """
    path = folder / MANIFEST
    if not path.exists():
        return "", {}
    try:
        manifest = read_json(path)
        owner, digests = manifest["mlflow_run_id"], manifest["sha256"]
        if not isinstance(owner, str) or not isinstance(digests, dict) or not all(isinstance(d, str) for d in digests.values()):
            raise ValueError("it is not a run id and a table of files with their SHA-256")
        if strange := [name for name in digests if not matches(name, sum(FILES.values(), ()))]:
            raise ValueError(f"it names {strange[0][:80]!r}, which no stage makes")
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = str(error) if type(error) is ValueError else repr(error)
        raise UserError(
            f"run={folder} has a {MANIFEST} that cannot be read: {what[:200]}. Fetch the run again; or remove that file, and "
            f"finish the training: python -m pipeline train --output_dir {folder} --resume true"
        ) from error
    return owner, digests


def seal(folder: Path, run_id: str, *patterns: str) -> None:
    """Put the files of `patterns` that are there into the manifest, as a stage has written all of them."""
    kept = {name: digest for name, digest in read(folder)[1].items() if not matches(name, patterns)}
    _write(folder, run_id, kept | {name: sha256(folder / name) for name in _present(folder, patterns)})


def unseal(folder: Path, run_id: str, *patterns: str) -> None:
    """Take the files of `patterns` out of the manifest, as a stage is about to write them."""
    digests = read(folder)[1]
    kept = {name: digest for name, digest in digests.items() if not matches(name, patterns)}
    if kept != digests:
        _write(folder, run_id, kept)


def move(folder: Path, run_id: str, name: str, to: str) -> None:
    """Move a file of a run into another folder of it; cut off anywhere, the manifest names one that is there and whole."""
    (folder / to).parent.mkdir(exist_ok=True)
    with files.atomic(folder / to) as temporary:
        temporary.write_bytes((folder / name).read_bytes())
    digests = read(folder)[1]
    if name in digests:
        _write(folder, run_id, {k: d for k, d in digests.items() if k != name} | {to: digests[name]})
    (folder / name).unlink()


def _write(folder: Path, run_id: str, digests: Mapping[str, str]) -> None:
    files.write_json(folder / MANIFEST, {"mlflow_run_id": run_id, "sha256": dict(sorted(digests.items()))})


def _present(folder: Path, patterns: tuple[str, ...]) -> Iterator[str]:
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)) if "*" in pattern else [folder / pattern]:
            if _is_file(path) and not path.name.startswith("."):
                yield path.relative_to(folder).as_posix()


def _is_file(path: Path) -> bool:
    """Tell whether a path is a plain file, and no link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def check(folder: Path, *, but: tuple[str, ...] = ()) -> None:
    """Hold every sealed file against the manifest, `but` those that are about to be made anew.

    Raises UserError for one that is missing or was changed.
    """
    for name, digest in read(folder)[1].items():
        if matches(name, but):
            continue
        if not _is_file(folder / name):
            raise UserError(f"run={folder}: {name} is missing. {_remedy(folder, name)}")
        if sha256(folder / name) != digest:
            raise UserError(
                f"run={folder}: {name} is not the file that was written (its SHA-256 differs). {_remedy(folder, name)}"
            )


def _remedy(folder: Path, name: str) -> str:
    stage = next(stage for stage, patterns in FILES.items() if matches(name, patterns))
    return f"Fetch the run again, or make it anew{' from its checkpoint' * (stage == 'train')}: {_command(folder, stage)}"


def _command(folder: Path, stage: str) -> str:
    return f"python -m pipeline {stage} " + (f"--output_dir {folder} --resume true" if stage == "train" else f"--run {folder}")


def is_sealed(folder: Path, stage: str) -> bool:
    """Tell whether a stage has come to its end, by the manifest alone."""
    sealed = read(folder)[1]
    return all(any(matches(name, (pattern,)) for name in sealed) for pattern in FILES[stage] if pattern not in _OPTIONAL)


def is_whole(folder: Path, stage: str) -> bool:
    """Tell whether a stage has come to its end, and each of its files still is what it was then."""
    return is_sealed(folder, stage) and not any(damaged(folder, stage))


def damaged(folder: Path, stage: str) -> Iterator[str]:
    """Yield what has become of each file of a stage that is no longer what was sealed, as `model.onnx is missing`."""
    for name, digest in read(folder)[1].items():
        if matches(name, FILES[stage]):
            if not _is_file(folder / name):
                yield f"{name} is missing"
            elif sha256(folder / name) != digest:
                yield f"{name} was changed"


def need(folder: Path, stage: str) -> None:
    """Raise UserError if a stage whose files are about to be read has not come to its end."""
    if not is_sealed(folder, stage):
        what = "its training did not end" if stage == "train" else f"its {stage} was never done, or was cut off"
        raise UserError(f"run={folder}: {what}. Do it first: {_command(folder, stage)}")


def refuse_links(folder: Path) -> None:
    """Raise UserError if a file of the run, or a folder of such files, is a link."""
    for path in (path for inner in ("", *_FOLDERS) if (folder / inner).is_dir() for path in (folder / inner).iterdir()):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and (name in _FOLDERS or matches(name, _KNOWN)):
            raise UserError(f"run={folder}: {name} is a link. A run's files are not reached through links.")


def refuse_strangers(folder: Path, run_id: str) -> None:
    """Raise UserError if manifest, tracking note or a checkpoint belong to another MLflow run than `run_id`."""
    for path in (folder / MANIFEST, folder / TRACKING, *sorted((folder / "checkpoints").glob("step-*.json"))):
        try:
            owner = read_json(path)["mlflow_run_id"]
        except (OSError, ValueError, KeyError, TypeError):  # none, or damaged: told by whoever reads it
            continue
        if owner != run_id:
            raise UserError(
                f"run={folder} holds files of two runs: config.json is of MLflow run {run_id or 'none'}, and "
                f"{path.relative_to(folder)} is of {str(owner)[:80]}. Take out what was put there by mistake."
            )


def foreign(folder: Path) -> list[str]:
    """Return the names of all that lies in a folder, without the lock and the temporary files of a start that was cut off."""
    return sorted(p.name for p in folder.iterdir() if p.name != LOCK and not _is_leftover(p)) if folder.exists() else []


def sweep(folder: Path) -> None:
    """Remove what killed writes have left in a run folder. Only for who holds its lock: nobody else writes there."""
    for inner in ("", *_FOLDERS):
        if (folder / inner).is_dir() and not (folder / inner).is_symlink():
            for path in [path for path in (folder / inner).iterdir() if _is_leftover(path)]:
                files.remove(path)


def _is_leftover(path: Path) -> bool:
    meant = files.written_as(path.name)
    return meant in _TEMPORARY_FOLDERS or any(fnmatchcase(meant, pattern.rpartition("/")[2]) for pattern in _KNOWN)
