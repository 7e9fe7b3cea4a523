from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.datasets import MNIST

from models import MODELS
from models.recipes import recipe
from pipeline.config import RunConfig
from pipeline.data import builtin, find, matching, mnist
from pipeline.data.prepare import is_intact, prepare, prepared_folder, read_manifest, read_spec, split_digest
from pipeline.data.spec import Samples
from pipeline.errors import UserError
from pipeline.resolve import resolve

Make = Callable[..., RunConfig]
EMBEDDED = [n for n in matching() if n != "mnist"]


def _model_for(dataset: str) -> str:
    return next(m for m in MODELS if recipe(m, "default")["dataset"] == dataset)


def _load(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    parts = read_manifest(folder)["splits"][name]
    return np.load(folder / parts["x"]["file"]), np.load(folder / parts["y"]["file"])


@pytest.mark.parametrize("dataset", EMBEDDED)
def test_splits_cover_each_sample_once(dataset: str, make_config: Make) -> None:
    config = make_config(model=_model_for(dataset))
    folder, source = prepare(config), find(dataset)
    parts = [_load(folder, name) for name in ("train", "val", "test")]
    together = np.concatenate([x.reshape(len(x), -1) for x, _ in parts])
    assert len(together) == source.num_train
    whole = source.load(config.data_dir, config.split_seed).x
    if not source.spec.is_image:
        whole = whole.reshape(len(whole), -1)
        assert sorted(map(bytes, together)) == sorted(map(bytes, whole))


@pytest.mark.parametrize("dataset", [d for d in EMBEDDED if find(d).spec.task != "regression"])
def test_splits_are_stratified(dataset: str, make_config: Make) -> None:
    folder = prepare(make_config(model=_model_for(dataset)))
    shares = [np.bincount(y) / len(y) for _, y in (_load(folder, n) for n in ("train", "val", "test"))]
    assert np.abs(shares[0] - shares[1]).max() < 0.01 and np.abs(shares[0] - shares[2]).max() < 0.01


def test_moons_are_split_640_160_200(make_config: Make) -> None:
    folder = prepare(make_config(model="two_layer"))
    assert [len(_load(folder, n)[0]) for n in ("train", "val", "test")] == [640, 160, 200]


@pytest.mark.parametrize("model", MODELS)
def test_statistics_are_those_of_the_training_split_alone(model: str, make_config: Make) -> None:
    folder = prepare(make_config(model=model))
    x, _ = _load(folder, "train")
    axes = (0, 2, 3) if x.ndim == 4 else (0,)
    spec = read_spec(folder)
    np.testing.assert_allclose(spec.mean, x.mean(axes, dtype=np.float64), rtol=1e-9)
    np.testing.assert_allclose(spec.std, x.std(axes, dtype=np.float64), rtol=1e-6)


@pytest.mark.parametrize(("model", "size"), [("cnn", 28), ("lenet", 32)])
def test_images_become_uint8_of_the_size_that_the_model_takes(model: str, size: int, make_config: Make) -> None:
    x, y = _load(prepare(make_config(model=model)), "train")
    assert x.dtype == np.uint8 and x.shape[1:] == (1, size, size) and y.dtype == np.int64
    assert x.min() == 0 and x.max() > 240  # 16 grey levels stretched to 0..255, and resizing kept the range


def test_without_holdout_every_sample_is_trained_on_and_none_is_called_a_test(make_config: Make) -> None:
    splits = read_manifest(prepare(make_config(model="mlp", recipe="reference")))["splits"]
    assert splits["train"]["x"]["shape"] == [569, 30] and splits["val"]["x"]["shape"] == [0, 30]
    assert set(splits) == {"train", "val"}


def test_the_same_settings_give_the_same_bytes_and_another_seed_others(make_config: Make, tmp_path: Path) -> None:
    first = make_config(model="mlp")
    again = make_config(model="mlp", cache_dir=tmp_path)
    other = make_config(model="mlp", cache_dir=tmp_path, split_seed=1)
    digests = [read_spec(prepare(c)).sha256 for c in (first, again, other)]
    assert digests[0] == digests[1] != digests[2]


def test_noise_shapes_the_moons(make_config: Make) -> None:
    without, some = (make_config(model="two_layer", data_args=f"noise={noise}") for noise in (0, 0.2))
    assert prepared_folder(without) != prepared_folder(some)
    x, y = _load(prepare(without), "train")
    outer = x[y == 0]
    np.testing.assert_allclose((outer**2).sum(1), 1, atol=1e-5)  # without noise, a half circle of radius 1


def test_a_damaged_cache_is_made_anew(make_config: Make, tmp_path: Path) -> None:
    config = make_config(model="two_layer", cache_dir=tmp_path)
    folder = prepare(config)
    digest = read_spec(folder).sha256
    with (folder / "val_x.npy").open("r+b") as file:
        file.seek(200)
        file.write(b"\xff")
    assert not is_intact(folder)
    assert prepare(config) == folder and is_intact(folder) and read_spec(folder).sha256 == digest


def test_a_prepared_array_is_the_file_that_numpy_writes(make_config: Make) -> None:
    folder = prepare(make_config(model="two_layer"))
    for path in folder.glob("*.npy"):
        buffer = io.BytesIO()
        np.save(buffer, np.load(path))
        assert path.read_bytes() == buffer.getvalue(), path


PREPARE = """
import sys
from pipeline.resolve import resolve
from pipeline.data import builtin, prepare
if sys.argv[2] == "slow":
    import dataclasses, time
    digits = builtin.SOURCES["digits"]
    wait = lambda data_dir, seed: (open(sys.argv[1] + "/inside", "w").close(), time.sleep(30), digits.load(data_dir, seed))[2]
    builtin.SOURCES["digits"] = dataclasses.replace(digits, load=wait)
print(prepare.prepare(resolve({"model": "cnn", "cache_dir": sys.argv[1]})))
"""


def _start(folder: Path, mode: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PREPARE, str(folder), mode], stdout=subprocess.PIPE, text=True)


