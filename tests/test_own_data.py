"""Own data and own networks from the files to the proof: each kind is trained once by the real command, in this process."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from export.module import export_module
from pipeline import data, manifest
from pipeline.data.loader import evaluation_split, open_split
from pipeline.data.prepare import prepared_folder, read_manifest
from pipeline.data.split import split
from pipeline.run import Run
from tests.conftest import read_rows
from tests.own_data import CASES, NETS, N, call, place_of, words_of
from tests.pipeline.pages.test_report import run_snippets
from tests.trainings import CLOCKS, same_weights

PROVEN = ("rgb", "multiclass")  # by `run` alone; the others are trained and exported, and proven by a run that is resumed


def cases(*names: str, quick: tuple[str, ...] = tuple(CASES)) -> Any:
    """Parametrise by these cases, or by all; those that are not `quick` are left out of the normal suite."""
    marks = [pytest.mark.slow, pytest.mark.timeout(400)]
    chosen = [pytest.param(n, marks=marks if n == "resnet18" or n not in quick else []) for n in names or CASES]
    return pytest.mark.parametrize("name", chosen)


@dataclass(frozen=True)
class Own:
    """A trained run: its data, the words that train it, how the command ended and what it said."""

    place: Path
    dataset: Path
    words: list[str]
    status: int
    said: str

    @property
    def run(self) -> Run:
        return Run.open(self.place / "run")

    @property
    def cache(self) -> list[str]:
        return ["--cache_dir", str(self.place / "cache")]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Own]:
    """Return a function that gives the run of a case, made when first asked for. Not to be changed.

    One that is not `PROVEN` is trained and exported.
    """
    made: dict[str, Own] = {}

    def get(name: str) -> Own:
        if name not in made:
            place = tmp_path_factory.mktemp(name)
            dataset, flags = place_of(CASES[name], place)
            words = words_of(flags)
            command = "run" if name in PROVEN else "train"
            status, said, errors = call(command, *words, "--output_dir", place / "run")
            if command == "train":
                assert call("export", "--run", place / "run")[0] == 0
            made[name] = Own(place, dataset, words, status, said + errors)
        return made[name]

    return get


@pytest.fixture
def moved(own: Callable[[str], Own], tmp_path: Path) -> Iterator[Callable[[Own], Path]]:
    """Return a function that moves the data of a case to another place; it is moved back at the end."""
    back: list[tuple[Path, Path]] = []

    def move(case: Own) -> Path:
        to = tmp_path / "elsewhere" / case.dataset.name
        to.parent.mkdir()
        case.dataset.rename(to)
        back.append((to, case.dataset))
        return to

    yield move
    for here, there in back:
        here.rename(there)


@cases(quick=PROVEN)
def test_a_run_ends_with_its_proof(own: Callable[[str], Own], name: str, tmp_path: Path) -> None:
    case = own(name)
    assert case.status == 0, case.said
    folder, said = case.place / "run", case.said
    if name not in PROVEN:
        folder = shutil.copytree(folder, tmp_path / "run")
        status, said, errors = call("run", "--output_dir", folder, "--resume", "true", *case.cache)
        assert status == 0, errors
    assert "**PASSED**" in said and "Traceback" not in said
    assert "does not take" not in case.said + said, "MLflow has all of it, whatever the classes are called"
    run, report = Run.open(folder), json.loads((folder / "export" / "parity.json").read_text())
    assert report["passed"] and set(report["artifacts"]) == {"onnx", "torchscript", "pt2"}
    for part in report["artifacts"].values():
        assert part["argmax_flips"] == (0 if run.task.has_decisions else None)
    assert manifest.is_whole(folder, "report")
    assert {f"export/model.{end}" for end in ("onnx", "pt2", "safetensors", "torchscript.pt")} == {*run_snippets(folder)}
    assert run.data.any_size == ("originals" in report["artifacts"]["onnx"])
    if run.data.any_size:
        found = report["artifacts"]["onnx"]["originals"]
        assert found["argmax_flips"] == 0 and found["num_images"] == report["num_samples"] == run.data.counts["test"]
    assert sum(run.data.counts.values()) == (3 * N if run.data.columns else N)
    test = json.loads((folder / "test.json").read_text())
    if run.data.is_image:
        assert test["accuracy"] >= (0.5 if name in ("resnet18", "module", "npz") else 0.9)
    if run.data.columns:
        assert {n for row in read_rows(run.folder) for n in row if n.startswith("baseline/")} == {
            f"baseline/{model}/{run.task.metric}"
            for model in ("hist_gradient_boosting", "logistic_regression" if run.task.has_decisions else "ridge")
        }


def _answers(onnx: Path, *inputs: object) -> list[dict[str, str]]:
    status, _, errors = call("predict", "--onnx", onnx, "--input", *inputs, "--output", "answers.csv", "--overwrite", "true")
    assert status == 0, errors
    with Path("answers.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@cases()
def test_predict_on_the_originals_answers_as_the_evaluation(own: Callable[[str], Own], name: str) -> None:
    """Held against torch's outputs for the prepared test split, class by class, and in the probabilities."""
    case, run = own(name), own(name).run
    folder = prepared_folder(run.config)
    assert evaluation_split(folder) == "test"
    x = open_split(folder, "test").x
    with torch.inference_mode():
        outputs = dict(zip(export_module(run).outputs, export_module(run)(x), strict=False))
        scores, _ = run.load_model()(x)
    onnx = run.folder / "export" / "model.onnx"
    if "names" in read_manifest(folder):
        names = read_manifest(folder)["names"]["test"]
        rows = _answers(onnx, *(case.dataset / each for each in names))
        assert [row["input"] for row in rows] == [str(case.dataset / each) for each in names]
    else:
        source = data.source_of(run.config)
        of_test = split(source.load(data_dir=Path(), seed=0), run.config, source)["test"]
        every = _answers(onnx, case.dataset)
        assert len(every) == (3 * N if run.data.columns else N)
        rows = [every[row] for row in of_test]
        assert [row["input"] for row in rows] == [str(row + 1) for row in of_test]
    if not run.task.has_decisions:
        found = np.array([[float(row[f"prediction_{target}"]) for target in run.data.targets] for row in rows])
        np.testing.assert_allclose(found, scores.numpy(), rtol=1e-5, atol=1e-4)
        return
    decided = run.task.decide(scores).numpy()
    names = run.data.classes
    if decided.ndim == 2:
        expected = [";".join(n for n, k in zip(names, row, strict=True) if k) for row in decided]
    else:
        expected = [names[k] for k in decided]
    assert [row["prediction"] for row in rows] == expected and len(set(expected)) > 1
    found = np.array([[float(row[f"p_{each}"]) for each in names] for row in rows])
    np.testing.assert_allclose(found, outputs["probabilities"].numpy(), atol=2e-3 if case.dataset.is_dir() else 1e-5)


