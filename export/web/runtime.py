"""onnxruntime-web, which computes in the browser: fetched by npm into the cache, or taken from a folder, and held to hashes.

Only the plain wasm build: it computes in float32 as onnxruntime does on a processor. One version, whose hashes stand here; what
npm brings has to be that, bit for bit. No other file of the package is used, and no script of it is run.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from pipeline import files
from pipeline.errors import Failure, UserError
from pipeline.output import say
from pipeline.values import shown

VERSION = "1.30.0"
PACKAGE = f"onnxruntime-web@{VERSION}"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # SHA-512 of the package
SCRIPT, LOADER, WASM = "ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"
SHA256 = {
    SCRIPT: "faece07e84faa9001f5104bbe4e5c70861d06cb2376a0dea1fa0ad33a67adc81",
    LOADER: "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    WASM: "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
NOTICE = f"onnxruntime-web {VERSION}, MIT license, Copyright (c) Microsoft Corporation."
_PATIENCE = 600  # s that npm may take
_ELSEWHERE = (
    f"Or fetch {PACKAGE} on another machine (npm pack {PACKAGE}, then unpack it) and give its folder dist/: --runtime FOLDER."
)


def find(folder: str, *, cache_dir: Path) -> Mapping[str, bytes]:
    """Return the three files by name: from `folder`, or from the cache, into which npm fetches them once.

    Raises UserError where a folder lacks one or holds another version, or there is no npm; Failure where npm brings nothing.
    """
    if folder:
        return _given(Path(folder))
    kept = cache_dir.expanduser() / "onnxruntime-web" / VERSION
    if (found := _whole(kept)) is None:
        found = _unpacked(_fetched(cache_dir.expanduser()))
        for name, content in found.items():
            with files.atomic(kept / name) as temporary:
                temporary.write_bytes(content)
    return found


def _given(folder: Path) -> Mapping[str, bytes]:
    place = next((each for each in (folder, folder / "dist", folder / "package" / "dist") if (each / WASM).is_file()), folder)
    found = {name: (place / name).read_bytes() for name in SHA256 if (place / name).is_file()}
    what = f"runtime={shown(str(folder))}"
    if missing := [name for name in SHA256 if name not in found]:
        raise UserError(f"{what} has no {missing[0]}. Give the folder dist/ of the npm package {PACKAGE}.")
    if others := [name for name, content in found.items() if not _is_right(name, content)]:
        raise UserError(
            f"{what} holds another {others[0]} than {PACKAGE} has (its SHA-256 differs). Give the folder dist/ of that version."
        )
    return found


def _whole(folder: Path) -> Mapping[str, bytes] | None:
    """Return the files in the cache, or None where one is missing or was changed."""
    try:
        found = {name: (folder / name).read_bytes() for name in SHA256}
    except OSError:
        return None
    return found if all(_is_right(name, content) for name, content in found.items()) else None


def _is_right(name: str, content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == SHA256[name]


def _fetched(cache: Path) -> bytes:
    """Return the package as npm brings it, from whatever registry npm is set to. Raises UserError or Failure."""
    npm = shutil.which("npm")
    if not npm:
        raise UserError(f"npm is not installed, which fetches {PACKAGE}. Install it (it comes with Node.js). {_ELSEWHERE}")
    say(f"fetching {PACKAGE} with npm (33 MB, once) ...")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".npm.") as folder:
        words = [npm, "pack", "--ignore-scripts", "--silent", PACKAGE]
        try:
            done = subprocess.run(
                words, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_PATIENCE, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise Failure(f"npm did not bring {PACKAGE} ({_first_line(str(error))}). {_ELSEWHERE}") from error
        packed = sorted(Path(folder).glob("*.tgz"))
        if done.returncode or len(packed) != 1:
            reason = _first_line(done.stderr) or f"exit status {done.returncode}"
            raise Failure(f"npm did not bring {PACKAGE} ({reason}). Look at the network and at npm's registry. {_ELSEWHERE}")
        return packed[0].read_bytes()


def _unpacked(package: bytes) -> Mapping[str, bytes]:
    """Return the three files of a package that is the one that was asked for. Raises Failure."""
    if base64.b64encode(hashlib.sha512(package).digest()).decode() != INTEGRITY:
        raise Failure(f"what npm brought is not {PACKAGE} as it was published (its SHA-512 differs). Nothing of it was used.")
    with tarfile.open(fileobj=BytesIO(package)) as archive:
        members = {name: archive.extractfile(f"package/dist/{name}") for name in SHA256}
        found = {name: member.read() for name, member in members.items() if member}
    assert all(_is_right(name, found[name]) for name in SHA256), "the hashes in this file are of another package"
    return found


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return shown(lines[0]) if lines else ""
