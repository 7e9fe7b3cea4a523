"""An own loss is code of the run, as an own network is: kept with it, rebuilt from there, and not run unread where fetched."""

from __future__ import annotations

import json
import os
import shutil
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

from pipeline import files
from pipeline.cli import main
from pipeline.config import RunConfig
from pipeline.data.prepare import prepare, read_spec
from pipeline.errors import UserError
from pipeline.resolve import resolve
from pipeline.run import Run

LOSS = "from .powers import power\n\n\ndef loss(scores, target):\n    return power(scores - target).mean(1)\n"
POWERS = "def power(x):\n    return x.abs() ** 1.5\n"
NET = """
from torch import nn
from .powers import width


class Net(nn.Module):
    def __init__(self, in_features, num_outputs):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(in_features, width), nn.ReLU(), nn.Linear(width, num_outputs))

    def forward(self, x):
        return self.layers(x)
"""


def _write(folder: Path) -> None:
    """Write a table, and a loss and a network in files of the same names in two folders."""
    source = np.random.default_rng(0)
    rows = [f"{x:.4f},{y:.4f},{x + y:.4f}" for x, y in source.normal(size=(80, 2))]
    (folder / "t.csv").write_text("\n".join(["x,y,price", *rows]) + "\n")
    for name, content in {
        "one/own.py": LOSS, "one/powers.py": POWERS, "two/own.py": NET, "two/powers.py": "width = 5\n",
    }.items():  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)


def _flags(folder: Path) -> dict[str, str]:
    return {
        "dataset": f"{folder}/t.csv", "target": "price", "model": f"{folder}/two/own.py:Net",
        "loss": f"{folder}/one/own.py:loss", "epochs": "2", "checkpoint_every": "epoch", "cache_dir": f"{folder}/cache",
    }  # fmt: skip


def _words(flags: dict[str, str]) -> list[str]:
    return [word for name, value in flags.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, session_folder: Path) -> Path:
    """Return a folder with a run in `run`, trained and exported with an own loss and an own network, whose files are gone."""
    folder = tmp_path_factory.mktemp("place")
    _write(folder)
    assert main(["train", *_words(_flags(folder)), "--output_dir", f"{folder}/run"]) == 0
    shutil.rmtree(folder / "one")
    shutil.rmtree(folder / "two")
    assert main(["export", "--run", f"{folder}/run"]) == 0
    return folder


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Path:
    """Return a copy of that run."""
    shutil.copytree(place / "run", tmp_path / "run")
    return tmp_path / "run"


def test_a_run_keeps_its_loss_with_what_it_imports_and_its_network_apart_from_it(place: Path) -> None:
    run = Run.open(place / "run")
    sealed = json.loads((run.folder / "manifest.json").read_text())["sha256"]
    kept = [f"{folder}/{name}" for folder in ("code", "loss_code") for name in ("own.py", "powers.py")]
    assert [name for name in sorted(sealed) if "code" in name] == kept
    assert (run.folder / "loss_code" / "own.py").read_text() == LOSS and (run.folder / "code" / "own.py").read_text() == NET
    assert run.loss == f"{run.folder}/loss_code/own.py:loss" and run.model == f"{run.folder}/code/own.py:Net"


@pytest.mark.parametrize("stage", ["evaluate", "verify"])
def test_a_stage_takes_the_loss_of_the_run_when_its_file_is_gone(stage: str, place: Path, run: Path) -> None:
    before = json.loads((run / "test.json").read_text())
    assert main([stage, "--run", str(run), "--cache_dir", f"{place}/cache"]) == 0
    assert json.loads((run / "test.json").read_text()) == before


def test_a_loss_that_was_changed_since_changes_no_run(place: Path, run: Path) -> None:
    before = json.loads((run / "test.json").read_text())
    (place / "one").mkdir()
    (place / "one" / "own.py").write_text("def loss(scores, target):\n    return scores[:, 0] * 0\n")
    try:
        assert main(["evaluate", "--run", str(run), "--cache_dir", f"{place}/cache"]) == 0
    finally:
        shutil.rmtree(place / "one")
    assert json.loads((run / "test.json").read_text()) == before


def test_a_training_whose_loss_is_gone_is_resumed_with_its_copy(place: Path, run: Path) -> None:
    newest = max((run / "checkpoints").glob("step-*.json"))
    for path in (newest, newest.with_suffix(".pt"), run / "weights.safetensors", run / "last.safetensors"):
        path.unlink()
    before = json.loads((run / "test.json").read_text())
    assert main(["train", "--output_dir", str(run), "--resume", "true"]) == 0
    assert newest.is_file()
    assert json.loads((run / "test.json").read_text()) == before