@cases()
def test_pictures_are_of_the_data_and_their_titles_hold_no_paths(own: Callable[[str], Own], name: str) -> None:
    run = own(name).run
    pictures = {path.stem: path for path in (run.folder / "plots").glob("*.png")}
    expected = {"curves"} | ({"confusion_matrix", "tsne"} if run.data.classes and run.data.task != "multilabel" else set())
    expected |= {"roc_pr"} if len(run.data.classes) == 2 else set()
    expected |= {"top_losses"} if run.data.is_image else set()
    assert set(pictures) >= expected
    for path in pictures.values():
        with Image.open(path) as picture:
            assert "/" not in picture.info["Title"] and "own" in picture.info["Title"]
            assert path.stem != "top_losses" or (_is_coloured(picture) == (run.data.sample_shape[0] == 3))


def _is_coloured(picture: Image.Image) -> bool:
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    return bool(((np.ptp(pixels, axis=2)) > 60).mean() > 0.1)


@cases("rgb", "multiclass", "npz", "module", quick=("rgb",))
def test_later_stages_need_neither_the_working_folder_nor_the_place_of_the_data(
    own: Callable[[str], Own], name: str, moved: Callable[[Own], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = own(name)
    shutil.copytree(case.place / "run", tmp_path / "run")
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    to = moved(case)
    for stage in ("evaluate", "verify"):
        status, _, errors = call(stage, "--run", "../run", *case.cache)
        assert status == 2 and errors.startswith(f"dataset={case.dataset} is not there. "), errors
    before = (tmp_path / "run" / "export" / "model.onnx").read_bytes()
    test = (tmp_path / "run" / "test.json").read_bytes()
    assert call("export", "--run", "../run")[0] == 0
    for stage in ("evaluate", "verify"):
        status, said, errors = call(stage, "--run", "../run", "--dataset", os.path.relpath(to), *case.cache)
        assert status == 0, errors
    assert "**PASSED**" in said
    assert (tmp_path / "run" / "export" / "model.onnx").read_bytes() == before
    assert (tmp_path / "run" / "test.json").read_bytes() == test


@cases("rgb", "multiclass", "npz", "module", quick=())
def test_a_machine_without_the_prepared_tensors_prepares_them_from_a_copy(
    own: Callable[[str], Own], name: str, tmp_path: Path
) -> None:
    case = own(name)
    copy = tmp_path / "another name" / case.dataset.name
    (shutil.copytree if case.dataset.is_dir() else shutil.copy)(case.dataset, _made(copy))
    status, said, errors = call("verify", "--run", case.place / "run", "--dataset", copy, "--cache_dir", tmp_path / "new cache")
    assert status == 0 and "**PASSED**" in said, errors


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    return path


@cases("rgb", "grey", "multiclass", "npz")
def test_data_that_was_changed_is_noticed(own: Callable[[str], Own], name: str, tmp_path: Path) -> None:
    case = own(name)
    there = tmp_path / case.dataset.name
    (shutil.copytree if case.dataset.is_dir() else shutil.copy)(case.dataset, there)
    if case.dataset.is_dir():
        file = sorted(p for p in there.rglob("*") if p.is_file())[0]
        Image.fromarray(np.full((20, 20), 7, np.uint8)).save(file)
    elif case.dataset.suffix == ".csv":
        there.write_text(there.read_text().replace("Oslo", "Bonn", 1))
    else:
        held = dict(np.load(there))
        held["x"][0, 0, 0, 0] ^= 1
        np.savez(there, **held)
    run = case.place / "run"
    for stage in ("evaluate", "verify"):
        status, _, errors = call(stage, "--run", run, "--dataset", there, *case.cache)
        assert status == 2 and "are not those of the training" in errors and len(errors.splitlines()) == 1


def test_data_that_was_changed_in_its_place_is_not_gone_on_with(tmp_path: Path) -> None:
    dataset, flags = place_of(CASES["multiclass"], tmp_path)
    assert call("train", *words_of(flags), "--output_dir", "run")[0] == 0
    dataset.write_text(dataset.read_text().replace("Oslo", "Bonn", 1))
    shutil.rmtree("run/plots")
    for words in (("train", "--output_dir", "run", "--resume", "true"), ("evaluate", "--run", "run")):
        (Path("run") / "test.json").unlink(missing_ok=True)
        status, _, errors = call(*words, "--cache_dir", flags["cache_dir"])
        assert status == 2 and f"dataset={dataset}" in errors and "are not those of the training" in errors


def test_a_run_uses_its_own_copy_of_the_code_and_refuses_another(own: Callable[[str], Own], tmp_path: Path) -> None:
    case = own("module")
    shutil.copytree(case.place / "run", tmp_path / "run")
    kept = sorted(path.name for path in (tmp_path / "run" / "code").iterdir())
    assert kept == ["blocks.py", "nets.py"]
    net = case.place / "nets.py"
    net.write_text(NETS.replace("2 * width", "3 * width"))
    try:
        for stage in ("evaluate", "export"):
            status, _, errors = call(stage, "--run", "run", *(case.cache if stage != "export" else []))
            assert status == 0, errors
        net.unlink()
        assert call("export", "--run", "run")[0] == 0
    finally:
        net.write_text(NETS)
    copy = tmp_path / "run" / "code" / "blocks.py"
    copy.write_text(copy.read_text() + "# changed\n")
    status, _, errors = call("export", "--run", "run")
    assert status == 2 and "SHA-256 differs" in errors and len(errors.splitlines()) == 1


def test_code_that_was_fetched_is_run_when_it_is_trusted(own: Callable[[str], Own], tmp_path: Path) -> None:
    case = own("module")
    run_id = case.run.mlflow_run_id
    MlflowClient().set_tag(run_id, "output_dir", str(case.place / "run"))  # not that of a copy which another test went on with
    hidden = [case.place / "run", case.place / "nets.py", case.place / "blocks.py"]
    for path in hidden:
        path.rename(path.with_name(f"{path.name}.away"))
    try:
        status, _, errors = call("export", "--run", run_id)
        assert status == 2 and f"run={run_id} was fetched" in errors and "--trust_code true" in errors
        status, _, errors = call("export", "--run", f"runs/{run_id}")
        assert status == 2 and "--trust_code true" in errors
        for stage in ("export", "evaluate"):
            words = case.cache if stage != "export" else []
            status, _, errors = call(stage, "--run", run_id, "--trust_code", "true", *words)
            assert status == 0, errors
    finally:
        for path in hidden:
            path.with_name(f"{path.name}.away").rename(path)


@cases(*PROVEN, quick=())
def test_what_is_missing_of_a_run_is_done_when_it_is_resumed(own: Callable[[str], Own], name: str, tmp_path: Path) -> None:
    case = own(name)
    shutil.copytree(case.place / "run", tmp_path / "run")
    status, said, _ = call("run", "--output_dir", "run", "--resume", "true", *case.cache)
    assert status == 0 and said.splitlines()[-1].endswith("nothing to do")
    shutil.rmtree("run/export")
    status, said, errors = call("run", "--output_dir", "run", "--resume", "true", *case.cache)
    assert status == 0 and "**PASSED**" in said and "epoch 1/" not in said, errors


@cases("rgb", "multilabel", "module")
def test_a_runs_own_configuration_repeats_it(own: Callable[[str], Own], name: str, tmp_path: Path) -> None:
    case = own(name)
    status, said, errors = call("train", "--config", case.place / "run" / "config.json", "--output_dir", "again", *case.cache)
    assert status == 0 and "nothing changed" in said, errors
    assert same_weights(case.place / "run" / "last.safetensors", Path("again/last.safetensors"))
    assert Run.open(Path("again")).data == case.run.data


def _curve(folder: Path) -> dict[tuple[int, str], float]:
    leave_out = (*CLOCKS, "step", "epoch", "samples")
    return {
        (row["step"], name): value for row in read_rows(folder) for name, value in row.items()
        if name not in leave_out and name.startswith(("train/", "val/", "test/", "baseline/"))
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(300)
@cases("rgb", "grey", "binary", "regression", "multilabel", "npz")
def test_two_ranks_draw_the_curve_of_one(name: str, command: Any, tmp_path: Path) -> None:
    """None of these has batch normalization, which takes its statistics from a rank's share on CPUs."""
    _, flags = place_of(CASES[name], tmp_path)
    for ranks in (1, 2):
        done = command("train", *words_of(flags), "--nproc", ranks, "--output_dir", f"run{ranks}", timeout=140)
        assert done.returncode == 0, done.stderr
    one, two = _curve(Path("run1")), _curve(Path("run2"))
    assert one.keys() == two.keys() and len(one) > 4
    differences = {key: abs(one[key] - two[key]) / max(1, abs(one[key])) for key in one}
    print(f"{name}: {len(one)} figures of 1 and 2 ranks differ by at most {max(differences.values()):.1e}")
    assert max(differences.values()) < 1e-5, differences


STRUCK = """
import sys
from tests.faults.inject import arm
arm("step", int(sys.argv[1]), after=False, kind="SIGKILL")
from pipeline.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", [name for name in CASES if name != "multiclass"])
def test_a_training_killed_in_mid_epoch_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    _, flags = place_of(CASES[name], tmp_path)
    flags |= {"checkpoint_every": "2", "batch_size": "8", "epochs": "2", "log_every": "1"}
    struck = [sys.executable, "-c", STRUCK, "8", "train", *words_of(flags), "--output_dir", "run"]
    done = subprocess.run(struck, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    saved = [int(path.stem.removeprefix("step-")) for path in Path("run/checkpoints").glob("step-*.json")]
    assert saved and max(saved) in (2, 4, 6), "a thread writes them, which may have been at the last one"
    status, _, errors = call("train", "--output_dir", "run", "--resume", "true", "--cache_dir", flags["cache_dir"])
    assert status == 0, errors
    assert call("train", *words_of(flags), "--output_dir", "whole")[0] == 0
    assert (Path("run") / "last.safetensors").stat().st_size > 1000
    assert same_weights(Path("run/last.safetensors"), Path("whole/last.safetensors"))
    assert same_weights(Path("run/weights.safetensors"), Path("whole/weights.safetensors"))
    assert _curve(Path("run")) == _curve(Path("whole"))
