"""Flags on own data and own networks that belong together, and what a start that was cut off leaves."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import models
from pipeline import commands, files
from pipeline.baseline import baselines
from pipeline.cli import main
from pipeline.config import ExportConfig, to_json
from pipeline.data.prepare import prepare, read_spec
from pipeline.errors import UserError
from pipeline.resolve import resolve
from pipeline.run import Run

NET = """
from torch import nn
from .layers import linear


class Net(nn.Module):
    def __init__(self, in_features, num_classes):
        super().__init__()
        self.fc = linear(in_features, num_classes)

    def forward(self, x):
        return self.fc(x)
"""
LAYERS = "from torch import nn\n\n\ndef linear(a, b):\n    return nn.Linear(a, b)\n"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a working folder with a table of three kinds of targets, the last label of which is always 0 in training."""
    source, rows = np.random.default_rng(0), ["x,y,kind,price,a,b,part"]
    for k in range(60):
        x, part = source.normal(), "test" if k % 5 == 0 else "train"
        rows.append(
            f"{x:.4f},{source.normal():.4f},{'yes' if x > 0 else 'no'},{3 * x:.4f},{int(x > 0)},{int(k % 10 == 0)},{part}"
        )
    (tmp_path / "t.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "layers.py").write_text(LAYERS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _table(target: str, **more: str) -> dict[str, str]:
    left = ",".join({"kind", "price", "a", "b", "part"} - set(target.split(",")) - {more.get("split_column", "")})
    return {"dataset": "t.csv", "target": target, "ignore_columns": left, "model": "mlp", "cache_dir": "cache"} | more


def test_a_recipe_that_is_named_is_that_recipe_on_own_data_too(place: Path) -> None:
    config = resolve(_table("kind", recipe="reference"))
    assert (config.optimizer, config.lr, config.epochs, config.preprocess) == ("adam", 1e-3, 1000, "none")
    assert (config.val_split, config.model_args) == ("auto", {"hidden": 25})
    with pytest.raises(UserError, match=r"^label_smoothing=0.1 has no effect on loss=mse"):
        resolve(_table("kind", recipe="reference", label_smoothing="0.1"))


def test_weights_from_elsewhere_are_not_drawn_over(place: Path) -> None:
    flags = {"model": "cnn", "dataset": "mnist", "weights": "w.safetensors"}
    assert resolve({"model": "cnn", "dataset": "mnist"}).init == "pca"
    assert resolve(flags).init == "random"
    fast = resolve({"model": "cnn", "recipe": "fast", "weights": "w.safetensors"})
    assert (fast.init, fast.layer_lr) == ("random", "")
    with pytest.raises(UserError, match="init=pca would write over the first convolution of --weights"):
        resolve(flags | {"init": "pca"})


def test_a_file_of_weights_may_lie_in_the_home_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(place))
    assert resolve({"model": "cnn", "weights": "~/w.safetensors"}).weights == str(place / "w.safetensors")


def test_weights_of_a_file_are_what_a_training_begins_with(place: Path, cache_dir: Path) -> None:
    config = resolve(_table("kind", epochs="1", lr="1e-30", weight_decay="0"))
    folder = prepare(config)
    network = models.build("mlp", read_spec(folder), config.model_args).network
    torch.nn.init.constant_(network.get_parameter("hidden.weight"), 0.25)
    save_file(network.state_dict(), "w.safetensors")
    flags = _table("kind", epochs="1", lr="1e-30", weight_decay="0", weights="w.safetensors", output_dir="run")
    assert main(["train", *(word for name, value in flags.items() for word in (f"--{name}", value))]) == 0
    trained = Run.open(place / "run").load_model().network.get_parameter("hidden.weight")
    torch.testing.assert_close(trained, torch.full_like(trained, 0.25))


def _run(place: Path, flags: dict[str, str]) -> tuple[Run, Path]:
    config = resolve(flags)
    folder = prepare(config)
    return Run(folder=place / "run", config=config, mlflow_run_id="", git_commit="", data=read_spec(folder)), folder


def test_baselines_are_of_test_samples_or_not_there(place: Path) -> None:
    run, folder = _run(place, _table("kind"))
    assert set(baselines(run, folder)) == {"baseline/hist_gradient_boosting/accuracy", "baseline/logistic_regression/accuracy"}
    run, folder = _run(place, _table("kind", val_split="0", test_split="0"))
    assert baselines(run, folder) == {}


def test_a_baseline_that_cannot_be_fitted_ends_no_run(place: Path, capsys: Any) -> None:
    """The linear one cannot learn a label that no training sample has."""
    run, folder = _run(place, _table("a,b", split_column="part"))
    found = baselines(run, folder)
    assert "baseline/logistic_regression/accuracy" not in found
    assert "baseline logistic_regression cannot be fitted: " in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["dataset", "data_dir", "cache_dir"])
def test_export_reads_no_data_for_exact_formats_and_says_so_of_a_flag_for_it(flag: str, place: Path) -> None:
    run, _ = _run(place, _table("kind"))
    with pytest.raises(
        UserError, match=f"^{flag}=.*x has no effect on formats=onnx,torchscript,pt2, which are made without samples and exact."
    ):
        commands.export(ExportConfig(run="run", **{flag: Path("x") if "dir" in flag else "x"}), run)


@pytest.mark.parametrize("written", [0, 1])
def test_a_start_that_was_cut_off_before_its_code_was_copied_can_be_resumed(
    written: int, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is a run once config.json is there, whether or not anything of the code is."""
    run, folder = _run(place, _table("kind", model="net.py:Net", epochs="1"))
    atomic, copied = files.atomic, 0

    def cut_off(path: Path) -> Any:
        nonlocal copied
        if path.suffix == ".py":
            if copied == written:
                raise KeyboardInterrupt
            copied += 1
        return atomic(path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files, "atomic", cut_off)
        Run.create(place / "run", config=run.config, mlflow_run_id="a" * 32, git_commit="", data=read_spec(folder))
    again = Run.open(place / "run", check=False)
    assert to_json(again.config) == to_json(run.config) and again.model == "net.py:Net"
    again.keep_code()
    assert sorted(os.listdir(place / "run" / "code")) == ["layers.py", "net.py"]
    assert again.model.endswith("run/code/net.py:Net")
    again.build_model()
