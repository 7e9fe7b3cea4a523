"""From a data set to typed tensors on disk: split, resized, measured, hashed; written once, then memory-mapped by all.

A prepared folder appears under its final name only when it is complete, so a reader never meets half of one; a lock keeps
two processes from doing the same work, and is freed by the system when its holder is killed. Images that are decoded one by
one are written into `NAME.part`, where a process that comes after one that was killed goes on.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import machine, sources
from pipeline.config import RunConfig
from pipeline.data import forget, options_of, source_of, tensors
from pipeline.data.columns import fit
from pipeline.data.encoding import Packed, pack, parts_of
from pipeline.data.spec import DataSpec, Samples, Shards, Texts
from pipeline.data.split import split
from pipeline.errors import UserError
from pipeline.files import digest_of, locked, read_json, sha256
from pipeline.output import say
from pipeline.task import task

Array = NDArray[np.generic]

RAW = "raw.feather"  # of a table: the columns of the samples on which a model is evaluated
_LIBRARIES = ("numpy", "scikit-learn", "torchvision", "pillow", "pyarrow")  # that tensors come from
_held: dict[Path, int] = {}  # open files, by their paths
_FORGOTTEN = 7 * 24 * 3600  # s after which a folder that a killed process has left is removed


def prepare(config: RunConfig) -> Path:
    """Return the folder with the prepared tensors and `manifest.json`, making it if it is not there or is damaged.

    Raises UserError where the data cannot be had, the cache cannot be written, or other data lies there.
    """
    folder, identity = locate(config)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        with locked(lock_of(folder)):
            _hold(folder)
            _refuse_other_data(folder, identity)
            if not is_intact(folder):
                _make(folder, config, identity)
            os.utime(folder)  # of what was used longest ago, `cache gc` makes room
    except OSError as error:
        raise UserError(
            f"cache_dir={config.cache_dir} cannot be used ({error.strerror or error}). Make room, or give a folder that can be "
            "written with --cache_dir."
        ) from error
    return folder


def lock_of(folder: Path) -> Path:
    """Return the lock of who prepares a folder."""
    return folder.with_name(f"{folder.name}.lock")


def use_of(folder: Path) -> Path:
    """Return the lock that is shared by all who read a folder, to their end."""
    return folder.with_name(f"{folder.name}.use.lock")


def _hold(folder: Path) -> None:
    """Have a folder stay as long as this process lives."""
    path = use_of(folder)
    if path not in _held:
        _held[path] = os.open(path, os.O_RDONLY | os.O_CREAT, 0o644)
        fcntl.lockf(_held[path], fcntl.LOCK_SH)


def prepared_folder(config: RunConfig) -> Path:
    """Return where `prepare` has laid the tensors, without looking at them."""
    return locate(config)[0]


def locate(config: RunConfig) -> tuple[Path, dict[str, Any]]:
    """Return the folder for all that shapes the tensors, and these facts themselves.

    Raises UserError for raw data in a bucket, of which no tensors are made.
    """
    source = source_of(config)
    if source.is_remote:
        raise UserError(
            f"dataset={config.dataset} holds raw data and no shards. Make these first, and train on them: prepare --dataset "
            f"{config.dataset} --shards 256MB --output_dir PLACE."
        )
    identity = identity_of(config)
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
    try:
        cache = config.cache_dir.expanduser()  # the default; a flag was expanded when it was read
    except RuntimeError as error:
        raise UserError(f"cache_dir={config.cache_dir}: this user has no home folder. Give a folder, or set HOME.") from error
    return cache / f"{source.spec.name}-{key}", identity


def identity_of(config: RunConfig) -> dict[str, Any]:
    """Return all that shapes the samples."""
    source = source_of(config)
    files = source.files(config.data_dir) if source.files else []
    return {
        "dataset": source.spec.name, "val_split": config.val_split, "test_split": config.test_split,
        "split_seed": config.split_seed, "raw": source.digest + _fingerprint(files), **vars(options_of(vars(config))),
        "code": sources.digests("pipeline.data.prepare"), "versions": machine.versions(*_LIBRARIES),
    }  # fmt: skip


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a prepared folder: what it was made from, its files with their hashes, and its DataSpec."""
    return read_json(folder / "manifest.json")


def read_spec(folder: Path) -> DataSpec:
    """Return the DataSpec of a prepared folder, with statistics, counts and hash."""
    return DataSpec.from_json(read_manifest(folder)["spec"])


def read_raw(folder: Path) -> dict[str, Array]:
    """Return the columns (N,) of the samples on which a model is evaluated, float64 or text, as the table had them."""
    from pyarrow import feather

    table = feather.read_table(str(folder / RAW), memory_map=False)
    return {name: table[name].to_numpy() for name in table.column_names}


