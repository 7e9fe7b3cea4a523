"""`prepare --shards`: a data set to shards in a folder or a bucket, by as many processes as there are, each its part.

Which rows a shard has hangs on the data alone, so any number of processes writes the same files. A shard counts as soon as the
mark beside it says what it holds, which is written after it: a process that comes after one that was killed goes on. The
process of rank 0 writes the index when all marks are there, from these; who reads shards begins with the index.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import RunConfig
from pipeline.data import prepare, source_of, tensors
from pipeline.data.encoding import Packed, spread
from pipeline.data.shards import table
from pipeline.data.shards.places import Place
from pipeline.data.shards.source import INDEX
from pipeline.data.spec import DataSpec, Samples
from pipeline.data.split import split
from pipeline.errors import Failure, UserError
from pipeline.files import digest_of, written_as
from pipeline.output import say

Array = NDArray[Any]
Rows = NDArray[np.int64]

_OURS = re.compile(r"index\.json|raw\.feather|(train|val|test)(_y\.npy|-\d{5,}\.(arrow|json))")  # what is written here
_POLL = 0.2  # s between two looks for the marks of other processes


def write(
    config: RunConfig, place: Place, *, num_bytes: int, rank: int = 0, world_size: int = 1, patience: float = 600.0
) -> None:
    """Write the shards of `rank`, and on rank 0 the index, of samples of about `num_bytes` a shard.

    `patience` is how long rank 0 waits, in seconds, for another process to write one more shard. Raises UserError for data that
    cannot be had, or other shards that lie there; Failure where shards of other processes stay away.
    """
    whole = prepare.identity_of(config) | {"shard_bytes": num_bytes}
    key = digest_of(whole)
    _refuse_others(place, key)
    source = source_of(config)
    if source.shards:
        raise UserError(f"dataset={config.dataset} is shards already. Give the data that they were made of.")
    spec, samples = prepare.load(config)
    rows = {name: _mixed(of_split, config.split_seed) for name, of_split in split(samples, config, source).items()}
    spec, packed = prepare.fitted(spec, samples, rows["train"])
    per_shard = max(1, num_bytes // (math.prod(spec.sample_shape) * np.dtype(spec.dtype).itemsize))
    plan = [(name, k, part) for name, of_split in rows.items() for k, part in enumerate(_cut(of_split, per_shard))]
    mine = [each for number, each in enumerate(plan) if number % world_size == rank]
    say(f"writing {len(mine)} of {len(plan)} shards of up to {per_shard:,} samples to {place.address} ...")
    for name, k, part in mine:
        make = partial(_samples, samples, packed, part, spec)
        _write_shard(place, f"{name}-{k:05d}", key, make, samples.y[part], part, is_image=spec.is_image)
    if rank:
        return
    marks = _marks(place, [f"{name}-{k:05d}" for name, k, _ in plan], key, patience=patience)
    _write_index(place, config, spec, samples, packed, rows, marks, identity=whole)


def _mixed(rows: Rows, seed: int) -> Rows:
    """Return the rows of a split in another order where they come as they lie: a shard would hold one class."""
    is_sorted = len(rows) > 1 and bool((np.diff(rows) > 0).all())
    return np.random.default_rng(seed).permutation(rows) if is_sorted else rows


def _cut(rows: Rows, size: int) -> list[Rows]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _refuse_others(place: Place, key: str) -> None:
    """Raise UserError where shards of other data or arguments lie in a place, or, on this machine, anything else."""
    if place.local and place.local.is_dir():
        strange = sorted(p.name for p in place.local.iterdir() if not _OURS.fullmatch(p.name) and not written_as(p.name))
        if strange:
            raise UserError(
                f"output_dir={place.address} holds something else ({', '.join(strange[:3])}). Give a folder that is empty, "
                "that does not exist yet, or that holds these shards."
            )
    try:
        found = json.loads(place.read(INDEX))
        other = digest_of(found["identity"]) != key
    except FileNotFoundError:
        return
    except UserError as error:
        raise UserError(f"output_dir: {error}") from error
    except (ValueError, KeyError, TypeError):
        other = True
    except OSError as error:
        raise UserError(f"output_dir={place.address} cannot be read ({_reason(error)}).") from error
    if other:
        raise UserError(f"output_dir={place.address} holds other shards. Give another place, or take those away.")


def _samples(samples: Samples, packed: Packed | None, rows: Rows, spec: DataSpec) -> Array:
    """Return these rows as samples (n, *sample_shape)."""
    if packed:
        matrix = np.empty((len(rows), packed.width), np.float32)
        spread(packed, rows, matrix)
        return matrix
    if isinstance(samples.x, np.ndarray):
        parts = [*tensors.shaped(samples.x, rows, spec.sample_shape, as_exported=spec.any_size)]
        return np.concatenate(parts)
    decoded = np.empty((len(rows), *spec.sample_shape), np.uint8)
    samples.x.fill(decoded, rows)
    return decoded


def _write_shard(
    place: Place, name: str, key: str, make: Callable[[], Array], y: Array, rows: Rows, *, is_image: bool
) -> None:  # fmt: skip
    """Write a shard and its mark, unless they are there."""
    try:
        mark = json.loads(place.read(f"{name}.json"))
        if mark["key"] == key and place.size(f"{name}.arrow") == mark["bytes"]:
            return
    except (OSError, ValueError, KeyError, TypeError):
        pass
    x = make()
    content = table.to_bytes(x, y, rows)
    mark = {
        "key": key, "file": f"{name}.arrow", "num_samples": len(rows), "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(), "histogram": tensors.histogram(x).tolist() if is_image else [],
    }  # fmt: skip
    try:
        place.write(f"{name}.arrow", content)
        place.write(f"{name}.json", json.dumps(mark).encode())
    except OSError as error:
        raise Failure(f"output_dir={place.address}: {name}.arrow cannot be written ({_reason(error)}).") from error


def _marks(place: Place, names: list[str], key: str, *, patience: float) -> dict[str, dict[str, Any]]:
    """Return the marks of all shards, waiting for those of other processes. Raises Failure where they stay away."""
    found: dict[str, dict[str, Any]] = {}
    deadline, told = time.monotonic() + patience, False
    while missing := [name for name in names if name not in found]:
        before = len(found)
        for name in missing:
            try:
                mark = json.loads(place.read(f"{name}.json"))
                if mark["key"] == key:
                    found[name] = mark
            except (OSError, ValueError, KeyError, TypeError):
                continue
        if len(found) > before:
            deadline = time.monotonic() + patience
        elif time.monotonic() > deadline:
            raise Failure(
                f"output_dir={place.address}: {len(missing)} shards of other processes did not come ({missing[0]} first). "
                "Start the same command again: what is there is kept."
            )
        elif not told:
            say(f"waiting for {len(missing)} shards of other processes ...")
            told = True
        if len(found) < len(names):
            time.sleep(_POLL)
    return found


def _write_index(
    place: Place, config: RunConfig, spec: DataSpec, samples: Samples, packed: Packed | None, rows: Mapping[str, Rows],
    marks: Mapping[str, dict[str, Any]], *, identity: dict[str, Any],
) -> None:  # fmt: skip
    """Write targets, raw columns and the index, which says of each shard what it holds."""
    extra: dict[str, Any] = {}

    def keep(name: str, content: bytes) -> dict[str, Any]:
        place.write(name, content)
        return {"file": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    splits: dict[str, Any] = {}
    for name, of_split in rows.items():
        shards = [mark for shard, mark in sorted(marks.items()) if shard.rpartition("-")[0] == name]
        entries = [{key: mark[key] for key in ("file", "num_samples", "bytes", "sha256")} for mark in shards]
        splits[name] = {"x": entries, "y": keep(f"{name}_y.npy", tensors.npy(samples.y[of_split]))}
    if samples.raw is not None:
        extra["raw"] = keep(prepare.RAW, prepare.raw_bytes(samples.raw, rows.get("test", rows["train"])))
    if spec.is_image:
        counts = np.sum([mark["histogram"] for shard, mark in marks.items() if shard.startswith("train-")], axis=0)
        mean, std = tensors.of_histogram(counts)
    else:
        of_train = _Train(samples, packed, rows["train"], spec)
        mean, std = tensors.statistics(of_train, is_image=False)  # type: ignore[arg-type]
    spec = dataclasses.replace(
        spec, mean=tuple(mean), std=tuple(std), counts={name: len(of_split) for name, of_split in rows.items()},
        sha256=digest_of(splits),
    )  # fmt: skip
    if source_of(config).is_own:
        spec = prepare.with_targets(spec, samples.y[rows["train"]])
    index = {"identity": identity, "spec": spec.to_json(), "splits": splits, **extra, "skipped": list(samples.skipped)}
    place.write(INDEX, json.dumps(index | {"sha256": digest_of(index)}, indent=1).encode())
    total = sum(mark["bytes"] for mark in marks.values())
    say(f"{len(marks)} shards, {total / 1e6:,.1f} MB, and {INDEX} in {place.address}")


class _Train:
    """The training samples of a table or of vectors, a few rows of which are made when they are asked for."""

    def __init__(self, samples: Samples, packed: Packed | None, rows: Rows, spec: DataSpec) -> None:
        self._make = lambda some: _samples(samples, packed, some, spec)
        self._rows, self.shape, self.ndim = rows, (len(rows), *spec.sample_shape), 1 + len(spec.sample_shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: slice) -> Array:
        return self._make(self._rows[place])

    def mean(self, axis: int, dtype: Any) -> Array:
        return np.asarray(self[:].mean(axis, dtype=dtype))

    def std(self, axis: int, dtype: Any) -> Array:
        return np.asarray(self[:].std(axis, dtype=dtype))


def _reason(error: OSError) -> str:
    return (error.strerror or (str(error).splitlines() or [type(error).__name__])[0])[:200]
