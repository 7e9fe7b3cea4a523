from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import MODELS
from pipeline.config import RunConfig, UserError, resolve
from pipeline.data import sources
from pipeline.data.catalog import DATASETS
from pipeline.data.prepare import is_intact, prepare, prepared_folder, read_manifest

Make = Callable[..., RunConfig]
EMBEDDED = [n for n in DATASETS if n != "mnist"]


def _model_for(dataset: str) -> str:
    return next(m for m, s in MODELS.items() if s.recipe("default")["dataset"] == dataset)


def _load(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    parts = read_manifest(folder)["splits"][name]
    return np.load(folder / parts["x"]["file"]), np.load(folder / parts["y"]["file"])


@pytest.mark.parametrize("dataset", EMBEDDED)
def test_splits_cover_each_sample_once(dataset: str, make_config: Make) -> None:
    config = make_config(model=_model_for(dataset))
    folder, spec = prepare(config), DATASETS[dataset]
    parts = [_load(folder, name) for name in ("train", "val", "test")]
    together = np.concatenate([x.reshape(len(x), -1) for x, _ in parts])
    assert len(together) == spec.num_train
    whole = getattr(sources, spec.source)(config).x
    if not spec.is_image:
        whole = whole.reshape(len(whole), -1)
        assert sorted(map(bytes, together)) == sorted(map(bytes, whole))


@pytest.mark.parametrize("dataset", [d for d in EMBEDDED if DATASETS[d].task != "regression"])
def test_splits_are_stratified(dataset: str, make_config: Make) -> None:
    folder = prepare(make_config(model=_model_for(dataset)))
    shares = [np.bincount(y) / len(y) for _, y in (_load(folder, n) for n in ("train", "val", "test"))]
    assert np.abs(shares[0] - shares[1]).max() < 0.01 and np.abs(shares[0] - shares[2]).max() < 0.01


def test_moons_are_split_640_160_200(make_config: Make) -> None:
    folder = prepare(make_config(model="moons"))
    assert [len(_load(folder, n)[0]) for n in ("train", "val", "test")] == [640, 160, 200]


@pytest.mark.parametrize("model", MODELS)
def test_statistics_are_those_of_the_training_split_alone(model: str, make_config: Make) -> None:
    folder = prepare(make_config(model=model))
    x, _ = _load(folder, "train")
    axes = (0, 2, 3) if x.ndim == 4 else (0,)
    statistics = read_manifest(folder)["statistics"]
    np.testing.assert_allclose(statistics["mean"], x.mean(axes, dtype=np.float64), rtol=1e-9)
    np.testing.assert_allclose(statistics["std"], x.std(axes, dtype=np.float64), rtol=1e-6)


@pytest.mark.parametrize(("model", "size"), [("cnn", 28), ("lenet", 32)])
def test_images_become_uint8_of_the_size_that_the_model_takes(model: str, size: int, make_config: Make) -> None:
    x, y = _load(prepare(make_config(model=model)), "train")
    assert x.dtype == np.uint8 and x.shape[1:] == (1, size, size) and y.dtype == np.int64
    assert x.min() == 0 and x.max() > 240  # 16 grey levels stretched to 0..255, and resizing kept the range


def test_without_holdout_every_sample_is_trained_on_and_tested_on(make_config: Make) -> None:
    splits = read_manifest(prepare(make_config(model="mlp", recipe="seed")))["splits"]
    assert splits["train"]["x"]["shape"] == [569, 30] == splits["test"]["x"]["shape"]
    assert splits["val"]["x"]["shape"] == [0, 30]
    assert splits["test"]["x"]["sha256"] == splits["train"]["x"]["sha256"]


def test_the_same_settings_give_the_same_bytes_and_another_seed_others(make_config: Make, tmp_path: Path) -> None:
    first = make_config(model="mlp")
    again = make_config(model="mlp", cache_dir=tmp_path)
    other = make_config(model="mlp", cache_dir=tmp_path, split_seed=1)
    digests = [read_manifest(prepare(c))["data_sha256"] for c in (first, again, other)]
    assert digests[0] == digests[1] != digests[2]


def test_noise_shapes_the_moons(make_config: Make) -> None:
    assert prepared_folder(make_config(model="moons", noise=0)) != prepared_folder(make_config(model="moons", noise=0.2))
    x, y = _load(prepare(make_config(model="moons", noise=0)), "train")
    outer = x[y == 0]
    np.testing.assert_allclose((outer**2).sum(1), 1, atol=1e-5)  # without noise, a half circle of radius 1


def test_a_damaged_cache_is_made_anew(make_config: Make, tmp_path: Path) -> None:
    config = make_config(model="moons", cache_dir=tmp_path)
    folder = prepare(config)
    digest = read_manifest(folder)["data_sha256"]
    with (folder / "val_x.npy").open("r+b") as file:
        file.seek(200)
        file.write(b"\xff")
    assert not is_intact(folder)
    assert prepare(config) == folder and is_intact(folder) and read_manifest(folder)["data_sha256"] == digest


def test_a_prepared_array_is_the_file_that_numpy_writes(make_config: Make) -> None:
    folder = prepare(make_config(model="moons"))
    for path in folder.glob("*.npy"):
        buffer = io.BytesIO()
        np.save(buffer, np.load(path))
        assert path.read_bytes() == buffer.getvalue(), path


PREPARE = """
import sys
from pipeline.config import resolve
from pipeline.data import prepare, sources
if sys.argv[2] == "slow":
    import time
    inner = sources.digits
    sources.digits = lambda config: (open(sys.argv[1] + "/inside", "w").close(), time.sleep(30), inner(config))[2]
print(prepare.prepare(resolve({"model": "cnn", "cache_dir": sys.argv[1]})))
"""


def _start(folder: Path, mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PREPARE, str(folder), mode], stdout=subprocess.PIPE, text=True)