def test_a_copy_of_a_loss_that_was_changed_is_refused(run: Path, capsys: Any) -> None:
    copy = run / "loss_code" / "powers.py"
    copy.write_text(copy.read_text() + "# changed\n")
    assert main(["evaluate", "--run", str(run)]) == 2
    error = capsys.readouterr().err
    assert "loss=" in error and "SHA-256 differs" in error and len(error.splitlines()) == 1


def test_a_loss_that_was_fetched_is_run_when_it_is_trusted(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence is all that is said, also where tqdm is installed (timm brings it), with which MLflow draws bars."""
    _write(tmp_path)
    flags = _flags(tmp_path) | {"model": "mlp"}
    assert main(["train", *_words(flags), "--output_dir", "run"]) == 0
    run_id = Run.open(tmp_path / "run").mlflow_run_id
    for name in ("run", "one", "two"):
        shutil.rmtree(name)
    capsys.readouterr()
    for name in ("tqdm", "tqdm.auto"):
        module = types.ModuleType(name)
        module.__spec__, module.tqdm = ModuleSpec(name, None), _loud  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
    for run in (run_id, f"runs/{run_id}"):
        assert main(["evaluate", "--run", run]) == 2
        error = capsys.readouterr().err
        kept = tmp_path / "runs" / run_id / "loss_code" / "own.py:loss"
        assert f"run={run} was fetched, and its loss is code that would be run here ({kept})" in error
        assert "--trust_code true" in error and len(error.splitlines()) == 1
    _let_its_code_go_unsaid(tmp_path / "runs" / run_id)
    assert main(["evaluate", "--run", run_id]) == 2 and "--trust_code true" in capsys.readouterr().err
    assert main(["evaluate", "--run", run_id, "--trust_code", "true", "--cache_dir", "cache"]) == 0


def _loud(**given: Any) -> Any:
    print(given, file=sys.stderr)
    return MagicMock()


def _let_its_code_go_unsaid(folder: Path) -> None:
    """Make a run name the file that came with it as if it lay here anyway, as somebody may who wants it to be run."""
    config = files.read_json(folder / "config.json")
    del config["sha256"], config["loss_code"]
    config["config"]["loss"] = f"runs/{folder.name}/loss_code/own.py:loss"
    files.write_json(folder / "config.json", config | {"sha256": files.digest_of(config)})
    sealed = files.read_json(folder / "manifest.json")
    sealed["sha256"]["config.json"] = files.sha256(folder / "config.json")
    files.write_json(folder / "manifest.json", sealed)


def _config(folder: Path) -> RunConfig:
    _write(folder)
    return resolve(_flags(folder))


@pytest.mark.parametrize("written", range(4))
def test_a_start_that_was_cut_off_before_its_loss_was_copied_can_be_resumed(
    written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, atomic, copied = _config(tmp_path), files.atomic, 0
    data = read_spec(prepare(config))

    def cut_off(path: Path) -> Any:
        nonlocal copied
        if path.suffix == ".py":
            if copied == written:
                raise KeyboardInterrupt
            copied += 1
        return atomic(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "atomic", cut_off)
        Run.create(tmp_path / "run", config=config, mlflow_run_id="a" * 32, git_commit="", data=data)
    again = Run.open(tmp_path / "run", check=False)
    assert again.loss == config.loss
    again.keep_code()
    for folder in ("code", "loss_code"):
        assert sorted(os.listdir(tmp_path / "run" / folder)) == ["own.py", "powers.py"]
    assert again.loss.endswith("run/loss_code/own.py:loss")


def test_the_code_of_a_start_that_was_cut_off_is_not_taken_from_a_file_that_was_changed(tmp_path: Path) -> None:
    config = _config(tmp_path)
    data = read_spec(prepare(config))
    Run.create(tmp_path / "run", config=config, mlflow_run_id="a" * 32, git_commit="", data=data)
    shutil.rmtree(tmp_path / "run" / "loss_code")
    Run.open(tmp_path / "run", check=False)
    (tmp_path / "one" / "powers.py").write_text(POWERS.replace("1.5", "2"))
    with pytest.raises(UserError, match=r"loss=.*one/own.py:loss: .*one/own.py:loss is not the code that this run is of"):
        Run.open(tmp_path / "run", check=False)


def test_a_built_in_loss_is_no_code(tmp_path: Path) -> None:
    _write(tmp_path)
    config = resolve(_flags(tmp_path) | {"model": "mlp", "loss": "huber"})
    run = Run.create(tmp_path / "run", config=config, mlflow_run_id="a" * 32, git_commit="", data=read_spec(prepare(config)))
    assert (run.loss, dict(run.code)) == ("huber", {}) and not (run.folder / "loss_code").exists()
