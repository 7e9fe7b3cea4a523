"""Own data and own networks from the files to the proof: each kind is trained once by the real command, in this process."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from export.module import export_module
from pipeline import data
from pipeline.cli import main
from pipeline.data.loader import evaluation_split, open_split
from pipeline.data.prepare import prepared_folder, read_manifest
from pipeline.data.split import split
from pipeline.run import Run
from tests.conftest import all_runs, read_rows
from tests.trainings import CLOCKS, same_weights

N = 72  # samples of each data set
COLOURS = ("blue", "green", "red")

NETS = """
import torch
from torch import nn
from .blocks import block


class Net(nn.Module):
    def __init__(self, input_shape, num_classes, width=8, dropout=0.2):
        super().__init__()
        self.body = nn.Sequential(block(input_shape[0], width), block(width, 2 * width), nn.Dropout(dropout))
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))
"""
BLOCKS = """
from torch import nn


def block(channels, width):
    return nn.Sequential(nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
"""


def pixels(number: int, label: int, height: int, width: int) -> np.ndarray:
    """Return noise (H, W, 3) in which one channel is brighter."""
    image = np.random.default_rng(number).integers(0, 140, (height, width, 3), dtype=np.uint8)
    image[..., 2 - label] += 90
    return image


def photos(root: Path) -> Path:
    """Write JPEGs of mixed sizes, one of them grey, one with an EXIF turn."""
    for k in range(N):
        height, width = np.random.default_rng(k).integers(18, 70, 2)
        path = root / COLOURS[k % 3] / f"{k:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if k == 4 else 1
        picture = Image.fromarray(pixels(k, k % 3, int(height), int(width)))
        (picture.convert("L") if k == 9 else picture).save(path, exif=exif)
    return root


def grey(root: Path) -> Path:
    """Write grey PNGs of 20 x 20 into splits of their own: bars that lie, and bars that stand."""
    for k in range(N):
        image = np.random.default_rng(k).integers(0, 90, (20, 20), dtype=np.uint8)
        image[::4] += 120
        path = root / ("train", "train", "val", "test")[k // 2 % 4] / ("lying", "standing")[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.T.copy() if k % 2 else image).save(path)
    return root


def houses(root: Path) -> Path:
    """Write a table with numbers, text that needs quotes, dates, booleans and missing values, and a target of each kind."""
    source = np.random.default_rng(0)
    with root.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["area", "rooms", "city", "built", "garden", "kind", "sold", "price", "rent", "a", "b", "c"])
        for _ in range(3 * N):
            area, rooms, garden = source.normal(80, 25), int(source.integers(1, 7)), source.choice(["true", "false"])
            city = source.choice(["Oslo", "Rome", 'a "b", c', ""])
            built = f"{source.integers(1950, 2020)}-0{source.integers(1, 9)}-11" if source.random() > 0.1 else ""
            kind = ("flat", "house", "villa, large")[min(2, rooms // 3)]
            sold = "yes" if area + 10 * rooms > 115 else "no"
            price, rent = area * 3 + rooms * 20 + source.normal(), area / 10 + rooms
            writer.writerow(
                [f"{area:.2f}" if source.random() > 0.1 else "", rooms, city, built, garden, kind, sold, f"{price:.2f}",
                 f"{rent:.3f}", int(area > 80), int(rooms > 3), int(garden == "true")]
            )  # fmt: skip
    return root.with_suffix(".csv")


def arrays(root: Path) -> Path:
    """Write images (N, H, W, C) and their labels."""
    y = np.arange(N) % 3
    x = np.stack([pixels(k, int(label), 28, 28) for k, label in enumerate(y)])
    np.savez(root.with_suffix(".npz"), x=x, y=y, classes=COLOURS)
    return root.with_suffix(".npz")


@dataclass(frozen=True)
class Case:
    """How a data set is made, and with which flags it is trained."""

    make: Callable[[Path], Path]
    flags: Mapping[str, str]
    target: str = ""


def _table(target: str) -> Case:
    ignored = [name for name in ("kind", "sold", "price", "rent", "a", "b", "c") if name not in target.split(",")]
    flags = {"model": "mlp", "target": target, "ignore_columns": ",".join(ignored), "epochs": "6"}
    return Case(houses, flags, target)


CASES = {
    "rgb": Case(photos, {"model": "cnn", "epochs": "2"}),
    "grey": Case(grey, {"model": "cnn", "epochs": "2"}),
    "binary": _table("sold"),
    "multiclass": _table("kind"),
    "regression": _table("price,rent"),
    "multilabel": _table("a,b,c"),
    "npz": Case(arrays, {"model": "cnn", "epochs": "2"}),
    "module": Case(
        photos, {"model": "nets.py:Net", "model_args": "width=4", "image_size": "16", "epochs": "4", "batch_size": "8"}
    ),
    "resnet18": Case(photos, {"model": "torchvision:resnet18", "image_size": "32", "epochs": "3", "batch_size": "8"}),
}
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


def call(*words: object) -> tuple[int, str, str]:
    """Run a command as a process of its own would, which has read no data yet; return its status, and what it said."""
    data.forget()
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(list(map(str, words)))
    return status, out.getvalue(), err.getvalue()


def words_of(flags: Mapping[str, object]) -> list[str]:
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def place_of(case: Case, place: Path) -> tuple[Path, dict[str, str]]:
    """Make the data of a case, and its network; return where the data lies and the flags of its training."""
    (place / "nets.py").write_text(NETS)
    (place / "blocks.py").write_text(BLOCKS)
    dataset = case.make(place / "own")
    flags = dict(case.flags) | {"dataset": str(dataset), "cache_dir": str(place / "cache"), "precision": "fp32"}
    if flags["model"].startswith("nets.py"):
        flags["model"] = f"{place}/{flags['model']}"
    return dataset, flags


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


@cases(quick=(*PROVEN, "module"))
def test_a_run_ends_with_its_proof(own: Callable[[str], Own], name: str, tmp_path: Path) -> None:
    case = own(name)
    assert case.status == 0, case.said
    folder, said = case.place / "run", case.said
    if name not in PROVEN:
        folder = shutil.copytree(folder, tmp_path / "run")
        status, said, errors = call("run", "--output_dir", folder, "--resume", "true", *case.cache)
        assert status == 0, errors
    assert "**PASSED**" in said and "Traceback" not in said
    run, report = Run.open(folder), json.loads((folder / "export" / "parity.json").read_text())
    assert report["passed"] and set(report["artifacts"]) == {"onnx", "torchscript", "pt2"}
    for part in report["artifacts"].values():
        assert part["argmax_flips"] == (0 if run.task.has_decisions else None)
    if run.data.any_size:
        found = report["artifacts"]["onnx"]["original_files"]
        assert found["argmax_flips"] == 0 and found["num_files"] == report["num_samples"] == run.data.counts["test"]
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
def test_predict_on_the_original_files_answers_as_the_evaluation(own: Callable[[str], Own], name: str) -> None:
    """Held against torch's outputs for the prepared test split, class by class, and in the probabilities."""
    case, run = own(name), own(name).run
    folder = prepared_folder(run.config)
    assert evaluation_split(folder) == "test"
    x = open_split(folder, "test").x
    with torch.inference_mode():
        outputs = dict(zip(export_module(run).outputs, export_module(run)(x), strict=False))
        scores, _ = run.load_model()(x)
    onnx = run.folder / "export" / "model.onnx"
    if run.data.any_size:
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
    np.testing.assert_allclose(found, outputs["probabilities"].numpy(), atol=2e-3 if run.data.any_size else 1e-5)


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


WRONG: dict[str, tuple[str, dict[str, str], str]] = {
    "a target on a folder": ("rgb", {"target": "a"}, "target=a is for tables"),
    "groups on a folder": ("rgb", {"group_column": "a"}, "group_column=a is for tables"),
    "a freeze pattern that matches nothing": ("rgb", {"freeze": "layer9"}, "freeze=layer9"),
    "one on an own network": ("module", {"freeze": "nothing.*"}, "freeze=nothing.*"),
    "all that is frozen": ("module", {"freeze": "*"}, "freeze=*"),
    "a layer that is not there": ("module", {"layer_lr": "tail=1"}, "layer_lr=tail=1"),
    "weights of another network": ("rgb", {"weights": "other.safetensors"}, "weights="),
    "a pickle as weights": ("rgb", {"weights": "pickle.pt"}, "weights="),
    "weights that are not there": ("rgb", {"weights": "none.safetensors"}, "weights="),
    "pretrained on a built-in": ("rgb", {"pretrained": "true"}, "pretrained=true is for networks of torchvision and timm"),
    "pretrained on an own network": ("module", {"pretrained": "true"}, "pretrained=true is for networks of"),
    "its preprocessing on a built-in": ("rgb", {"preprocess": "pretrained"}, "preprocess=pretrained is for networks of"),
    "a size of images on a table": ("binary", {"image_size": "32"}, "image_size=32 has no effect"),
    "another size for a network of one": ("rgb", {"image_size": "64"}, "image_size=64: model=cnn takes images of 28 x 28"),
    "augmentation on a table": ("binary", {"augment_flip": "true"}, "augment_flip=true has no effect"),
    "skip_bad on a table": ("binary", {"skip_bad": "true"}, "skip_bad=true has no effect"),
    "a table on an image network": ("binary", {"model": "cnn"}, "model=cnn takes samples of shape (any, 28, 28)"),
    "images on a table network": ("grey", {"model": "mlp"}, "model=mlp takes samples of shape (any,)"),
    "columns on arrays": ("npz", {"target": "y"}, "target=y has no effect"),
    "skip_bad on arrays": ("npz", {"skip_bad": "true"}, "skip_bad=true has no effect"),
    "arguments of a folder": ("rgb", {"data_args": "size=3"}, "data_args: "),
    "a folder of downloads": ("rgb", {"data_dir": "raw"}, "data_dir=raw has no effect"),
    "a task that does not fit": ("rgb", {"task": "regression"}, "task=regression does not fit"),
    "another one": ("binary", {"task": "multilabel"}, "task=multilabel"),
    "a loss of another task": ("binary", {"loss": "nll"}, "loss=nll does not fit binary data"),
    "weights of a class that is not there": ("rgb", {"class_weights": "pink=2"}, "class_weights=pink=2 names pink"),
    "a target that is not there": ("binary", {"target": "nothing"}, "target=nothing"),
    "a target that is left out": ("binary", {"ignore_columns": "sold"}, "ignore_columns=sold: sold is the target too"),
    "no argument of that name": ("module", {"model_args": "widht=3"}, "has no argument widht"),
    "a network that is no class": ("module", {"model": "nets.py:block"}, "model="),
    "no sample to train on": ("rgb", {"val_split": "0.5", "test_split": "0.5"}, "val_split=0.5 and test_split=0.5 leave no"),
    "a share of a split that it has": ("grey", {"test_split": "0.3"}, "test_split=0.3 has no effect"),
    "an empty folder": ("empty", {}, "dataset="),
    "code that is not trusted by a training": ("rgb", {"trust_code": "true"}, "trust_code"),
}


@pytest.fixture(scope="module")
def prepared_places(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, str]]]:
    made: dict[str, tuple[Path, dict[str, str]]] = {}

    def get(name: str) -> tuple[Path, dict[str, str]]:
        if name not in made:
            place = tmp_path_factory.mktemp(name)
            case = CASES.get(name, Case(lambda root: (root.mkdir(), root)[1], {"model": "cnn"}))
            made[name] = (place, place_of(case, place)[1])
        return made[name]

    return get


