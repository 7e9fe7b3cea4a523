"""From a data set to typed tensors on disk: split, resized, measured, hashed; written once, then memory-mapped by all.

A prepared folder appears under its final name only when it is complete, so a reader never meets half of one; a lock keeps
two processes from doing the same work, and is freed by the system when its holder is killed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import RunConfig
from pipeline.data import find
from pipeline.data.spec import IMAGE_RANGE, DataSpec, Samples, Source
from pipeline.errors import UserError
from pipeline.files import digest_of, locked, read_json, sha256
from pipeline.output import say
from pipeline.task import task

Array = NDArray[np.generic]

FORMAT = 3
SPLITS = ("train", "val", "test")


def prepare(config: RunConfig) -> Path:
    """Return the folder with the prepared tensors and `manifest.json`, making it if it is not there or is damaged.

    Raises UserError where the data cannot be had, the cache cannot be written, or other data lies there.
    """
    folder, identity = _locate(config)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        with locked(folder.parent / f"{folder.name}.lock"):
            _refuse_other_data(folder, identity)
            if not is_intact(folder):
                _make(folder, config, identity)
    except OSError as error:
        raise UserError(
            f"cache_dir={config.cache_dir} cannot be used ({error.strerror or error}). Make room, or give a folder that can be "
            "written with --cache_dir."
        ) from error
    return folder


def prepared_folder(config: RunConfig) -> Path:
    """Return where `prepare` has laid the tensors, without looking at them."""
    return _locate(config)[0]


def _locate(config: RunConfig) -> tuple[Path, dict[str, Any]]:
    """Return the folder for all that shapes the tensors, and these facts themselves."""
    source = find(config.dataset)
    files = source.files(config.data_dir) if source.files else []
    identity = {
        "format": FORMAT, "dataset": config.dataset, "image_size": config.image_size, "val_split": config.val_split,
        "test_split": config.test_split, "split_seed": config.split_seed, "data_args": dict(config.data_args),
        "raw": _fingerprint(files),
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    try:
        cache = config.cache_dir.expanduser()  # the default; a flag was expanded when it was read
    except RuntimeError as error:
        raise UserError(f"cache_dir={config.cache_dir}: this user has no home folder. Give a folder, or set HOME.") from error
    return cache / f"{config.dataset}-{key}", identity


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a prepared folder: what it was made from, its files with their hashes, and its DataSpec."""
    return read_json(folder / "manifest.json")


def read_spec(folder: Path) -> DataSpec:
    """Return the DataSpec of a prepared folder, with statistics, counts and hash."""
    return DataSpec.from_json(read_manifest(folder)["spec"])


