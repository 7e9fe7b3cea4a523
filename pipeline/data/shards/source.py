"""A folder or a bucket of shards as a data set: what it holds stands in its index."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pipeline.data.shards.places import Place
from pipeline.data.shards.store import Store, fetch, remove
from pipeline.data.spec import DataOptions, DataSpec, Samples, Source
from pipeline.errors import UserError
from pipeline.files import digest_of

INDEX = "index.json"


@dataclass(frozen=True)
class Shards:
    """Shards that lie in a place, as their `index` says."""

    place: Place
    index: Mapping[str, Any]

    @property
    def address(self) -> str:
        return self.place.address

    def fetch(self, entry: Mapping[str, Any], path: Path) -> Path:
        """Fetch a file that is no shard. Raises Failure where it cannot be had."""
        return fetch(self.place, entry, path)

    def arrays(self, folder: Path, split: str, shape: tuple[int, ...]) -> Iterator[NDArray[Any]]:
        """Yield the samples of a split, shard by shard; fetched ones pass through `folder`, and none stays there."""
        store = Store(self.place, self.index["splits"][split]["x"], shape, folder)
        for k, entry in enumerate(store.entries):
            yield store.open(k)
            if not self.place.local:
                remove(folder / str(entry["file"]))
                (folder / f".{entry['file']}.lock").unlink(missing_ok=True)


def is_place(address: str) -> bool:
    """Tell whether shards lie at a path or an address. Raises UserError for an address that cannot be asked."""
    place = Place(address)
    try:
        return (place.local / INDEX).is_file() if place.local else place.size(INDEX) >= 0
    except UserError as error:
        raise UserError(f"dataset: {error}") from error
    except OSError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"dataset={address} cannot be read ({reason}).") from error


def source(address: str, options: DataOptions) -> Source:
    """Return the data set. Raises UserError where there is no index that can be read, or flags would have other samples."""
    place = Place(address)
    try:
        index = json.loads(place.read(INDEX))
        if index.pop("sha256") != digest_of(index):
            raise ValueError("its SHA-256 differs")
        spec = DataSpec.from_json(index["spec"])
        num_bytes = sum(int(e["bytes"]) for split in index["splits"].values() for e in split["x"])
        number = sum(len(split["x"]) for split in index["splits"].values())
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"dataset={address}: its {INDEX} cannot be read ({reason}).") from error
    problems = [
        f"{flag}={value} has no effect on dataset={address}, whose shards were prepared. Leave --{flag} out."
        for flag in ("target", "ignore_columns", "group_column", "split_column", "task", "skip_bad")
        if (value := getattr(options, flag))
    ]
    side = spec.sample_shape[-1]
    if spec.is_image and options.image_size not in (0, side):
        problems.append(
            f"dataset={address} holds images of {side} x {side}, and image_size={options.image_size} is wanted. Write shards "
            f"with --image_size {options.image_size}, or choose a model that takes these."
        )
    if problems:
        raise UserError(*problems)
    plain = dataclasses.replace(spec, mean=(), std=(), target_mean=(), target_std=(), counts={}, sha256="")

    def load(data_dir: Path, seed: int) -> Samples:
        raise UserError(f"dataset={address} is prepared already. Use the data that its shards were made of.")

    return Source(
        summary=f"{number} shards of {num_bytes / 1e6:,.1f} MB", spec=plain, num_train=spec.counts["train"], load=load,
        val_fraction=0.0, test_fraction=0.0, has_val_set=bool(spec.counts.get("val")), has_test_set="test" in spec.counts,
        is_own=True, digest=digest_of(index | {"place": address}), shards=Shards(place, index),
        notes=(f"{number} shards of {num_bytes / 1e6:,.1f} MB in {address}",),
    )  # fmt: skip
