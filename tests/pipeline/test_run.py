from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import checkpoint, files, manifest
from pipeline import run as run_folder
from pipeline.config import RunConfig
from pipeline.data.prepare import prepare, read_spec
from pipeline.errors import UserError
from pipeline.run import Run


@pytest.fixture
def run(make_config: Callable[..., RunConfig], tmp_path: Path) -> Run:
    config = make_config(model="mlp")
    made = Run.create(tmp_path / "run", config=config, mlflow_run_id="abc", git_commit="123", data=read_spec(prepare(config)))
    run_folder.save_weights(made.folder / manifest.WEIGHTS, made.build_model().state_dict(), run_id="abc")
    (made.folder / "parameters.md").write_text("")
    run_folder.save_weights(made.folder / manifest.LAST_WEIGHTS, made.build_model().state_dict(), run_id="abc")
    manifest.seal(made.folder, made.mlflow_run_id, *manifest.FILES["train"])
    return made


def test_a_run_is_read_back_as_it_was_written(run: Run) -> None:
    assert Run.open(run.folder) == run


def test_the_model_is_rebuilt_from_the_folder_alone(run: Run) -> None:
    model = run.load_model()
    assert not model.training
    assert torch.equal(model.mean, torch.tensor(run.data.mean))


def test_a_folder_that_holds_a_run_is_never_written_over(run: Run) -> None:
    with pytest.raises(UserError, match=r"already holds a run.*--resume true"):
        Run.create(run.folder, config=run.config, mlflow_run_id="x", git_commit="", data=run.data)
    assert Run.open(run.folder).mlflow_run_id == "abc"


def test_a_changed_file_is_named(run: Run) -> None:
    path = run.folder / manifest.WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.safetensors is not the file that was written"):
        Run.open(run.folder)


def test_a_missing_file_is_named(run: Run) -> None:
    (run.folder / manifest.WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"weights\.safetensors is missing"):
        Run.open(run.folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"config": {}}', '{"config": {"lr": "x"}}'])
def test_a_config_that_cannot_be_read_is_a_sentence(run: Run, text: str) -> None:
    (run.folder / "config.json").write_text(text)
    with pytest.raises(UserError):
        Run.open(run.folder)


@pytest.mark.parametrize("text", ["", "{}", '{"sha256": 3}'])
def test_a_manifest_that_cannot_be_read_is_a_sentence(run: Run, text: str) -> None:
    (run.folder / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json that cannot be read"):
        Run.open(run.folder)


def test_a_training_that_did_not_end_is_told_apart(run: Run) -> None:
    (run.folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="did not end"):
        Run.open(run.folder)
    assert Run.open(run.folder, check=False) == run


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("canary"),))


def test_a_pickle_bomb_never_runs_as_weights_or_checkpoint(run: Run) -> None:
    torch.save(_Bomb(), run.folder / manifest.WEIGHTS)
    with pytest.raises(UserError, match="does not hold the weights of model=mlp"):
        run.load_model()
    path = checkpoint.save_checkpoint(run.folder, 1, {"step": 1, "mlflow_run_id": "abc"})
    torch.save({"state": _Bomb()}, path)
    note = {"step": 1, "sha256": files.sha256(path), "mlflow_run_id": "abc"}
    files.write_json(path.with_suffix(".json"), note)
    with pytest.raises(UserError, match="none of its 1 checkpoints is valid"):
        checkpoint.newest_checkpoint(run.folder, run_id="abc")
    assert not Path("canary").exists()


def test_atomic_writing_leaves_the_old_file_and_no_other_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), files.atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_nan_is_not_written_as_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_leaves_out_checkpoints_and_half_written_files(run: Run) -> None:
    checkpoint.save_checkpoint(run.folder, 1, {"step": 1})
    (run.folder / ".weights.safetensors.tmp").write_text("half")
    manifest.seal(run.folder, run.mlflow_run_id, *manifest.REPLACES["train"])
    names = json.loads((run.folder / "manifest.json").read_text())["sha256"]
    assert list(names) == ["config.json", "last.safetensors", "parameters.md", "weights.safetensors"]


@pytest.mark.parametrize(("field", "value"), [("model", "photos"), ("task", "guessing")])
def test_a_run_of_what_is_not_here_is_a_sentence(field: str, value: str, run: Run) -> None:
    values = json.loads((run.folder / "config.json").read_text())
    del values["sha256"]
    values["data" if field == "task" else "config"][field] = value
    (run.folder / "config.json").write_text(json.dumps(values | {"sha256": files.digest_of(values)}))
    with pytest.raises(UserError, match=r"has a config.json that cannot be read: .*is not known"):
        Run.open(run.folder, check=False)
