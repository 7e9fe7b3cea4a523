"""Networks of timm, which is no dependency: asked for with -m slow, where it has to be installed (uv sync --extra timm)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

import models
from export.trial import trial
from models import libraries, weights
from models.plugin import PluginError
from pipeline.data.spec import DataSpec
from pipeline.task import task

pytestmark = pytest.mark.slow
FAMILIES = ("resnet18", "convnext_atto", "mobilenetv3_small_050", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224")


@pytest.fixture(scope="module", autouse=True)
def timm() -> Any:
    try:
        import timm
    except ImportError:
        pytest.fail("these tests need timm: uv sync --extra timm")  # not skipped, so that nobody takes them for passed
    return timm


def images(channels: int = 3, side: int = 64) -> DataSpec:
    return DataSpec(
        name="i", task="multiclass", sample_shape=(channels, side, side), dtype="uint8", value_range=(0, 255),
        classes=("a", "b", "c"),
    )  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("short", FAMILIES)
def test_each_family_takes_the_images_as_they_are(short: str, channels: int) -> None:
    data = images(channels)
    with torch.device("meta"):
        models.build(f"timm:{short}", data, {})
    model = models.build(f"timm:{short}", data, {}, preprocess="pretrained")
    scores, _ = model(torch.zeros(2, channels, 64, 64, dtype=torch.uint8))
    assert scores.shape == (2, 3) and not model.has_features and not model.repeat_grey and len(model.hidden_matrices) > 10


@pytest.mark.timeout(600)
@pytest.mark.parametrize("short", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_three_families_one_of_them_a_transformer_pass_the_trial(short: str) -> None:
    data, name = images(), f"timm:{short}"
    assert trial(name, lambda: models.build(name, data, {}), data=data, task=task("multiclass"), num_ranks=2) == []


def test_weights_saved_by_timm_fit_and_have_a_new_head(timm: Any) -> None:
    torch.manual_seed(1)
    theirs = timm.create_model("resnet18")
    torch.save(theirs.state_dict(), "resnet18.pth")
    model = models.build("timm:resnet18", images(), {})
    (note,) = weights.load_weights(model, Path("resnet18.pth"))
    assert note.startswith("The last layer has 1000 outputs in the file and 3 here")
    assert torch.equal(model.network.conv1.weight, theirs.conv1.weight)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize(
    ("short", "channels", "mean", "std"),
    [
        ("resnet18", 3, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
        ("resnet18", 1, [114.495], [57.63]),
        ("vit_tiny_patch16_224", 3, [127.5] * 3, [127.5] * 3),
    ],
)
def test_pretrained_weights_bring_their_own_mean_and_std(
    short: str, channels: int, mean: list[float], std: list[float]
) -> None:
    found = libraries.statistics(f"timm:{short}", images(channels))
    assert found["mean"] == pytest.approx(mean) and found["std"] == pytest.approx(std)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm:resnt18", "is not a classification network of timm. Did you mean timm:resnet18"),
        ("timm:resnet18.foo", "has no weights called foo. There are: a1_in1k"),
    ],
)
def test_a_name_that_timm_does_not_have_is_a_sentence(name: str, said: str) -> None:
    with pytest.raises(PluginError, match=said):
        models.find(name)


def test_the_names_read_off_its_source_are_those_that_it_lists(timm: Any) -> None:
    assert set(timm.list_models()) <= set(libraries.names_by_source("timm"))
    assert models.find("timm:efficientnet_b4").image_size == timm.get_pretrained_cfg("efficientnet_b4").input_size[-1]


def test_without_a_network_pretrained_weights_are_a_sentence_within_seconds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(PluginError, match=r"cannot be downloaded \(127\.0\.0\.1:9: "):
        weights.pretrained("timm:resnet18", images())
    assert time.monotonic() - start < 20