def split_digest(folder: Path, name: str) -> str:
    """Return a SHA-256 of one split of a prepared folder: samples, targets and their names, whatever the other splits are.

    The samples of a table are its raw columns, which are kept of the split that a model is evaluated on: how they are encoded
    hangs on the training samples.
    """
    manifest = read_manifest(folder)
    entries, spec = manifest["splits"][name], manifest["spec"]
    samples = [each["sha256"] for each in manifest["raw"] or entries["x"].get("shards", [entries["x"]])]
    return digest_of({"samples": samples, "targets": entries["y"]["sha256"], "names": [spec["classes"], spec["targets"]]})


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
        parts = [part for split in manifest["splits"].values() for part in split.values()]
        files = {part["file"]: part["sha256"] for part in (*parts, *manifest["raw"]) if "file" in part}
        return all(sha256(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing, or damaged beyond reading
        return False


def _sweep(cache_dir: Path) -> None:
    """Remove what killed processes have left of data sets that nobody prepares now; images half decoded are kept for a week."""
    for leftover in cache_dir.glob("*.part"):
        if not any(leftover.glob("*.mark")) or time.time() - leftover.stat().st_mtime > _FORGOTTEN:
            with suppress(OSError), locked(lock_of(leftover.with_suffix("")), wait=0):
                shutil.rmtree(leftover)


def _make(folder: Path, config: RunConfig, identity: dict[str, Any]) -> None:
    say(f"preparing {config.dataset} in {folder} ...")
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(exist_ok=True)
    try:
        _fill(part, config, identity)
        if folder.exists():  # damaged: `is_intact` said so
            shutil.rmtree(folder)
        part.rename(folder)
    except Exception:  # but a signal, after which it can go on
        shutil.rmtree(part, ignore_errors=True)
        forget()  # an image may have been written anew since it was looked at
        raise


def _fill(folder: Path, config: RunConfig, identity: dict[str, Any]) -> None:
    """Write the arrays of a data set and their manifest into a folder."""
    source = source_of(config)
    if source.shards:
        return _fill_from_shards(folder, source.shards, identity)
    spec, samples = load(config)
    rows = split(samples, config, source)
    _refuse_if_too_large(folder, sum(map(len, rows.values())), spec)
    manifest: dict[str, Any] = {"identity": identity, "skipped": list(samples.skipped), "raw": []}
    if samples.raw is not None:
        (folder / RAW).write_bytes(raw_bytes(samples.raw, rows.get("test", rows["train"])))
        manifest["raw"] = [{"file": RAW, "sha256": sha256(folder / RAW)}]
    spec, packed = fitted(spec, samples, rows["train"])
    entries: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(1) as behind:
        for name, of_split in rows.items():
            path = folder / f"{name}_x.npy"
            if packed:
                shape = (len(of_split), *spec.sample_shape)
                entry = tensors.save_parts(path, shape, "float32", parts_of(packed, of_split))
            elif isinstance(samples.x, np.ndarray):
                parts = tensors.shaped(samples.x, of_split, spec.sample_shape, as_exported=spec.any_size)
                entry = tensors.save_parts(path, (len(of_split), *spec.sample_shape), str(samples.x.dtype), parts)
                if spec.any_size:
                    manifest.setdefault("rows", {})[name] = of_split.tolist()
            else:
                entry = tensors.decode(path, samples.x, of_split)
                manifest.setdefault("names", {})[name] = [samples.x.names[row] for row in of_split]
            entries[name] = {"x": entry, "y": tensors.save(folder / f"{name}_y.npy", samples.y[of_split])}
            if name == "train":  # measured while the others are written
                train = np.load(path, mmap_mode="r")
                measured = behind.submit(tensors.statistics, train, is_image=spec.is_image)
    mean, std = measured.result()
    counts = {name: len(of_split) for name, of_split in rows.items()}
    spec = dataclasses.replace(spec, mean=tuple(mean), std=tuple(std), counts=counts, sha256=digest_of(entries))
    if source.is_own:
        spec = with_targets(spec, samples.y[rows["train"]])
    manifest |= {"spec": spec.to_json(), "splits": entries}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": digest_of(manifest)}, indent=1))


def load(config: RunConfig) -> tuple[DataSpec, Samples]:
    """Return all samples of a data set, checked, and what they are to become. Raises UserError."""
    source = source_of(config)
    try:
        samples = source.load(data_dir=config.data_dir, seed=config.split_seed, **config.data_args)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"data_args: {config.dataset} cannot be made with these arguments ({error}). Change them.") from error
    check(samples, source.spec)
    spec = source.spec.resized(config.image_size)
    if source.is_own and spec.sample_shape != source.spec.sample_shape:  # images: an exported file takes them as they are, too
        spec = dataclasses.replace(spec, any_size=True)
    return spec, samples


def fitted(spec: DataSpec, samples: Samples, train: NDArray[np.int64]) -> tuple[DataSpec, Packed | None]:
    """Return what a table's samples are as features, by what its training rows are, and these features; None for other data."""
    if samples.raw is None:
        return spec, None
    columns = fit(samples.raw, spec.columns, train)
    width = sum(each.width for each in columns)
    return dataclasses.replace(spec, columns=columns, sample_shape=(width,)), pack(samples.raw, columns)


def with_targets(spec: DataSpec, y: Array) -> DataSpec:
    """Return a spec of own data with the statistics of its training targets y, where these are values."""
    if task(spec.task).has_decisions:
        return spec
    center, unit = tensors.statistics(y, is_image=False)
    return dataclasses.replace(spec, target_mean=tuple(center), target_std=tuple(each or 1.0 for each in unit))


def _fill_from_shards(folder: Path, shards: Shards, identity: dict[str, Any]) -> None:
    """Write all but the training samples, which are read from their shards. Raises UserError for a shard that cannot be had."""
    index, entries = shards.index, {}
    spec = DataSpec.from_json(index["spec"])
    _refuse_if_too_large(folder, sum(n for name, n in spec.counts.items() if name != "train"), spec)
    for name, parts in index["splits"].items():
        shape = (spec.counts[name], *spec.sample_shape)
        if name == "train":
            x: dict[str, Any] = {"shards": parts["x"], "place": shards.address, "shape": [*shape], "dtype": spec.dtype}
        else:
            x = tensors.save_parts(folder / f"{name}_x.npy", shape, spec.dtype, shards.arrays(folder, name, spec.sample_shape))
        y = shards.fetch(parts["y"], folder / f"{name}_y.npy")
        entries[name] = {"x": x, "y": {"file": y.name, "sha256": parts["y"]["sha256"]}}
    raw = [index["raw"]] if "raw" in index else []
    for each in raw:
        shards.fetch(each, folder / each["file"])
    manifest = {"identity": identity, "skipped": index["skipped"], "spec": index["spec"], "splits": entries, "raw": raw}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": digest_of(manifest)}, indent=1))


def raw_bytes(raw: Mapping[str, Array | Texts], rows: NDArray[np.int64]) -> bytes:
    """Return the file of the columns as they were, of the samples on which a model is evaluated."""
    import pyarrow as pa
    from pyarrow import feather

    def picked(values: Array | Texts) -> pa.Array:
        if not isinstance(values, Texts):
            return pa.array(values[rows])
        return pa.array(values.found, pa.string()).take(pa.array(values.codes[rows]))

    sink = pa.BufferOutputStream()
    feather.write_feather(pa.table({name: picked(values) for name, values in raw.items()}), sink)
    return bytes(sink.getvalue())


def _refuse_if_too_large(folder: Path, count: int, spec: DataSpec) -> None:
    """Raise UserError where the disk has no room for so many samples."""
    needed = count * math.prod(spec.sample_shape) * np.dtype(spec.dtype).itemsize
    free = shutil.disk_usage(folder).free + sum(path.stat().st_size for path in folder.iterdir())
    if needed > free:
        raise UserError(
            f"cache_dir={folder.parent}: its disk has {free / 1e6:,.0f} MB left, and {count:,} samples of "
            f"{' x '.join(map(str, spec.sample_shape))} need {needed / 1e6:,.0f} MB. Make room, give another --cache_dir, or "
            "a smaller --image_size."
        )


def _fingerprint(files: list[Path]) -> str:
    """Return a digest of the files' names, sizes and times: a cache made from others must not be used for them.

    The time of change is among them, which a copy that keeps the time of modification cannot keep. Where the files lie is not.
    """
    root = os.path.commonpath([f.parent for f in files]) if files else ""
    stats = [(os.path.relpath(f, root), s.st_size, s.st_mtime_ns, s.st_ctime_ns) for f in files for s in [f.stat()]]
    return hashlib.sha256(repr(stats).encode()).hexdigest()


def check(samples: Samples, spec: DataSpec) -> None:
    """Raise UserError for samples that no model can learn from: other shapes than promised, NaN, labels of no class."""
    x, y = samples.x, samples.y
    problems = []
    if samples.raw is None and (x.shape[1:] != spec.sample_shape or len(x) != len(y) or not len(x)):
        problems.append(f"has inputs {x.shape} and targets {y.shape}, not (N, {', '.join(map(str, spec.sample_shape))}) and N")
    for name, values in (("inputs", x), ("targets", y)):
        if isinstance(values, np.ndarray) and values.dtype.kind == "f" and not np.isfinite(values).all():
            bad = int(np.argwhere(~np.isfinite(values).reshape(len(values), -1).all(1))[0, 0])
            problems.append(f"has {name} that are not finite, first in sample {bad}")
    if wrong := task(spec.task).wrong_targets(y, len(spec.classes)):
        problems.append(wrong)
    if problems:
        raise UserError(f"dataset={spec.name} {'; it '.join(problems)}. Mend the data, or choose another --dataset.")
