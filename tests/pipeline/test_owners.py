"""A run folder is one run's: files of another one, and links, are refused with a sentence, and written nowhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from safetensors.torch import load_file

from pipeline import files, manifest
from pipeline import run as run_folder
from pipeline.cli import main
from pipeline.config import RunConfig
from pipeline.data.prepare import prepare, read_manifest
from pipeline.errors import UserError
from pipeline.files import digest_of
from pipeline.run import Run
from pipeline.tracking import runs
from tests.conftest import all_runs, read_rows

TRAIN = ["train", "--model", "mlp", "--epochs", "1"]


@pytest.fixture(scope="module")
def two(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """Two trainings that differ in nothing but their seed."""
    folder = tmp_path_factory.mktemp("two")
    for name, seed in (("a", "1"), ("b", "2")):
        assert main([*TRAIN, "--seed", seed, "--output_dir", str(folder / name), "--cache_dir", str(cache_dir)]) == 0
    return Run.open(folder / "a"), Run.open(folder / "b")


@pytest.fixture
def mixed(two: tuple[Run, Run], tmp_path: Path) -> tuple[Run, Path]:
    """A, and a copy of B to put files of A into."""
    shutil.copytree(two[1].folder, tmp_path / "b")
    return two[0], tmp_path / "b"


def _trace(run_id: str) -> Any:
    found = MlflowClient().get_run(run_id)
    return found.info.status, found.info.end_time, found.data.tags, found.data.metrics


def _unfinished(folder: Path) -> None:
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize("name", ["checkpoints", "config.json", "tracking.json", "manifest.json"])
@pytest.mark.parametrize("command", ["train", "evaluate", "sync"])
def test_a_file_of_another_run_is_refused_and_nothing_is_written_anywhere(
    mixed: tuple[Run, Path], name: str, command: str, cache_dir: Path, capsys: Any
) -> None:
    a, b = mixed
    of_b = Run.open(b).mlflow_run_id
    if name == "checkpoints":
        _unfinished(b)
        for path in (a.folder / name).iterdir():
            shutil.copy(path, b / name)
    else:
        shutil.copy(a.folder / name, b / name)
    before = [_trace(a.mlflow_run_id), _trace(of_b), {p: files.sha256(p) for p in b.rglob("*") if p.is_file()}]
    flags = {"train": ["--output_dir", str(b), "--resume", "true"]}.get(command, ["--run", str(b)])
    assert main([command, *flags, *([] if command == "sync" else ["--cache_dir", str(cache_dir)])]) == 2
    told = capsys.readouterr().err
    assert f"run={b} holds files of two runs" in told and a.mlflow_run_id in told and of_b in told and told.count("\n") == 1
    assert [_trace(a.mlflow_run_id), _trace(of_b), {p: files.sha256(p) for p in b.rglob("*") if p.is_file()}] == before


def test_a_checkpoint_of_another_run_under_a_note_of_this_one_is_refused(mixed: tuple[Run, Path]) -> None:
    from pipeline.checkpoint import newest_checkpoint

    a, b = mixed
    of_b = Run.open(b).mlflow_run_id
    theirs, ours = (max((folder / "checkpoints").glob("*.pt")) for folder in (a.folder, b))
    shutil.copy(theirs, ours)
    note = json.loads(ours.with_suffix(".json").read_text())
    files.write_json(ours.with_suffix(".json"), note | {"sha256": files.sha256(ours)})
    with pytest.raises(UserError, match=rf"{ours.name} is of MLflow run {a.mlflow_run_id}, and not of {of_b}"):
        newest_checkpoint(b, run_id=of_b)


@pytest.mark.parametrize("name", [manifest.WEIGHTS, manifest.LAST_WEIGHTS])
def test_weights_of_another_run_are_refused_even_where_nothing_seals_them(mixed: tuple[Run, Path], name: str) -> None:
    a, b = mixed
    shutil.copy(a.folder / name, b / name)
    with pytest.raises(UserError, match=rf"{name} is not the file that was written"):
        Run.open(b)
    with pytest.raises(UserError, match=rf"holds the weights of MLflow run {a.mlflow_run_id}, and not those of"):
        Run.open(b, check=False).load_model(name)


def test_a_prepared_folder_of_other_data_is_refused_and_left_as_it_is(
    make_config: Callable[..., RunConfig], tmp_path: Path, capsys: Any
) -> None:
    config = make_config(model="mlp", cache_dir=tmp_path)
    other = prepare(make_config(model="mlp", cache_dir=tmp_path, split_seed=7))
    folder = prepare(config)
    shutil.rmtree(folder)
    shutil.copytree(other, folder)
    before = {path.name: files.sha256(path) for path in folder.iterdir()}
    assert main(["prepare", "--model", "mlp", "--cache_dir", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert f"{folder.name} holds other data than its name says (split_seed=7, not 0)" in told and told.count("\n") == 1
    assert {path.name: files.sha256(path) for path in folder.iterdir()} == before
    manifest = read_manifest(folder)
    manifest["identity"]["dataset"] = "moons"
    del manifest["sha256"]
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": digest_of(manifest)}))
    with pytest.raises(UserError, match="dataset=moons, not breast_cancer"):
        prepare(config)


LINKS = ["weights.safetensors", "config.json", "manifest.json", "metrics.jsonl", "tracking.json", "test.json", "export",
         "plots", "checkpoints", "plots/curves.png"]  # fmt: skip


@pytest.mark.parametrize("name", LINKS)
def test_a_link_in_the_place_of_a_file_or_folder_of_the_run_is_refused(mixed: tuple[Run, Path], name: str) -> None:
    _, b = mixed
    (b / "export").mkdir()
    (b / name).rename(b.parent / "elsewhere")
    (b / name).symlink_to(b.parent / "elsewhere")
    for check in (True, False):
        with pytest.raises(UserError, match=rf"{name} is a link|is not a run folder"):
            Run.open(b, check=check)


def test_neither_links_nor_other_files_are_sealed_or_sent(two: tuple[Run, Run], cache_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    assert main([*TRAIN, "--output_dir", "run", "--cache_dir", str(cache_dir)]) == 0
    folder = Path("run")
    (folder / "id_rsa").write_text("secret")
    (folder / "plots" / "link").symlink_to(tmp_path / "secret")
    (folder / "link.png").symlink_to(tmp_path / "secret")
    assert main(["evaluate", "--run", "run", "--cache_dir", str(cache_dir)]) == 0
    assert main(["export", "--run", "run"]) == 0
    run = Run.open(folder)
    client = MlflowClient()
    sent = {item.path for inner in (None, "plots", "export") for item in client.list_artifacts(run.mlflow_run_id, inner)}
    assert not {name for name in sent | set(manifest.read(folder)[1]) if "link" in name or "id_rsa" in name}
    assert sent >= {"config.json", "plots/curves.png", "export/model.onnx"}


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "id_rsa", "plots/../../secret.png", "export/parity-../x.md"])
def test_a_manifest_that_names_anything_else_is_refused(mixed: tuple[Run, Path], name: str) -> None:
    _, b = mixed
    said = json.loads((b / "manifest.json").read_text())
    (b.parent / "secret").write_text("x")
    said["sha256"][name] = files.sha256(b.parent / "secret")
    (b / "manifest.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="which no stage makes"):
        Run.open(b)


def _stranger(source: Path, *, own: bool = False, **said: str) -> str:
    """Have a stranger log a run folder under a new id, with any parameter and tag; with `own`, its files name that id."""
    runs.configure()
    client = MlflowClient()
    run_id = str(client.create_run("0").info.run_id)
    client.log_param(run_id, "model", said.get("model", "mlp"))
    client.set_tag(run_id, "output_dir", said.get("output_dir", ""))
    copy = Path(f"stranger-{run_id}")
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("checkpoints", ".*", "tracking.json", "manifest.json"))
    values = json.loads((copy / "config.json").read_text())
    values |= {"mlflow_run_id": run_id} if own else {}
    del values["sha256"]
    (copy / "config.json").write_text(json.dumps(values | {"sha256": digest_of(values)}))
    run = Run.open(copy, check=False)
    for name in (manifest.WEIGHTS, manifest.LAST_WEIGHTS):
        run_folder.save_weights(copy / name, load_file(copy / name), run_id=run.mlflow_run_id)
    manifest.seal(run.folder, run.mlflow_run_id, *manifest.FILES["train"], *manifest.FILES["evaluate"])
    client.log_artifacts(run_id, str(copy))
    shutil.rmtree(copy)
    return run_id


def test_a_fetched_run_whose_configuration_names_another_one_is_refused(two: tuple[Run, Run], capsys: Any) -> None:
    run_id = _stranger(two[0].folder)
    before = _trace(two[0].mlflow_run_id)
    assert main(["export", "--run", run_id]) == 2
    assert f"its config.json is of MLflow run {two[0].mlflow_run_id}" in capsys.readouterr().err
    assert list(Path("runs").iterdir()) == [] and _trace(two[0].mlflow_run_id) == before


def test_what_a_stranger_says_of_a_run_never_becomes_a_path_that_is_written_to(
    two: tuple[Run, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_dir: Path
) -> None:
    """Neither the parameter `model` nor the tag `output_dir`, though another run lies where that points."""
    victim = tmp_path / "victim"
    shutil.copytree(two[1].folder, victim)
    before = {path: files.sha256(path) for path in victim.rglob("*") if path.is_file()}
    run_id = _stranger(two[0].folder, own=True, model="../../x", output_dir=str(victim))
    (tmp_path / "deep" / "down").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "down")
    for _ in range(2):  # the second time it is here already
        assert main(["evaluate", "--run", run_id, "--cache_dir", str(cache_dir)]) == 0
        assert [path.name for path in Path("runs").iterdir()] == [run_id]
    assert Run.open(Path("runs") / run_id).mlflow_run_id == run_id
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["down"]
    assert {path: files.sha256(path) for path in victim.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("text", ["../../x", "f" * 31, "F" * 32, "f" * 33, "..", "0" * 5000])
def test_a_run_is_named_by_a_folder_or_by_32_digits(text: str, capsys: Any) -> None:
    assert main(["export", "--run", text]) == 2
    assert "Traceback" not in capsys.readouterr().err and not Path("runs").exists()


def test_a_new_run_needs_an_absent_or_empty_folder(cache_dir: Path, capsys: Any) -> None:
    number = len(all_runs())
    folder = Path("mine")
    folder.mkdir()
    for name in ("id_rsa", "notes", "a", "b"):
        (folder / name).write_text("mine")
    for flags in ([], ["--resume", "auto"]):
        assert main([*TRAIN, "--output_dir", "mine", "--cache_dir", str(cache_dir), *flags]) == 2
        told = capsys.readouterr().err
        assert told.startswith("output_dir=mine holds something else (a, b, id_rsa and 1 more).") and told.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "id_rsa", "notes"]
    Path("file").write_text("")
    assert main([*TRAIN, "--output_dir", "file", "--cache_dir", str(cache_dir)]) == 2
    assert "output_dir=file is a file" in capsys.readouterr().err
    assert len(all_runs()) == number


def test_what_a_start_that_was_cut_off_has_left_is_no_obstacle(cache_dir: Path) -> None:
    folder = Path("run")
    (folder / ".takeover.abcdefgh").mkdir(parents=True)
    for name in (".lock", ".config.json.x_y0z1ab"):
        (folder / name).write_text("")
    assert main([*TRAIN, "--output_dir", "run", "--resume", "auto", "--cache_dir", str(cache_dir)]) == 0
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == [".lock"]
    assert read_rows(folder)


def test_leftovers_of_killed_writes_are_swept_by_the_next_stage_and_nothing_else(
    mixed: tuple[Run, Path], cache_dir: Path
) -> None:
    _, b = mixed
    (b / "export").mkdir()
    ours = [".manifest.json.abcdefgh", "export/.model.onnx.a_b1cdef", "checkpoints/.step-000000001.pt.zzzzzzzz",
            "plots/.curves.png.01234567", ".tracking.json.abcdefg_"]  # fmt: skip
    others = [".notes.abcdefgh", "export/.hidden", "plots/.curves.png.swp", ".weights.safetensors"]
    for name in ours + others:
        (b / name).write_text("half")
    (b / ".upload.abcdefgh").mkdir()
    (b / ".upload.abcdefgh" / "slot-0.pt").write_text("half")
    assert main(["evaluate", "--run", str(b), "--cache_dir", str(cache_dir)]) == 0
    assert not [name for name in [*ours, ".upload.abcdefgh"] if (b / name).exists()]
    assert all((b / name).exists() for name in others)


def test_a_takeover_brings_a_job_here_and_nothing_of_another_run(
    two: tuple[Run, Run], cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.checkpoint import newest_checkpoint
    from pipeline.tracking.fetch import take_over

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", f"job of {tmp_path}")
    job, folder = f"job of {tmp_path}", Path("run")
    assert main([*TRAIN, "--output_dir", "run", "--upload_checkpoints", "true", "--cache_dir", str(cache_dir)]) == 0
    run_id = Run.open(folder).mlflow_run_id
    shutil.rmtree(folder)
    (folder / ".takeover.abcdefgh").mkdir(parents=True)  # left by one that was killed
    (folder / "mine").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        take_over(folder, job_id=job)
    (folder / "mine").unlink()
    take_over(folder, job_id=job)
    assert newest_checkpoint(folder, run_id=run_id) and Run.open(folder, check=False).mlflow_run_id == run_id
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == [".lock"]
    (tmp_path / "slot-0.json").write_text(json.dumps({"step": 10**8, "sha256": "", "mlflow_run_id": two[0].mlflow_run_id}))
    for path, inner in ((tmp_path / "slot-0.json", "checkpoints"), (two[0].folder / "config.json", None)):
        shutil.rmtree(folder)
        MlflowClient().log_artifact(run_id, str(path), inner)
        with pytest.raises(UserError, match=rf"{path.name} is of run {two[0].mlflow_run_id}"):
            take_over(folder, job_id=job)
        assert [path.name for path in folder.iterdir()] == [".lock"]
