"""Runs whose files passed their proof, and the pages that are made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.cli import main

Proven = Callable[..., Path]
MakePage = Callable[..., Path]


@pytest.fixture(scope="session")
def proven(session_folder: Path, cache_dir: Path) -> Proven:
    """Return a function that gives a run folder, trained and verified once a session; its name and the flags of `run`."""

    def get(name: str, *flags: str) -> Path:
        folder = session_folder / f"web-{name}"
        if not folder.exists():
            assert main(["run", *flags, "--output_dir", str(folder), "--cache_dir", str(cache_dir)]) == 0
        return folder

    return get


@pytest.fixture
def sine(proven: Proven) -> Path:
    return proven("sine", "--model", "polynomial", "--epochs", "8", "--formats", "onnx")


@pytest.fixture
def make_page(tmp_path: Path, cache_dir: Path) -> MakePage:
    """Return a function that makes the page of a run in a new folder; onnxruntime-web is fetched once a session."""

    def make(run: Path, *flags: str) -> Path:
        folder = tmp_path / f"page-{len([*tmp_path.glob('page-*')])}"
        assert main(["web", "--run", str(run), "--output", str(folder), "--cache_dir", str(cache_dir), *flags]) == 0
        return folder

    return make
