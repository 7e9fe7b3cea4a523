"""The registry of data sets: what each holds, told without loading it (and without torch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

IMAGE_RANGE = (0, 255)


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """One data set.

    `source` names the function in `pipeline.data.sources` that makes it. `task` is multiclass, binary or regression.
    `sample_shape` is that of one raw sample: (D,) float32, or (C, H, W) uint8 for images, which are resized to what a model
    takes. `test_fraction` and `val_fraction` are shares of all samples; a data set with a test set of its own
    (`has_test_set`) gives the validation share of its training samples. `fields` are the configuration fields that shape it.
    """

    summary: str
    source: str
    task: str
    sample_shape: tuple[int, ...]
    num_train: int
    classes: tuple[str, ...] = ()
    val_fraction: float = 0.2
    test_fraction: float = 0.2
    has_test_set: bool = False
    fields: tuple[str, ...] = ()

    @property
    def is_image(self) -> bool:
        return len(self.sample_shape) == 3

    def is_random(self, *, holdout: bool) -> bool:
        """Tell whether chance makes or splits it, so that `split_seed` matters; `holdout` is whether samples are held out."""
        return holdout or "noise" in self.fields

    @property
    def num_outputs(self) -> int:
        return len(self.classes) if self.task == "multiclass" else 1


_TEN_DIGITS = tuple("0123456789")

DATASETS: Mapping[str, DatasetSpec] = {
    "breast_cancer": DatasetSpec(
        summary="569 tumors, 30 measurements each, malignant or benign (scikit-learn)",
        source="breast_cancer",
        task="binary",
        sample_shape=(30,),
        num_train=569,
        classes=("malignant", "benign"),
    ),
    "digits": DatasetSpec(
        summary="1797 handwritten digits of 8x8 pixels (scikit-learn)",
        source="digits",
        task="multiclass",
        sample_shape=(1, 8, 8),
        num_train=1797,
        classes=_TEN_DIGITS,
    ),
    "moons": DatasetSpec(
        summary="1000 points of two interleaved half circles, with --noise (computed)",
        source="moons",
        task="binary",
        sample_shape=(2,),
        num_train=1000,
        classes=("outer", "inner"),
        val_fraction=0.16,
        fields=("noise",),
    ),
    "sine": DatasetSpec(
        summary="sin(x) at 2000 points evenly spaced in [-pi, pi] (computed)",
        source="sine",
        task="regression",
        sample_shape=(1,),
        num_train=2000,
    ),
    "mnist": DatasetSpec(
        summary="60 000 + 10 000 handwritten digits of 28x28 pixels (torchvision, downloaded or found under --data_dir)",
        source="mnist",
        task="multiclass",
        sample_shape=(1, 28, 28),
        num_train=60_000,
        classes=_TEN_DIGITS,
        val_fraction=1 / 12,
        has_test_set=True,
        fields=("data_dir",),
    ),
}
