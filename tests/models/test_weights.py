"""Weights from elsewhere: what fits is taken, what does not is named, and nothing in a file is ever run."""

from __future__ import annotations

import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import models
from models import libraries, weights
from models.plugin import PluginError
from models.weights import WeightsError, load_state, load_weights
from models.wrapper import Model
from pipeline.data.spec import DataSpec

IMAGES = DataSpec(
    name="i", task="multiclass", sample_shape=(3, 32, 32), dtype="uint8", value_range=(0, 255), classes=("a", "b", "c")
)
GREY = DataSpec(**{**vars(IMAGES), "sample_shape": (1, 32, 32)})
FILE = Path("weights.bin")
State = dict[str, Tensor]


def made(num_outputs: int = 3, seed: int = 0, width: int = 5) -> Model:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, num_outputs))
    return Model(network, mean=[0.0], std=[1.0], input_shape=(4,), has_features=False)


def state_of(model: Model) -> State:
    return {name: value.clone() for name, value in model.network.state_dict().items()}


def same(a: State, b: State) -> bool:
    return set(a) == set(b) and all(torch.equal(value, b[name]) for name, value in a.items())


SAVERS: dict[str, Callable[[State], Any]] = {
    "safetensors": lambda state: save_file(state, FILE),
    "torch.save": lambda state: torch.save(state, FILE),
    "torch.save before 1.6": lambda state: torch.save(state, FILE, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("kind", SAVERS)
def test_weights_of_every_kind_of_file_are_taken_whatever_its_name(kind: str) -> None:
    theirs, model = state_of(made(seed=1)), made(seed=2)
    SAVERS[kind](theirs)
    assert load_weights(model, FILE) == []
    assert same(state_of(model), theirs)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "network.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("inside", ["", "state_dict", "model"])
def test_what_wrappers_put_around_the_weights_is_taken_off_and_told(prefix: str, inside: str) -> None:
    theirs, model = state_of(made(seed=1)), made(seed=2)
    wrapped = {prefix + name: value for name, value in theirs.items()}
    torch.save({inside: wrapped, "epoch": 3, "optimizer": {}} if inside else wrapped, FILE)
    notes = load_weights(model, FILE)
    assert same(state_of(model), theirs)
    assert notes[-1] == f"The names in the file begin with {prefix}, which was taken off."
    assert len(notes) == 1 or notes[0] == f"The weights are the file's entry '{inside}'; left out epoch, optimizer."


def test_a_prefix_that_is_the_networks_own_stays() -> None:
    network = nn.Sequential()
    network.add_module("module", nn.Linear(4, 3))
    model = Model(network, mean=[0.0], std=[1.0], input_shape=(4,), has_features=False)
    save_file(network.state_dict(), FILE)
    assert load_weights(model, FILE) == []


def test_our_own_weights_bring_their_mean_and_std() -> None:
    theirs, model = made(seed=1), made(seed=2)
    theirs.mean += 3
    save_file(theirs.state_dict(), FILE)
    notes = load_weights(model, FILE)
    assert same(dict(model.state_dict()), dict(theirs.state_dict())) and model.mean.item() == 3
    assert notes[-1] == "The mean and std of the input are those that these weights were trained with."
    save_file({**theirs.state_dict(), "mean": torch.zeros(7)}, FILE)
    assert load_weights(model, FILE)[-1] == "The file's own mean and std do not fit this data and are left out."
    assert model.mean.item() == 3


@pytest.mark.parametrize("bias", [True, False])
def test_a_head_of_another_width_is_drawn_anew_and_told(bias: bool) -> None:
    theirs, model = state_of(made(10, seed=1)), made(3, seed=2)
    drawn = state_of(model)
    if not bias:
        del theirs["2.bias"]
    save_file(theirs, FILE)
    notes = load_weights(model, FILE)
    names = "2.weight, 2.bias" if bias else "2.weight"
    assert notes[0] == f"The last layer has 10 outputs in the file and 3 here, so it is drawn anew ({names})."
    after = state_of(model)
    assert all(torch.equal(after[name], (drawn if name.startswith("2.") else theirs)[name]) for name in after)


def test_both_heads_of_a_network_with_two_are_drawn_anew() -> None:
    class Two(nn.Module):
        def __init__(self, num_outputs: int) -> None:
            super().__init__()
            self.body, self.head, self.other = nn.Linear(4, 4), nn.Linear(4, num_outputs), nn.Linear(4, num_outputs)

    model = Model(Two(3), mean=[0.0], std=[1.0], input_shape=(4,), has_features=False)
    assert "(head.weight, head.bias, other.weight, other.bias)" in load_state(model, Two(10).state_dict())[0]


def test_missing_and_unexpected_entries_are_listed_ten_at_most() -> None:
    model, theirs = made(seed=2), state_of(made(seed=1))
    drawn = model.network[2].bias.clone()  # type: ignore[index, union-attr]
    del theirs["2.bias"], theirs["1.num_batches_tracked"]
    save_file(theirs | {f"more.{k}": torch.zeros(1) for k in range(12)}, FILE)
    notes = load_weights(model, FILE)
    assert notes[0] == "Not in the file, and as they were drawn: 2.bias."
    assert notes[1].startswith("In the file, and of no use here: more.0") and notes[1].endswith(" and 2 more.")
    assert torch.equal(model.network[2].bias, drawn)  # type: ignore[index, union-attr, arg-type]


def test_half_precision_becomes_single() -> None:
    theirs, model = state_of(made(seed=1)), made(seed=2)
    save_file({name: value.half() if value.is_floating_point() else value for name, value in theirs.items()}, FILE)
    load_weights(model, FILE)
    assert model.network[0].weight.dtype == torch.float32  # type: ignore[index, union-attr]
    torch.testing.assert_close(state_of(model), theirs, atol=1e-3, rtol=1e-3)


def test_a_skeleton_is_checked_without_taking_values() -> None:
    save_file(state_of(made(10, seed=1)), FILE)
    with torch.device("meta"):
        model = made(3)
    assert load_weights(model, FILE)[0].startswith("The last layer has 10 outputs in the file and 3 here")
    save_file(state_of(made(seed=1, width=6)), FILE)
    with pytest.raises(WeightsError, match="does not fit this network"):
        load_weights(model, FILE)


class _Runs:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def _zip(**entries: bytes) -> None:
    with zipfile.ZipFile(FILE, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def _spoilt(**changes: Tensor) -> None:
    save_file(state_of(made(seed=1)) | {name.replace("_", "."): value for name, value in changes.items()}, FILE)


HOSTILE: dict[str, tuple[Callable[[], Any], str]] = {
    "absent": (lambda: None, "cannot be read .No such file"),
    "a folder": (FILE.mkdir, "cannot be read .Is a directory"),
    "empty": (FILE.touch, "is neither a safetensors file nor a state dict"),
    "text": (lambda: FILE.write_text("hello, these are no weights"), "is neither a safetensors file nor"),
    "a pickle that runs something": (lambda: FILE.write_bytes(pickle.dumps(_Runs())), "is a pickle of more than tensors"),
    "a checkpoint that runs something": (
        lambda: torch.save({"state_dict": state_of(made()), "hook": _Runs()}, FILE),
        "is a pickle of more than tensors",
    ),
    "a whole module": (lambda: torch.save(made().network, FILE), r"is a pickle of more than tensors \(torch\.nn\.modules"),
    "TorchScript": (lambda: torch.jit.save(torch.jit.script(nn.Linear(4, 3)), FILE), "is TorchScript, which holds code"),
    "a zip of something else": (lambda: _zip(readme=b"hello"), "is damaged, or no state dict"),
    "a pickle cut off": (lambda: FILE.write_bytes(pickle.dumps(list(range(1000)))[:50]), "is damaged|is a pickle"),
    "a list": (lambda: torch.save([torch.zeros(3)], FILE), "holds a list and no state dict"),
    "a tensor": (lambda: torch.save(torch.zeros(3), FILE), "holds a Tensor and no state dict"),
    "an empty dict": (lambda: torch.save({}, FILE), "holds a dict and no state dict"),
    "numbers": (lambda: torch.save({"a": 1, "b": "x"}, FILE), "holds no tensors, but a, b"),
    "a safetensors file cut off": (
        lambda: (save_file(state_of(made()), FILE), FILE.write_bytes(FILE.read_bytes()[:-8])),
        "is a damaged safetensors file",
    ),
    "a safetensors header of nonsense": (
        lambda: FILE.write_bytes((9).to_bytes(8, "little") + b"{" + b"x" * 30),
        "damaged safetensors",
    ),
    "another network": (
        lambda: save_file({"conv.weight": torch.zeros(3, 3), "conv.bias": torch.zeros(3)}, FILE),
        r"holds weights of another network: of 6 weights it has 0, and not 0\.weight, .*It has conv",
    ),
    "a few of the weights": (lambda: save_file({"0.weight": torch.zeros(5, 4)}, FILE), "of 6 weights it has 1, and not 0.bias"),
    "another width": (
        lambda: save_file(state_of(made(width=6)), FILE),
        r"does not fit this network: 0\.weight \(6, 4\), not \(5, 4\)",
    ),
    "another width and another head": (
        lambda: save_file(state_of(made(10, width=6)), FILE),
        "does not fit this network: 0.weight",
    ),
    "a first layer of another width": (lambda: _spoilt(**{"0_weight": torch.zeros(5, 3)}), r"0\.weight \(5, 3\), not \(5, 4\)"),
    "a head of other inputs": (
        lambda: _spoilt(**{"2_weight": torch.zeros(10, 6), "2_bias": torch.zeros(10)}),
        r"2\.weight \(10, 6\)",
    ),
    "a head whose bias is of another width": (
        lambda: _spoilt(**{"2_weight": torch.zeros(10, 5), "2_bias": torch.zeros(9)}),
        r"2\.weight \(10, 5\), not \(3, 5\)",
    ),
    "NaN": (lambda: _spoilt(**{"0_bias": torch.full((5,), float("nan"))}), r"holds values that are not finite in 0\.bias"),
    "infinity": (lambda: _spoilt(**{"0_bias": torch.full((5,), float("inf"))}), "not finite"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_file_that_is_of_no_use_is_a_sentence_and_changes_nothing(case: str) -> None:
    prepare, said = HOSTILE[case]
    prepare()
    model = made(seed=2)
    before = state_of(model)
    with pytest.raises(WeightsError, match=said) as caught:
        load_weights(model, FILE)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    assert same(state_of(model), before) and not Path("ran").exists()


@pytest.mark.parametrize(
    ("name", "data", "mean", "std"),
    [
        ("resnet18", IMAGES, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
        ("resnet18", GREY, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
        ("efficientnet_v2_l", IMAGES, [127.5] * 3, [127.5] * 3),
    ],
)
def test_pretrained_weights_bring_the_mean_and_std_that_they_were_trained_with(
    name: str, data: DataSpec, mean: list[float], std: list[float]
) -> None:
    with torch.device("meta"):
        models.build(f"torchvision:{name}", data, {}, preprocess="pretrained")
    found = libraries.statistics(f"torchvision:{name}", data)
    assert found["mean"] == pytest.approx(mean) and found["std"] == pytest.approx(std)


def test_the_models_input_is_standardized_as_its_library_does_it() -> None:
    from torchvision.models import ResNet18_Weights

    model = models.build("torchvision:resnet18", IMAGES.resized(224), {}, preprocess="pretrained")
    x = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    theirs = ResNet18_Weights.DEFAULT.transforms(crop_size=224, resize_size=224)(x)
    torch.testing.assert_close(model.standardized(x), theirs, atol=1e-5, rtol=1e-5)


def test_a_librarys_own_state_fits_and_has_a_new_head() -> None:
    from torchvision.models import resnet18

    torch.manual_seed(1)
    theirs, model = resnet18().state_dict(), models.build("torchvision:resnet18", IMAGES, {})
    (note,) = load_state(model, theirs)
    assert note == "The last layer has 1000 outputs in the file and 3 here, so it is drawn anew (fc.weight, fc.bias)."
    assert torch.equal(model.network.conv1.weight, theirs["conv1.weight"])  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("answer", ["no name", "nothing", "a server"])
def test_pretrained_weights_without_a_network_are_a_sentence_within_seconds(
    answer: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a name that is not known, a server that never answers, and the real one, which no test machine can reach."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    if answer == "no name":
        monkeypatch.setattr("urllib.request.urlopen", _raise(OSError("Name or service not known")))
    if answer == "nothing":
        monkeypatch.setattr(libraries, "_NO_ANSWER", 0.5)
        monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: time.sleep(5))
    if answer == "a server":  # which then breaks off
        monkeypatch.setattr(libraries, "_need_server", lambda *_: None)
        monkeypatch.setattr("torch.hub.urlopen", _raise(ConnectionResetError("Connection reset by peer")))
    start = time.monotonic()
    with pytest.raises(PluginError, match=r"cannot be downloaded .*--weights FILE") as caught:
        weights.pretrained("torchvision:resnet18", IMAGES)
    assert time.monotonic() - start < 20 and "\n" not in str(caught.value)
    assert {"no name": "not known", "nothing": "no answer", "a server": "reset by peer"}[answer] in str(caught.value)


def _raise(error: Exception) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> None:
        raise error

    return call


def test_only_libraries_have_pretrained_weights() -> None:
    with pytest.raises(PluginError, match="has no pretrained weights: only networks of torchvision and timm"):
        weights.pretrained("cnn", IMAGES)
