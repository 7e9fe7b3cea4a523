"""DataSpec: what the samples of a data set are. Everything above `pipeline/data/` asks it, and no registry."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pipeline.task import task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

IMAGE_RANGE = (0, 255)
SPLITS = ("train", "val", "test")
COLUMN_KINDS = ("number", "boolean", "date", "category")
_NONE = ("", "nan", "None", "<NA>")  # what pandas' missing texts become on their way through numpy, MLflow and onnxruntime
_OUTPUTS = ("logits", "probabilities", "prediction", "features")  # names that an exported graph has given away
_PLACE = ("data_dir", "seed")  # what a loader is always given


class Placed(Protocol):
    """What takes samples by their place, in any order and from several threads: an array, or a file."""

    def __setitem__(self, place: int, sample: NDArray[np.uint8], /) -> None: ...


class Images(Protocol):
    """Samples that are not in memory: rows (N, C, H, W) uint8 that are decoded where they are wanted."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def names(self) -> Sequence[str]: ...
    def __len__(self) -> int: ...
    def fill(self, out: Placed, rows: Array) -> None:
        """Have `out[i]` be row `rows[i]`. Raises UserError with the names of all files that cannot be read."""
        ...


class Shards(Protocol):
    """Samples that were prepared before, and lie in a folder or a bucket as their `index` says."""

    @property
    def address(self) -> str: ...
    @property
    def index(self) -> Mapping[str, Any]: ...
    def fetch(self, entry: Mapping[str, Any], path: Path) -> Path: ...
    def arrays(self, folder: Path, split: str, shape: tuple[int, ...]) -> Iterator[NDArray[Any]]: ...


class Texts(NamedTuple):
    """A column of text (N,): texts, of which each is there once, and for each row the place of its own among them, int64."""

    found: list[str]
    codes: NDArray[np.int64]

    def of(self, rows: Array) -> Texts:
        """Return the column of these rows alone; a text may then be of none."""
        return Texts(self.found, self.codes[rows])

    def array(self) -> NDArray[np.object_]:
        """Return (N,) object (str); equal texts are one object."""
        import numpy as np

        return np.array([*self.found, None], object)[self.codes]


class Samples(NamedTuple):
    """All samples: images uint8 (N, C, H, W) or vectors float32 (N, D); labels int64 (N,) or values float32 (N, T).

    `split` has the split of each sample where the data says it, one of `SPLITS`; `groups` a number for each, and samples of one
    group never lie in two splits. `raw` has the columns of a table, float64 (N,) or text, and `x` then is (N, 0): it is encoded
    by what the training samples are. `skipped` names what was left out as it cannot be read.
    """

    x: Array | Images
    y: Array
    split: Array | None = None
    groups: Array | None = None
    raw: Mapping[str, Array | Texts] | None = None
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Column:
    """One raw column. A number, boolean or date becomes (x - center) / scale, with `fill` for x where it is missing.

    A category becomes one slot for each of `categories`, one for all others (the rare and the unseen ones), and, with
    `has_missing`, one for none. The others get a slot that says "missing" if `has_missing`: some were, in the training rows.
    """

    name: str
    kind: str
    center: float = 0.0
    scale: float = 1.0
    fill: float = 0.0
    has_missing: bool = False
    categories: tuple[str, ...] = ()

    @property
    def is_category(self) -> bool:
        return self.kind == "category"

    @property
    def missing_texts(self) -> tuple[str, ...]:
        """The texts that take the slot of a missing category: "", and pandas' None and NaN as text, if they are no category."""
        return tuple(text for text in _NONE if text not in self.categories) if self.has_missing else ()

    @property
    def width(self) -> int:
        """The number of columns of the encoded matrix that are this one's."""
        return 1 + self.has_missing + len(self.categories)

    @property
    def input_name(self) -> str:
        """The name of the exported file's input: the column's own, unless an output is called so."""
        return f"column:{self.name}" if self.name in _OUTPUTS else self.name

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The names of its columns of the encoded matrix: `age`, `age (missing)`, `city = Rome`, `city (other)`."""
        missing = (f"{self.name} (missing)",) if self.has_missing else ()
        if self.is_category:
            return (*(f"{self.name} = {category}" for category in self.categories), f"{self.name} (other)", *missing)
        return (self.name, *missing)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"categories": list(self.categories)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Column:
        """Return what `to_json` wrote. Raises TypeError or ValueError for anything else."""
        column = cls(**dict(values) | {"categories": tuple(values["categories"])})
        numbers = (column.center, column.scale, column.fill)
        if column.kind not in COLUMN_KINDS or not all(isinstance(text, str) for text in (column.name, *column.categories)):
            raise ValueError(f"the column {column.name} is described by values of wrong types")
        if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers) or not column.scale > 0:
            raise ValueError(f"the column {column.name} is described by values of wrong types")
        return column


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How a data set that is given by its path is to be read; the fields are flags of the same name, `args` is JSON."""

    task: str = ""
    target: str = ""
    ignore_columns: str = ""
    group_column: str = ""
    split_column: str = ""
    skip_bad: bool = False
    image_size: int = 0
    args: str = "{}"


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """What the samples are. Statistics, counts and hash are there once they were prepared.

    `sample_shape` is that of one sample as a model takes it: (D,) float32, or (C, H, W) uint8 in `value_range`. `targets` names
    the values of a regression or the labels of a multilabel task, `columns` are those of a table, which are encoded into its D
    features. `any_size` says that images of any height and width are resized to `sample_shape`, by an exported file too.
    `mean` and `std` are of the training samples, one for each channel or feature, `target_mean` and `target_std` of the values
    that own data has as targets of a regression; `counts` has the number of samples of each
    split, `sha256` covers all of them.
    """

    name: str
    task: str
    sample_shape: tuple[int, ...]
    dtype: str = "float32"
    value_range: tuple[int, int] | None = None
    classes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    any_size: bool = False
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_std: tuple[float, ...] = ()
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
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
        return values | {"counts": dict(self.counts), "columns": [column.to_json() for column in self.columns]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> DataSpec:
        """Return what `to_json` wrote. Raises TypeError or ValueError for anything else."""
        found: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        spec = cls(**(found | {"columns": tuple(map(Column.from_json, found.get("columns", ())))}))
        texts = (spec.name, spec.task, spec.dtype, spec.sha256)
        if not all(isinstance(text, str) for text in texts) or not all(isinstance(n, int) for n in spec.sample_shape):
            raise ValueError("its data is described by values of wrong types")
        task(spec.task)
        return spec


@dataclass(frozen=True, kw_only=True)
class Source:
    """A data set that was not prepared yet.

    `load` returns all `Samples`; it is called with `data_dir` and `seed`, and its other arguments are those of `--data_args`.
    The fractions are shares of all samples that have no split of their own; a data set with a test set gives the validation
    share of its training samples. `files` returns the raw files, fetching into `data_dir` what is `missing`. `is_random` says
    that chance makes it, `is_own` that it is given by its path, `has_target` that one of its columns is what is predicted.
    `notes` are told before it is prepared. `digest` stands for what does not lie in the files. `shards` are those in which it
    was prepared already. `is_remote` says that it lies in a bucket as it was collected: only shards are made of it.
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
    is_own: bool = False
    has_target: bool = False
    files: Callable[[Path], list[Path]] | None = None
    missing: Callable[[Path], list[Path]] | None = None
    notes: tuple[str, ...] = ()
    digest: str = ""
    shards: Shards | None = None
    is_remote: bool = False

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """What `--data_args` may give, by name."""
        return {name: p for name, p in inspect.signature(self.load, eval_str=True).parameters.items() if name not in _PLACE}