def test_two_processes_preparing_at_once_leave_one_valid_cache(tmp_path: Path) -> None:
    processes = [_start(tmp_path, "fast") for _ in range(2)]
    folders = {p.communicate(timeout=90)[0].strip() for p in processes}
    assert [p.returncode for p in processes] == [0, 0]
    (folder,) = folders
    assert is_intact(Path(folder)) and [p.name for p in tmp_path.iterdir() if p.is_dir()] == [Path(folder).name]


def test_a_killed_preparation_leaves_no_cache_and_no_obstacle_and_is_swept_by_that_of_other_data(tmp_path: Path) -> None:
    process = _start(tmp_path, "slow")
    deadline = time.monotonic() + 60
    while not (tmp_path / "inside").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    config = resolve({"model": "cnn", "cache_dir": str(tmp_path)})
    others = [resolve({"model": model, "cache_dir": str(tmp_path)}) for model in ("moons", "polynomial")]
    prepare(others[0])
    assert list(tmp_path.glob("*.tmp-*")), "it is still at work"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    assert not prepared_folder(config).exists() and list(tmp_path.glob("*.tmp-*"))
    prepare(others[1])
    assert not list(tmp_path.glob("*.tmp-*"))
    assert is_intact(prepare(config)) and not list(tmp_path.glob("*.tmp-*"))


def _idx(array: np.ndarray) -> bytes:
    return struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def _write_mnist(folder: Path, *, num_train: int = 240, num_test: int = 40, label: int | None = None) -> Path:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    source = np.random.default_rng(0)
    for part, count in (("train", num_train), ("t10k", num_test)):
        images = source.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        labels = (np.arange(count) % 10 if label is None else np.full(count, label)).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(_idx(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(_idx(labels))
    return raw


def _mnist_config(folder: Path, **flags: Any) -> RunConfig:
    return resolve({"dataset": "mnist", "data_dir": str(folder), "cache_dir": str(folder / "cache")} | flags)


def test_mnist_is_read_from_raw_files_and_its_test_set_left_untouched(tmp_path: Path) -> None:
    raw = _write_mnist(tmp_path)
    folder = prepare(_mnist_config(tmp_path))
    assert [len(_load(folder, n)[0]) for n in ("train", "val", "test")] == [220, 20, 40]
    theirs = np.frombuffer((raw / "t10k-images-idx3-ubyte").read_bytes()[16:], np.uint8).reshape(40, 1, 28, 28)
    assert np.array_equal(_load(folder, "test")[0], theirs)


def test_other_raw_files_are_never_answered_with_an_old_cache(tmp_path: Path) -> None:
    raw = _write_mnist(tmp_path)
    first = prepare(_mnist_config(tmp_path))
    (raw / "t10k-labels-idx1-ubyte").write_bytes(_idx(np.zeros(40, np.uint8)))
    assert prepare(_mnist_config(tmp_path)) != first


@pytest.mark.parametrize("damage", ["truncated", "label", "text"])
def test_broken_raw_files_are_named(tmp_path: Path, damage: str) -> None:
    raw = _write_mnist(tmp_path, label=11 if damage == "label" else None)
    file = raw / "train-images-idx3-ubyte"
    if damage != "label":
        file.write_bytes(file.read_bytes()[:1000] if damage == "truncated" else b"not an IDX file at all")
    with pytest.raises(UserError, match=rf"data_dir={tmp_path}.*Delete them"):
        prepare(_mnist_config(tmp_path))
    assert not list((tmp_path / "cache").glob("mnist-*/manifest.json"))


def test_without_files_and_network_the_error_names_the_folder_and_the_embedded_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.datasets

    monkeypatch.setattr(torchvision.datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])  # nothing listens on discard
    with pytest.raises(UserError, match=rf"{tmp_path}/MNIST/raw.*cannot be downloaded.*--dataset digits"):
        prepare(_mnist_config(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_real_mnist_gives_the_known_statistics(mnist_dir: Path, cache_dir: Path) -> None:
    config = resolve({"dataset": "mnist", "data_dir": str(mnist_dir), "cache_dir": str(cache_dir), "holdout": "false"})
    manifest = read_manifest(prepare(config))
    assert manifest["splits"]["train"]["x"]["shape"] == [60_000, 1, 28, 28]
    assert manifest["statistics"]["mean"][0] / 255 == pytest.approx(0.1307, abs=1e-4)  # the figures in every tutorial
    assert manifest["statistics"]["std"][0] / 255 == pytest.approx(0.3081, abs=1e-4)


def test_the_manifest_tells_what_was_prepared(make_config: Make) -> None:
    manifest = json.loads((prepare(make_config(model="cnn")) / "manifest.json").read_text())
    assert manifest["input_dtype"] == "uint8" and manifest["input_range"] == [0, 255]
    assert manifest["classes"] == list("0123456789") and len(manifest["data_sha256"]) == 64
    assert os.sep not in json.dumps(manifest["splits"])