def test_two_processes_preparing_at_once_leave_one_valid_cache(tmp_path: Path) -> None:
    processes = [_start(tmp_path, "fast") for _ in range(2)]
    folders = {p.communicate(timeout=90)[0].strip().splitlines()[-1] for p in processes}  # the one that makes it says so first
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
    others = [resolve({"model": model, "cache_dir": str(tmp_path)}) for model in ("two_layer", "polynomial")]
    prepare(others[0])
    assert list(tmp_path.glob("*.part")), "it is still at work"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    assert not prepared_folder(config).exists() and list(tmp_path.glob("*.part"))
    prepare(others[1])
    assert not list(tmp_path.glob("*.part"))
    assert is_intact(prepare(config)) and not list(tmp_path.glob("*.part"))


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


def test_a_processed_folder_of_old_torchvision_is_not_looked_at(tmp_path: Path) -> None:
    raw = _write_mnist(tmp_path)
    (raw.parent / "processed").mkdir()
    other = torch.full((240, 28, 28), 7, dtype=torch.uint8), torch.zeros(240, dtype=torch.int64)
    for name in ("training.pt", "test.pt"):
        torch.save(other, raw.parent / "processed" / name)
    folder = prepare(_mnist_config(tmp_path, val_split="0"))
    for part, name in (("train", "train"), ("t10k", "test")):
        x, y = _load(folder, name)
        assert x.tobytes() == (raw / f"{part}-images-idx3-ubyte").read_bytes()[16:]
        assert y.astype(np.uint8).tobytes() == (raw / f"{part}-labels-idx1-ubyte").read_bytes()[8:]


