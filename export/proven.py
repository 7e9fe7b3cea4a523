"""The files of a run that its last proof has passed: the bytes that were proven, or none.

Of a file that was changed since, or that belongs to another proof, nothing is given. Without torch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from pipeline import manifest
from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.run import Run

_FOLDER = "export"  # what misses its gate lies elsewhere


@dataclass(frozen=True)
class ProvenFile:
    """An exported file: its name in `export/`, its bytes, and their SHA-256, which manifest and report know."""

    file: str
    content: bytes
    sha256: str


def proven_files(run: Run) -> dict[str, ProvenFile]:
    """Return a run's proven files by format, in the order of the reports.

    Raises UserError where no proof has come to its end or it failed, and for a file that is not the one that was proven.
    """
    manifest.need(run.folder, "export")
    manifest.need(run.folder, "verify")
    report = read_json(run.folder / manifest.REPORTS[0])
    if not report["passed"]:
        raise UserError(
            f"run={run.folder}: its files disagree with the model ({manifest.REPORTS[1]}), and must not be used. Export it "
            f"anew: python -m pipeline export --run {run.folder}"
        )
    sealed = manifest.read(run.folder)[1]
    found = {}
    for name, part in report["artifacts"].items():
        if part.get("problems"):  # one that missed its gate
            continue
        path = run.folder / _FOLDER / part["file"]
        content = path.read_bytes() if path.is_file() else b""
        digest = hashlib.sha256(content).hexdigest()
        if not digest == part["sha256"] == sealed.get(f"{_FOLDER}/{part['file']}"):
            raise UserError(
                f"run={run.folder}: {_FOLDER}/{part['file']} is not the file that was proven (its SHA-256 differs). Prove "
                f"what is there: python -m pipeline verify --run {run.folder}"
            )
        found[name] = ProvenFile(part["file"], content, digest)
    return found


def proven_file(run: Run, name: str) -> ProvenFile:
    """Return a run's proven ONNX file of the format `name`. Raises UserError as `proven_files`, and where there is none."""
    proven = proven_files(run)
    if name not in proven:
        raise UserError(
            f"format={name}: run={run.folder} has no proven file of it. Give one of "
            f"{', '.join(each for each in proven if each.partition('-')[0] == 'onnx')}, or make it: python -m pipeline export "
            f"--run {run.folder} --formats {','.join(dict.fromkeys(['onnx', name]))}"
        )
    return proven[name]
