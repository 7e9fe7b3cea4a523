"""The exported graph resizes as Pillow does, whatever the size of an image."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from export import artifacts
from export.formats import FORMATS, pt2
from export.module import ExportModule
from pipeline.data import images
from pipeline.data.resize import resize
from pipeline.task import task
from tests.export.conftest import EXACT, MakeRun

SIZES = [
    (427, 640, 64), (640, 427, 64), (30, 40, 64), (100, 33, 64), (33, 100, 64), (64, 65, 64), (65, 64, 64), (300, 64, 64),
    (64, 64, 64), (1, 1, 64), (1, 500, 64), (500, 1, 64), (3000, 20, 64), (20, 3000, 64), (16, 16, 64), (16, 16, 96),
    (128, 128, 64), (375, 500, 224), (2, 3, 5), (50, 7, 1), (63, 65, 64),
]  # fmt: skip
DYNAMIC = [(1, 427, 640), (3, 64, 64), (2, 30, 40), (5, 1, 1), (1, 1, 500), (2, 100, 33), (1, 67, 69), (7, 16, 200)]


def _picture(height: int, width: int, channels: int, kind: str, seed: int = 0) -> NDArray[np.uint8]:
    """Return an image (C, H, W): `noise`, or `smooth` waves, whose sums lie on the edge between two levels more often."""
    if kind == "noise":
        return np.random.default_rng(seed).integers(0, 256, (channels, height, width), dtype=np.uint8)
    row, column = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(9 * row + c) + np.cos(7 * column - c) for c in range(channels)]
    return ((np.stack(waves) + 2) * 63.5).astype(np.uint8)


@pytest.mark.parametrize("kind", ["noise", "smooth"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width", "side"), SIZES)
def test_the_graph_resizes_as_pillow_does_to_the_bit(height: int, width: int, side: int, channels: int, kind: str) -> None:
    image = _picture(height, width, channels, kind)
    found = resize(torch.from_numpy(image)[None], side)
    assert found.dtype == torch.float32 and found.shape == (1, channels, side, side)
    assert np.array_equal(found[0].numpy(), images.resize(image, side))
    pixels = Image.fromarray(image[0] if channels == 1 else image.transpose(1, 2, 0))
    at_once = np.asarray(pixels.resize((side, side), Image.Resampling.BILINEAR), dtype=np.float32)
    assert np.abs((found[0, 0] if channels == 1 else found[0].permute(1, 2, 0)).numpy() - at_once).max() <= 1


def test_an_image_of_that_size_is_returned_as_it_is() -> None:
    image = torch.from_numpy(_picture(64, 64, 3, "noise"))[None]
    assert torch.equal(resize(image, 64), image.float())
    assert torch.equal(resize(image.float() / 7, 64), image.float() / 7)


def test_values_in_floating_point_are_not_rounded() -> None:
    values = np.random.default_rng(0).random((45, 33), dtype=np.float32)
    expected = values
    for size in ((24, 45), (24, 24)):
        expected = np.asarray(Image.fromarray(expected).resize(size, Image.Resampling.BILINEAR))
    found = resize(torch.from_numpy(values)[None, None], 24)[0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=2e-6)


class _Pixels(torch.nn.Module):
    """A model whose features are its input."""

    has_features = True

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.flatten(1)[:, :10], x.flatten(1)


@pytest.fixture(scope="module")
def program() -> Any:
    module = ExportModule(_Pixels(), task=task("multiclass"), side=64).eval()  # type: ignore[arg-type]
    return pt2.capture(module, torch.zeros(2, 3, 67, 69, dtype=torch.uint8), any_size=True)


@pytest.mark.parametrize("name", EXACT)
def test_every_format_takes_any_batch_height_and_width(name: str, program: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(FORMATS[name].build(program, {}, outputs=("logits", "probabilities", "features")))
    from export.isolated import load_format

    call, facts, _ = load_format(FORMATS[name].source).load(tmp_path / "file", num_threads=1)
    if name == "onnx":
        assert facts["inputs"] == [{"name": "input", "dtype": "uint8", "shape": ["batch", 3, "height", "width"]}]
    for batch, height, width in DYNAMIC:
        x = np.stack([_picture(height, width, 3, "noise", seed) for seed in range(batch)])
        features = call(x)[2].reshape(batch, 3, 64, 64)
        assert np.array_equal(features, np.stack([images.resize(image, 64) for image in x])), (batch, height, width)


def test_a_run_of_images_of_any_size_is_exported_so(make_run: MakeRun, tmp_path: Path) -> None:
    trained = make_run("cnn", tmp_path / "run")
    run = dataclasses.replace(trained.run, data=dataclasses.replace(trained.run.data, any_size=True))
    artifacts.export_run(run)
    session = onnxruntime.InferenceSession(run.folder / "export" / "model.onnx")
    assert session.get_inputs()[0].shape == ["batch", 1, "height", "width"]
    assert json.loads(session.get_modelmeta().custom_metadata_map["any_size"]) is True
    image = _picture(100, 33, 1, "smooth")
    whole, resized = (session.run(None, {"input": x[None]}) for x in (image, images.resize(image, run.data.sample_shape[-1])))
    assert all(np.array_equal(a, b) for a, b in zip(whole, resized, strict=True))
