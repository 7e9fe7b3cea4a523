"""DataSpec: what the samples of a data set are. Everything above `pipeline/data/` asks it, and no registry."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pipeline.task import task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

IMAGE_RANGE = (0, 255)
_PLACE = ("data_dir", "seed")  # what a loader is always given


class Images(Protocol):
    """Images that are not in memory: `fill` decodes rows[i] into out[i], uint8, and raises UserError naming bad files."""

    shape: tuple[int, ...]  # (N, C, H, W)
    names: Sequence[str]  # relative to the data set's folder

    def __len__(self) -> int: ...

    def fill(self, out: Array, rows: Array) -> None: ...


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The flags that say how own data is read, named as the flags."""

    task: str = ""
    target: str = ""
    ignore_columns: str = ""
    group_column: str = ""
    split_column: str = ""
    skip_bad: bool = False
    image_size: int = 0
    args: tuple[tuple[str, Any], ...] = ()


class Samples(NamedTuple):
    """All samples: images uint8 (N, C, H, W) or vectors float32 (N, D); labels int64 (N,) or values float32 (N, T).

    `test_x` and `test_y` are None where there is no test set of its own.
    """

    x: Any
    y: Array
    test_x: Array | None = None
    test_y: Array | None = None
    split: Array | None = None  # (N,) of "train", "val", "test"
    groups: Array | None = None  # (N,) int64: those of one group never lie in two splits
    skipped: Any = ()  # tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What the samples are. Statistics, counts and hash are there once they were prepared.

    `sample_shape` is that of one sample as a model takes it: (D,) float32, or (C, H, W) uint8 in `value_range`. `targets` names
    the values of a regression or the labels of a multilabel task, `columns` the features of a table, where they have names.
    `mean` and `std` are of the training samples, one for each channel or feature; `counts` has the number of samples of each
    split, `sha256` covers all of them.
    """

    name: str
    task: str
    sample_shape: tuple[int, ...]
    dtype: str = "float32"
    value_range: tuple[int, int] | None = None
    classes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    any_size: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    sha256: str = ""

    @property
    def is_image(self) -> bool:
        return len(self.sample_shape) == 3

    @property
    def num_outputs(self) -> int:
        """The raw scores or values that a model gives for one sample."""
        return task(self.task).num_outputs(len(self.classes), max(1, len(self.targets)))

    def resized(self, side: int) -> DataSpec:
        """Return the same samples with images of `side` x `side` pixels; 0 leaves them as they are."""
        if not side or not self.is_image:
            return self
        return dataclasses.replace(self, sample_shape=(self.sample_shape[0], side, side))

    def to_json(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()} | {"counts": dict(self.counts)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DataSpec:
        """Return what `to_json` wrote. Raises TypeError or ValueError for anything else."""
        found: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        spec = cls(**found)
        texts = (spec.name, spec.task, spec.dtype, spec.sha256)
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(n, int) for n in spec.sample_shape):
            raise ValueError("its data is described by values of wrong types")
        task(spec.task)
        return spec


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set that was not prepared yet.

    `load` returns all `Samples`; it is called with `data_dir` and `seed`, and its other arguments are those of `--data_args`.
    The fractions are shares of all samples; a data set with a test set of its own gives the validation share of its training
    samples. `files` returns the raw files in `data_dir`, fetching what is missing. `is_random` says that chance makes it.
    """

    summary: str
    spec: DataSpec
    num_train: int
    load: Callable[..., Samples]
    val_fraction: float = 0.2
    test_fraction: float = 0.2
    has_val_set: bool = False
    has_test_set: bool = False
    is_random: bool = False
    files: Callable[[Path], list[Path]] | None = None
    notes: tuple[str, ...] = ()

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """What `--data_args` may give, by name."""
        return {name: p for name, p in inspect.signature(self.load, eval_str=True).parameters.items() if name not in _PLACE}
