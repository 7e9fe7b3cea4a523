"""A search, a run that was found again, and a training on shards end in the same proven ONNX file as a training by hand."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from pipeline.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def _graph(folder: Path) -> bytes:
    """Return a run's proven ONNX file without what tells of its run and of its data's name."""
    assert json.loads((folder / "export" / "parity.json").read_text())["passed"]
    model = onnx.load(folder / "export" / "model.onnx")
    del model.metadata_props[:]
    return bytes(model.SerializeToString(deterministic=True))


def test_each_way_ends_in_the_same_file(tmp_path: Path, capfd: Any) -> None:
    x = np.random.default_rng(0).normal(size=(300, 4)).astype("f4")
    np.savez(tmp_path / "v.npz", x=x, y=(x[:, 0] > x[:, 1]).astype(int))
    same = ["--model", "mlp", "--epochs", "4", "--cache_dir", "cache"]
    searched = ["search", "--dataset", "v.npz", *same, "--space", "lr=1e-3..1e-1:log", "--trials", "3"]
    assert main([*searched, "--output_dir", "searched"]) == 0
    (winner,) = Path("searched").glob("winner-*")
    (by_hand,) = re.findall(r"^python -m pipeline (run .*)$", capfd.readouterr().out, flags=re.MULTILINE)
    words = [*shlex.split(by_hand), *([] if "--cache_dir" in by_hand else ["--cache_dir", "cache"])]
    assert main([*words, "--output_dir", "hand"]) == 0
    expected = _graph(Path("hand"))
    assert _graph(winner) == expected

    assert main(words) == 0  # a run that others may find
    (made,) = Path("runs").glob("mlp-*")
    assert _graph(made) == expected
    before, _ = (made / "export" / "model.onnx").read_bytes(), capfd.readouterr()
    assert main(words) == 0
    assert made.name in capfd.readouterr().out and [*Path("runs").glob("mlp-*")] == [made]
    assert (made / "export" / "model.onnx").read_bytes() == before

    assert main(["prepare", "--dataset", "v.npz", "--model", "mlp", "--shards", "1KB", "--output_dir", "shards"]) == 0
    assert len([*Path("shards").glob("train-*.arrow")]) > 2
    words[words.index("v.npz")] = "shards"
    assert main([*words, "--output_dir", "sharded"]) == 0
    assert _graph(Path("sharded")) == expected