def _refuse_other_data(folder: Path, identity: dict[str, Any]) -> None:
    """Raise UserError if a whole manifest says that a folder was prepared from other data, or otherwise."""
    try:
        manifest = read_manifest(folder)
        whole = manifest.pop("sha256") == digest_of(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing, or damaged: made anew
        return
    found = manifest.get("identity") or {}
    differing = [f"{name}={found.get(name)}, not {value}" for name, value in identity.items() if found.get(name) != value]
    if whole and differing:
        raise UserError(
            f"cache_dir={folder.parent}: {folder.name} holds other data than its name says ({'; '.join(differing)[:200]}). "
            "Take it away, or give another --cache_dir."
        )


def is_intact(folder: Path) -> bool:
    """Tell whether a prepared folder is there and each of its files has the hash that its manifest names."""
    try:
        manifest = read_manifest(folder)
        if manifest.pop("sha256") != digest_of(manifest):
            return False
        files = {part["file"]: part["sha256"] for split in manifest["splits"].values() for part in split.values()}
        return all(sha256(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing, or damaged beyond reading
        return False


def _sweep(cache_dir: Path) -> None:
    """Remove what killed processes have left of data sets that nobody prepares now."""
    for leftover in cache_dir.glob("*.tmp-*"):
        with suppress(OSError), locked(cache_dir / f"{leftover.name.partition('.tmp-')[0]}.lock", wait=0):
            shutil.rmtree(leftover)


def _make(folder: Path, config: RunConfig, identity: dict[str, Any]) -> None:
    for leftover in folder.parent.glob(f"{folder.name}.tmp-*"):  # of a process that was killed; we hold the lock
        shutil.rmtree(leftover)
    say(f"preparing {config.dataset} in {folder} ...")
    temporary = folder.parent / f"{folder.name}.tmp-{os.getpid()}"
    temporary.mkdir()
    try:
        _fill(temporary, config, identity)
        if folder.exists():  # damaged: `is_intact` said so
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fill(folder: Path, config: RunConfig, identity: dict[str, Any]) -> None:
    """Write the arrays of a data set and their manifest into a folder."""
    source = find(config.dataset)
    spec = source.spec.resized(config.image_size)
    try:
        samples = source.load(data_dir=config.data_dir, seed=config.split_seed, **config.data_args)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"data_args: {config.dataset} cannot be made with these arguments ({error}). Change them.") from error
    _check(samples.x, samples.y, source.spec)
    if samples.test_x is not None and samples.test_y is not None:
        _check(samples.test_x, samples.test_y, source.spec)
    entries: dict[str, dict[str, Any]] = {}
    for name, (x, y) in _split(samples, config, source).items():
        x = _resize(x, spec.sample_shape) if spec.is_image else x
        if name == "train":
            mean, std = _statistics(x, is_image=spec.is_image)
        entries[name] = {axis: _save(folder / f"{name}_{axis}.npy", array) for axis, array in (("x", x), ("y", y))}
    counts = {name: entry["x"]["shape"][0] for name, entry in entries.items()}
    spec = dataclasses.replace(spec, mean=tuple(mean), std=tuple(std), counts=counts, sha256=digest_of(entries))
    manifest = {"identity": identity, "spec": spec.to_json(), "splits": entries}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": digest_of(manifest)}, indent=1))


def _fingerprint(files: list[Path]) -> str:
    """Return a digest of the files' names, sizes and times: a cache made from others must not be used for them.

    The time of change is among them, which a copy that keeps the time of modification cannot keep.
    """
    stats = [(f.name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for f in files for s in [f.stat()]]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def _check(x: Array, y: Array, spec: DataSpec) -> None:
    """Raise UserError for samples that no model can learn from: other shapes than promised, NaN, labels of no class."""
    problems = []
    if x.shape[1:] != spec.sample_shape or len(x) != len(y) or not len(x):
        problems.append(f"has inputs {x.shape} and targets {y.shape}, not (N, {', '.join(map(str, spec.sample_shape))}) and N")
    for name, values in (("inputs", x), ("targets", y)):
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            bad = int(np.argwhere(~np.isfinite(values).reshape(len(values), -1).all(1))[0, 0])
            problems.append(f"has {name} that are not finite, first in sample {bad}")
    if wrong := task(spec.task).wrong_targets(y, len(spec.classes)):
        problems.append(wrong)
    if problems:
        raise UserError(f"dataset={spec.name} {'; it '.join(problems)}. Mend the data, or choose another --dataset.")


def _split(samples: Samples, config: RunConfig, source: Source) -> dict[str, tuple[Array, Array]]:
    """Cut the samples into train, val and test: val may be empty, and test is there if the data has one, or by its share."""
    from sklearn.model_selection import train_test_split

    x, y, test_x, test_y = samples[:4]
    val, test = (
        own if asked == "auto" else asked
        for own, asked in ((source.val_fraction, config.val_split), (source.test_fraction, config.test_split))
    )
    num_val, num_test = round(len(x) * val), round(len(x) * test)

    def cut(x: Array, y: Array, size: int, part: str) -> list[Array]:
        _refuse_if_too_few(y, size, part, config, source.spec)
        strata = y if task(source.spec.task).has_strata else None
        rest_x, part_x, rest_y, part_y = train_test_split(x, y, test_size=size, random_state=config.split_seed, stratify=strata)
        return [rest_x, rest_y, part_x, part_y]

    val_x, val_y = x[:0], y[:0]
    if test_x is None and test:
        x, y, test_x, test_y = cut(x, y, num_test, "test")
    if val:
        x, y, val_x, val_y = cut(x, y, num_val, "validation")
    splits = {"train": (x, y), "val": (val_x, val_y)}
    return splits if test_x is None or test_y is None else splits | {"test": (test_x, test_y)}


def _refuse_if_too_few(y: Array, size: int, part: str, config: RunConfig, spec: DataSpec) -> None:
    """Raise UserError where `size` of the samples cannot be held out, each class having its share of them."""
    labels = y if task(spec.task).has_strata else np.zeros(len(y), int)
    classes, counts = np.unique(labels, return_counts=True)
    if min(size, len(y) - size) >= len(classes) and counts.min() > 1:
        return
    needs = ""
    if spec.classes:
        rare = [spec.classes[k] for k, count in zip(classes, counts, strict=True) if count == 1]
        needs = f" with {len(classes)} classes" + (f" (a single sample of {', '.join(rare[:5])})" if rare else "")
        needs += ". It takes two samples of each class, and a place for each in both parts"
    raise UserError(
        f"dataset={config.dataset} is too small to hold samples out: {size} of {len(y)} would be for {part}{needs}. Add "
        "samples, or train on every one: --val_split 0 --test_split 0."
    )


def _resize(images: Array, shape: tuple[int, ...]) -> Array:
    """Resize uint8 images (N, C, H, W) to `shape` = (C, H', W'), bilinear with antialiasing."""
    if images.shape[1:] == shape or not len(images):
        return images.reshape(-1, *shape)
    import torch
    from torch.nn.functional import interpolate

    resized = [
        interpolate(chunk.float(), size=shape[1:], mode="bilinear", antialias=True).round().clamp(*IMAGE_RANGE).byte()
        for chunk in torch.from_numpy(images).split(4096)
    ]
    return torch.cat(resized).numpy()


def _statistics(x: Array, *, is_image: bool) -> tuple[list[float], list[float]]:
    """Return mean and deviation of each channel (images) or feature (vectors), summed in float64."""
    axes = (0, 2, 3) if is_image else (0,)
    if is_image:  # from counts of the 256 values: exact, and no float copy of the whole split
        values = np.arange(256, dtype=np.float64)
        counts = [np.bincount(x[:, c].ravel(), minlength=256) for c in range(x.shape[1])]
        mean = [float(c @ values / c.sum()) for c in counts]
        return mean, [float(np.sqrt(c @ (values - m) ** 2 / c.sum())) for c, m in zip(counts, mean, strict=True)]
    return x.mean(axes, dtype=np.float64).tolist(), x.std(axes, dtype=np.float64).tolist()


def _save(path: Path, array: Array) -> dict[str, Any]:
    with path.open("wb") as file:
        array = np.ascontiguousarray(array)
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.data.cast("B") if array.size else b"")  # np.save would not say why a disk takes no more
        file.flush()
        os.fsync(file.fileno())
    return {"file": path.name, "dtype": str(array.dtype), "shape": list(array.shape), "sha256": sha256(path)}