def test_with_a_processed_folder_missing_raw_files_are_fetched_all_the_same_and_the_others_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = _write_mnist(tmp_path)
    (raw.parent / "processed").mkdir()
    for name in ("training.pt", "test.pt"):
        torch.save((torch.zeros(1, 28, 28), torch.zeros(1)), raw.parent / "processed" / name)
    missing, (kept, *_) = raw / mnist.FILES[-1], mnist.FILES
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    with gzip.open(mirror / f"{missing.name}.gz", "wb") as file:
        file.write(missing.read_bytes())
    resources = [(f"{name}.gz", "0" * 32) for name in mnist.FILES[:-1]]
    resources.append((f"{missing.name}.gz", hashlib.md5((mirror / f"{missing.name}.gz").read_bytes()).hexdigest()))
    monkeypatch.setattr(MNIST, "resources", resources)
    missing.unlink()
    before = (raw / kept).stat()
    handler = partial(SimpleHTTPRequestHandler, directory=str(mirror))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        addresses = [f"http://127.0.0.1:{port}/" for port in (9, server.server_port)]  # nothing listens on the first
        monkeypatch.setattr(MNIST, "mirrors", addresses)
        assert is_intact(prepare(_mnist_config(tmp_path)))
        server.shutdown()
    assert missing.is_file() and (raw / kept).stat().st_mtime_ns == before.st_mtime_ns


def test_other_raw_files_are_never_answered_with_an_old_cache(tmp_path: Path) -> None:
    raw = _write_mnist(tmp_path)
    first = prepare(_mnist_config(tmp_path))
    (raw / "t10k-labels-idx1-ubyte").write_bytes(_idx(np.zeros(40, np.uint8)))
    assert prepare(_mnist_config(tmp_path)) != first


def test_raw_files_changed_within_the_same_size_and_time_are_noticed(tmp_path: Path) -> None:
    file = _write_mnist(tmp_path) / "t10k-labels-idx1-ubyte"
    first, before = prepare(_mnist_config(tmp_path)), file.stat()
    file.write_bytes(_idx(np.zeros(40, np.uint8)))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert prepare(_mnist_config(tmp_path)) != first


@pytest.mark.parametrize("damage", ["truncated", "label", "text", "empty", "float", "type", "long", "gigantic", "flat"])
def test_broken_raw_files_are_named(tmp_path: Path, damage: str) -> None:
    raw = _write_mnist(tmp_path, label=11 if damage == "label" else None)
    file = raw / "train-images-idx3-ubyte"
    good = file.read_bytes()
    broken = {
        "truncated": good[:1000], "text": b"not an IDX file at all", "empty": b"", "long": good + b"\0",
        "float": struct.pack(">HBB3I", 0, 13, 3, 240, 28, 28) + good[16:] * 4, "type": good[:2] + b"\x0a" + good[3:],
        "gigantic": good[:4] + b"\xff" * 12 + good[16:], "flat": struct.pack(">HBBI", 0, 8, 1, len(good) - 16) + good[16:],
    }  # fmt: skip
    file.write_bytes(broken.get(damage, good))
    with pytest.raises(UserError, match=rf"data_dir={tmp_path}.*Delete them"):
        prepare(_mnist_config(tmp_path))
    assert not list((tmp_path / "cache").glob("mnist-*/manifest.json"))


@pytest.mark.parametrize(
    ("labels", "missing"),
    [
        (range(5), "0 of 5 would be for validation with 5 classes"),
        (range(9), "1 of 9 would be for validation with 9 classes"),
        ([0] * 60 + [1] * 60 + [7], r"3 classes \(a single sample of 7\)"),
        ([0] * 11 + list(range(1, 10)) * 2, "2 of 29 would be for validation with 10 classes"),
        ([3], "0 of 1 would be for validation"),
    ],
)
def test_samples_that_cannot_be_split_are_told_in_a_sentence(tmp_path: Path, labels: Any, missing: str) -> None:
    raw, y = _write_mnist(tmp_path), np.array(labels, np.uint8)
    (raw / "train-images-idx3-ubyte").write_bytes(_idx(np.zeros((len(y), 28, 28), np.uint8)))
    (raw / "train-labels-idx1-ubyte").write_bytes(_idx(y))
    with pytest.raises(UserError, match=rf"^dataset=mnist .*{missing}.*--val_split 0"):
        prepare(_mnist_config(tmp_path))
    assert is_intact(prepare(_mnist_config(tmp_path, val_split="0")))


