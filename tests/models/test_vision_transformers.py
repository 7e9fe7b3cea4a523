"""torchvision's transformers, which cut images into patches: built for the size of the images, and so are their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

import models
from export.trial import trial
from models import libraries
from models.plugin import PluginError
from models.weights import WeightsError, load_state, load_weights
from pipeline.data.spec import DataSpec
from pipeline.task import task

NAME = "torchvision:vit_b_16"
FILE = Path("weights.pth")


def images(height: int, width: int = 0) -> DataSpec:
    return DataSpec(
        name="i", task="multiclass", sample_shape=(3, height, width or height), dtype="uint8", value_range=(0, 255),
        classes=("a", "b", "c"),
    )  # fmt: skip


def _small(**given: Any) -> VisionTransformer:
    return VisionTransformer(**{"patch_size": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64} | given)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torchvision's builder give two layers of 32 instead of twelve of 768: it lets nobody else choose."""
    maker = libraries.maker
    monkeypatch.setattr(libraries, "maker", lambda name: _small if name == NAME else maker(name))


def _state(side: int, *, num_outputs: int = 3, **given: Any) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return dict(_small(image_size=side, num_classes=num_outputs, **given).state_dict())


def test_a_vision_transformer_at_another_size_is_exported_for_every_batch() -> None:
    data = images(64)
    assert trial(NAME, lambda: models.build(NAME, data, {}), data=data, task=task("multiclass")) == []


@pytest.mark.parametrize("side", [32, 64, 128])
def test_weights_of_another_size_of_image_have_their_positions_interpolated(side: int) -> None:
    theirs = _state(64, num_outputs=1000)
    torch.save(theirs, FILE)
    model = models.build(NAME, images(side), {})
    notes = load_weights(model, FILE)
    expected = interpolate_embeddings(side, 16, dict(theirs))
    ours = model.network.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in expected.items() if not name.startswith("heads"))
    told = [note for note in notes if "position" in note]
    assert told == [] if side == 64 else told == [
        "The positions in the file are those of 4 x 4 patches, images of 64 x 64 pixels; interpolated to the "
        f"{side // 16} x {side // 16} patches of {side} x {side} pixels (bicubic, as torchvision does it)."
    ]  # fmt: skip
    assert any("outputs in the file and 3 here" in note for note in notes)
    assert (theirs["encoder.pos_embedding"].shape[1], len(load_state(model, theirs))) == (17, len(notes))  # not theirs changed


def test_weights_are_checked_for_their_positions_before_there_is_any_memory() -> None:
    torch.save(_state(32), FILE)
    with torch.device("meta"):
        model = models.build(NAME, images(64), {})
    assert len(load_weights(model, FILE)) == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [({"patch_size": 8}, "encoder.pos_embedding|conv_proj.weight"), ({"hidden_dim": 48}, "does not fit this network")],
)
def test_positions_of_another_network_are_not_bent_to_fit(given: dict[str, Any], said: str) -> None:
    model = models.build(NAME, images(32), {})
    with pytest.raises(WeightsError, match=said):
        load_state(model, _state(64, **given))


def test_positions_that_are_no_square_do_not_fit() -> None:
    state = _state(64)
    state["encoder.pos_embedding"] = state["encoder.pos_embedding"][:, :-2]
    with pytest.raises(WeightsError, match=r"does not fit this network: encoder.pos_embedding \(1, 15, 32\), not \(1, 5, 32\)"):
        load_state(models.build(NAME, images(32), {}), state)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("vit_b_16", images(50), "cuts images into 16 x 16 pixels, and 50 is no multiple of 16. Use --image_size 48 or 64."),
        ("vit_h_14", images(10), "cuts images into 14 x 14 pixels, and 10 is no multiple of 14. Use --image_size 14."),
        ("maxvit_t", images(64), "takes images of 224 x 224 pixels or multiples, and 64 is none. Use --image_size 224."),
        ("maxvit_t", images(300), "takes images of 224 x 224 pixels or multiples, and 300 is none. Use --image_size 224 or "
         "448."),
        ("vit_b_32", images(32, 64), "takes square images, and the data has 32 x 64 (height x width). Make them square, or use "
         "torchvision:swin_t."),
    ],
)  # fmt: skip
def test_a_size_that_does_not_suit_the_patches_is_told_the_nearest_ones(name: str, data: DataSpec, said: str) -> None:
    with torch.device("meta"), pytest.raises(PluginError) as caught:
        models.build(f"torchvision:{name}", data, {})
    assert str(caught.value) == said


@pytest.mark.parametrize(("name", "height", "width"), [("maxvit_t", 448, 448), ("swin_t", 50, 70), ("swin_v2_t", 33, 33)])
def test_transformers_with_windows_take_the_sizes_that_they_take(name: str, height: int, width: int) -> None:
    with torch.device("meta"):
        models.build(f"torchvision:{name}", images(height, width), {})