@pytest.mark.parametrize("wrong", WRONG)
def test_what_does_not_go_together_is_one_sentence_and_leaves_nothing(
    wrong: str, prepared_places: Callable[[str], tuple[Path, dict[str, str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    name, more, part = WRONG[wrong]
    place, flags = prepared_places(name)
    flags = flags | more
    if flags["model"].startswith("nets.py"):
        flags["model"] = f"{place}/{flags['model']}"
    if "weights" in more:
        save_file({"a.weight": torch.zeros(3, 3), "b": torch.zeros(2)}, tmp_path / "other.safetensors")
        torch.save({"a": torch.nn.Linear(2, 2)}, tmp_path / "pickle.pt")
    for word in [name for name, value in CASES["rgb"].flags.items() if name in more and more[name] == value]:
        del flags[word]
    before, number = sorted(tmp_path.rglob("*")), len(all_runs())
    there = sorted(place.rglob("*"))
    status, _, errors = call("run", *words_of(flags))
    assert status == 2, errors
    lines = errors.splitlines()
    assert len(lines) == 1 and part in lines[0] and lines[0].endswith((".", ")")), errors
    assert sorted(tmp_path.rglob("*")) == before and len(all_runs()) == number
    assert [path for path in sorted(place.rglob("*")) if "__pycache__" not in path.parts] == there