@pytest.mark.parametrize("dataset", EMBEDDED)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 10])
def test_any_few_samples_of_any_data_set_are_split_or_refused(
    dataset: str, count: int, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = find(dataset)
    whole = source.load(Path("data"), 0)
    picked = np.linspace(0, len(whole.x) - 1, count).astype(int)
    few = dataclasses.replace(source, load=lambda data_dir, seed: Samples(whole.x[picked], whole.y[picked]))
    monkeypatch.setitem(builtin.SOURCES, dataset, few)  # type: ignore[arg-type]
    try:
        folder = prepare(make_config(model=_model_for(dataset), cache_dir=tmp_path))
    except UserError as error:
        assert "--val_split 0" in str(error)
    else:
        assert all(len(_load(folder, name)[1]) for name in ("train", "val", "test"))


def test_without_files_and_network_the_error_names_the_folder_and_the_embedded_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])  # nothing listens on discard
    with pytest.raises(UserError, match=rf"{tmp_path}/MNIST/raw.*cannot be downloaded.*--dataset digits"):
        prepare(_mnist_config(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_real_mnist_gives_the_known_statistics(mnist_dir: Path, cache_dir: Path) -> None:
    config = resolve({"dataset": "mnist", "data_dir": str(mnist_dir), "cache_dir": str(cache_dir), "val_split": "0"})
    spec = read_spec(prepare(config))
    assert spec.counts == {"train": 60_000, "val": 0, "test": 10_000} and spec.sample_shape == (1, 28, 28)
    assert spec.mean[0] / 255 == pytest.approx(0.1307, abs=1e-4)  # the figures in every tutorial
    assert spec.std[0] / 255 == pytest.approx(0.3081, abs=1e-4)


def test_the_manifest_tells_what_was_prepared(make_config: Make) -> None:
    manifest = json.loads((prepare(make_config(model="cnn")) / "manifest.json").read_text())
    spec = manifest["spec"]
    assert spec["dtype"] == "uint8" and spec["value_range"] == [0, 255] and spec["sample_shape"] == [1, 28, 28]
    assert spec["classes"] == list("0123456789") and len(spec["sha256"]) == 64
    assert spec["counts"] == {"train": 1079, "val": 359, "test": 359}
    assert os.sep not in json.dumps(manifest["splits"])


def test_the_digest_of_a_split_is_that_of_its_samples_alone(make_config: Callable[..., Any], tmp_path: Path) -> None:
    """More training rows change how a table is encoded, and not which rows it is tested on."""

    def digests(num_train: int, label: str = "no", value: float = 0.5) -> tuple[str, str]:
        rows = [f"{k},{'yes' if k % 2 else 'no'},{'train' if k < num_train else 'val'}" for k in range(num_train + 8)]
        rows += [f"{value},yes,test", f"3.5,{label},test"]
        (tmp_path / "table.csv").write_text("\n".join(["x,y,part", *rows]) + "\n")
        flags = {"dataset": tmp_path / "table.csv", "target": "y", "split_column": "part", "model": "mlp"}
        folder = prepare(make_config(**flags, cache_dir=tmp_path / "cache"))
        return split_digest(folder, "test"), read_spec(folder).sha256

    (first, of_all), (more, of_more) = digests(40), digests(60)
    assert first == more and of_all != of_more
    assert len({first, digests(40, label="yes")[0], digests(40, value=0.25)[0]}) == 3
