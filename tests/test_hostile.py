"""Bad and hostile input, through the command line: one sentence, exit status 2, and nothing outside the given folders.

More of it: broken raw files in tests/pipeline/data, ONNX files in tests/export/test_verify.py, pickles in
tests/pipeline/test_store.py, damage to every file of a run in tests/faults/test_damage.py.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision.datasets

from pipeline.cli import main
from pipeline.data import builtin
from pipeline.data.mnist import FILES as MNIST_FILES
from pipeline.data.spec import Samples, Source


def _spoilt(change: Callable[[Samples], Samples]) -> Source:
    honest = builtin.SOURCES["breast_cancer"]
    return dataclasses.replace(honest, load=lambda data_dir, seed: change(honest.load(data_dir, seed)))


def _with(array: Any, index: Any, value: Any) -> Any:
    array = array.copy()
    array[index] = value
    return array


BAD: dict[str, tuple[Callable[[Samples], Samples], str]] = {
    "NaN": (lambda s: Samples(_with(s.x, (7, 3), np.nan), s.y), "has inputs that are not finite, first in sample 7"),
    "infinity": (lambda s: Samples(_with(s.x, (0, 0), np.inf), s.y), "has inputs that are not finite, first in sample 0"),
    "label too large": (lambda s: Samples(s.x, _with(s.y, 5, 2)), "has labels from 0 to 2 for the 2 classes 0 to 1"),
    "label below 0": (lambda s: Samples(s.x, _with(s.y, 5, -1)), "has labels from -1 to 1 for the 2 classes"),
    "too few labels": (lambda s: Samples(s.x, s.y[:-1]), "has inputs (569, 30) and targets (568,), not (N, 30) and N"),
    "another width": (lambda s: Samples(s.x[:, :-1], s.y), "has inputs (569, 29) and targets (569,), not (N, 30) and N"),
    "nothing": (lambda s: Samples(s.x[:0], s.y[:0]), "has inputs (0, 30) and targets (0,)"),
    "bad test set": (
        lambda s: s._replace(y=_with(s.y, 0, 9), split=np.array(["test"] + ["train"] * (len(s.y) - 1))),
        "has labels from 0 to 9",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_samples_that_no_model_can_learn_from_are_told_before_anything_is_created(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    change, said = BAD[name]
    monkeypatch.setitem(builtin.SOURCES, "breast_cancer", _spoilt(change))  # type: ignore[arg-type]
    assert main(["train", "--model", "mlp", "--output_dir", "run", "--cache_dir", str(tmp_path / "cache")]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1 and told.startswith("dataset=breast_cancer ")
    assert not (tmp_path / "run").exists() and not list((tmp_path / "cache").glob("*/manifest.json"))


def _archive(kind: str, outside: Path) -> bytes:
    """Return a tar archive with a member that leaves the folder into which it is unpacked."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        entry = tarfile.TarInfo("../../../outside/evil" if kind == "dots" else "link")
        if kind == "link":
            entry.type, entry.linkname = tarfile.SYMTYPE, str(outside)
            archive.addfile(entry)
            entry = tarfile.TarInfo("link/evil")
        entry.size = 4
        archive.addfile(entry, io.BytesIO(b"evil"))
    return content.getvalue()


@pytest.mark.parametrize("kind", ["dots", "link", "truncated gzip", "gzip of nonsense"])
def test_an_archive_in_the_place_of_the_raw_files_writes_nothing_outside(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])  # nothing listens there
    outside, raw = tmp_path / "outside", tmp_path / "data" / "MNIST" / "raw"
    outside.mkdir()
    raw.mkdir(parents=True)
    if kind in ("dots", "link"):
        content = _archive(kind, outside)
    else:
        content = gzip.compress(os.urandom(2000))
        content = content[:900] if kind.startswith("truncated") else content
    for name in MNIST_FILES:
        (raw / f"{name}.gz").write_bytes(content)
    flags = ["--dataset", "mnist", "--data_dir", str(tmp_path / "data"), "--cache_dir", str(tmp_path / "cache")]
    assert main(["train", "--model", "cnn", "--output_dir", "run", *flags]) == 2
    told = capsys.readouterr().err
    assert "dataset=mnist: its files are not in" in told and "Traceback" not in told
    assert list(outside.iterdir()) == [] and not (tmp_path / "run").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"outside", "data", "cache"}


@pytest.mark.parametrize("lie", ["more images than bytes", "negative size", "another magic number", "no header"])
def test_raw_files_whose_header_lies_are_named(lie: str, tmp_path: Path, capsys: Any) -> None:
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    header = {"more images than bytes": (2051, 1 << 30), "negative size": (2051, 1 << 31), "another magic number": (7, 40)}
    for name in MNIST_FILES:
        images = "images" in name
        magic, count = (2051 if images else 2049), 40
        if images and lie in header:
            magic, count = header[lie]
        sizes = [count, 28, 28] if images else [count]
        head = b"" if lie == "no header" else b"".join(n.to_bytes(4, "big") for n in (magic, *sizes))
        (raw / name).write_bytes(head + bytes(40 * (784 if images else 1)))
    flags = ["--dataset", "mnist", "--data_dir", str(tmp_path / "data"), "--cache_dir", str(tmp_path / "cache")]
    assert main(["prepare", *flags]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"data_dir={tmp_path / 'data'}") and "Traceback" not in told
    assert not list((tmp_path / "cache").glob("*/manifest.json"))
