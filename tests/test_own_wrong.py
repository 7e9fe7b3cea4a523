"""Own data and flags that do not go together, through the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import all_runs
from tests.own_data import CASES, Case, call, place_of, words_of

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
