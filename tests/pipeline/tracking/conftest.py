"""One small run, really trained and verified by `run --promote true`, once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli import main

FLAGS = ["--model", "mlp", "--epochs", "2", "--formats", "onnx", "--promote", "true"]


@pytest.fixture(scope="session")
def proven(session_folder: Path, cache_dir: Path) -> Path:
    folder = session_folder / "promoted" / "run"
    assert main(["run", *FLAGS, "--output_dir", str(folder), "--cache_dir", str(cache_dir)]) == 0
    return folder
