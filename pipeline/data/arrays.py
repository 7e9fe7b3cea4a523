"""Own data as arrays: an .npz file, or what a function of a .py file returns.

Images are uint8, (N, H, W) or (N, C, H, W) or (N, H, W, C) with 1 or 3 channels; vectors are (N, D). What the targets are
decides the task. Such data is read when it is first asked for, since only then can be said what it is.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.plugin import PluginError, describe, load, parts, source_of
from pipeline.data.spec import IMAGE_RANGE, SPLITS, DataOptions, DataSpec, Samples, Source
from pipeline.errors import UserError
from pipeline.task import TASKS, of_classes

Array = NDArray[Any]

_KEYS = "x and y, and x_val, y_val, x_test, y_test where there are such; classes may name the classes"
_MOST_CLASSES = 100  # distinct whole numbers that still count as labels, where nothing else is said


def source(name: str, options: DataOptions) -> Source:
    """Return the data set in an .npz file, or that a function returns. Raises UserError."""
    if name.rpartition(":")[0].endswith(".py"):
        return _of_function(name, options)
    path = Path(name)
    if path.suffix.lower() != ".npz":
        raise UserError(
            f"dataset={name} is no data that can be read. Give a folder of images, a table (.csv, .tsv, .parquet, .feather), "
            "an .npz file, or file.py:function."
        )
    return _of_arrays(path.stem, _read(path), options, about=name, files=[path])


def _read(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile and zlib have errors of their own
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        if "pickle" in reason:
            reason = "it holds Python objects, which are never loaded"
        raise UserError(
            f"dataset={path} cannot be read ({reason}). Save plain arrays: numpy.savez(file, x=..., y=...)."
        ) from error


def _of_function(name: str, options: DataOptions) -> Source:
    """Call the function with `--data_args` and return what came of it; it is called once in each process."""
    args = json.loads(options.args)
    try:
        function = load(name)
        if not callable(function):
            raise PluginError("is no function.")
        inspect.signature(function).bind(**args)
    except PluginError as error:
        raise UserError(f"dataset={name} {error}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"data_args={options.args} does not fit dataset={name} ({error}). Change the arguments.") from error
    try:
        arrays = _named(function(**args))
    except (Exception, SystemExit) as error:
        raise UserError(f"dataset={name} failed: {describe(error)}. Mend the function.") from error
    if arrays is None:
        raise UserError(
            f"dataset={name} returned neither arrays nor a data set. Return (x, y), a dict of arrays by name ({_KEYS}), or a "
            "torch Dataset whose samples are (x, y)."
        )
    digest = hashlib.sha256()
    for key in sorted(arrays):
        digest.update(f"{key} {arrays[key].dtype} {arrays[key].shape}".encode())
        digest.update(np.ascontiguousarray(arrays[key]).reshape(-1).view(np.uint8).data if arrays[key].size else b"")
    place, function_name = parts(name)
    return _of_arrays(
        f"{Path(place).stem}-{function_name}",
        arrays,
        options,
        about=name,
        files=[source_of(name).path],
        digest=digest.hexdigest(),
    )


def _named(found: Any) -> dict[str, Array] | None:
    """Return what a function returned as arrays by name; None for what is none of the three."""
    if isinstance(found, Mapping):
        return {str(key): _array(value) for key, value in found.items()}
    if isinstance(found, tuple | list) and len(found) == 2:
        return {"x": _array(found[0]), "y": _array(found[1])}
    if hasattr(found, "__len__") and hasattr(found, "__getitem__") and not isinstance(found, str | np.ndarray):
        samples = [found[index] for index in range(len(found))]
        return {"x": np.stack([_array(x) for x, _ in samples]), "y": np.stack([_array(y) for _, y in samples])}
    return None


def _array(value: Any) -> Array:
    array = np.asarray(value)  # of a torch tensor or a PIL image too
    if array.dtype == object:
        raise ValueError("it holds Python objects, or rows of different lengths, and not numbers")
    return array


def _of_arrays(
    name: str, given: Mapping[str, Array], options: DataOptions, *, about: str, files: list[Path], digest: str = ""
) -> Source:
    """Return the data set that arrays by name are."""
    arrays = {_plain(key): value for key, value in given.items()}
    if len(arrays) < len(given):
        raise UserError(f"dataset={about} has the same array twice ({', '.join(given)}). It takes {_KEYS}.")
    known = {"classes", *(f"{axis}{end}" for axis in "xy" for end in ("", "_val", "_test"))}
    if unknown := sorted(set(arrays) - known):
        raise UserError(f"dataset={about} has an array called {unknown[0]}. It takes {_KEYS}.")
    wanted = ["x", "y", *(key.replace("y", "x") for key in arrays if key.startswith("y"))]
    if missing := [key for key in dict.fromkeys(wanted) if key not in arrays]:
        raise UserError(f"dataset={about} has no array {' and none '.join(missing)}. It takes {_KEYS}.")
    splits = {
        split: (arrays[f"x{end}"], arrays.get(f"y{end}", np.empty(0)))
        for split, end in zip(SPLITS, ("", "_val", "_test"), strict=True)
        if f"x{end}" in arrays
    }
    for split, (x, y) in splits.items():
        if not x.ndim or not y.ndim or len(x) != len(y) or not len(x):
            numbers = [len(each) if each.ndim else 0 for each in (x, y)]
            raise UserError(f"dataset={about} has {numbers[0]} samples and {numbers[1]} targets in {split}. Give one for each.")
        if x.shape[1:] != arrays["x"].shape[1:] or y.shape[1:] != arrays["y"].shape[1:]:
            raise UserError(f"dataset={about} has samples of another shape in {split} than in train. Give them alike.")
        if not math.prod(x.shape[1:]) or not math.prod(y.shape[1:]):
            raise UserError(
                f"dataset={about} has samples of shape {x.shape[1:]} and targets of {y.shape[1:]}: nothing to learn."
            )
    x = _samples(np.concatenate([x for x, _ in splits.values()]), about)
    names = [_text(value) for value in np.atleast_1d(arrays.get("classes", np.empty(0)))]
    if len(set(names)) < len(names):
        raise UserError(f"dataset={about} names a class twice ({', '.join(names)}). Give each a name of its own.")
    y, task, classes, targets = _targets(np.concatenate([y for _, y in splits.values()]), names, options.task, about)
    of_split = np.repeat(list(splits), [len(x) for x, _ in splits.values()])
    samples = Samples(x, y, split=of_split if len(splits) > 1 else None)
    spec = DataSpec(
        name=name, task=task, sample_shape=x.shape[1:], dtype=str(x.dtype), value_range=IMAGE_RANGE if x.ndim == 4 else None,
        classes=classes, targets=targets,
    )  # fmt: skip
    return Source(
        summary=f"{len(x):,} samples of shape {x.shape[1:]}", spec=spec, num_train=len(splits["train"][0]),
        load=lambda data_dir, seed, **_: samples, has_val_set="val" in splits, has_test_set="test" in splits,
        files=lambda data_dir: files, digest=digest,
    )  # fmt: skip


def _plain(key: str) -> str:
    """Return `x` for x_train and X, as arrays are often called."""
    key = key.lower().removesuffix("_train")
    return f"{key[:2]}val" if key[1:] in ("_valid", "_validation") else key


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _float32(values: Array) -> NDArray[np.float32]:
    """Return values as training takes them; what is too large becomes infinite, which `prepare` refuses with its place."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32)


def _samples(x: Array, about: str) -> Array:
    """Return images (N, C, H, W) uint8 or vectors (N, D) float32."""
    if x.ndim == 2 and x.dtype.kind in "fiub":
        if x.dtype.kind in "iu" and np.abs(x.astype(np.float64)).max() > 2**24:
            raise UserError(f"dataset={about} has whole numbers beyond 2^24 in x, which float32 cannot hold. Scale them first.")
        return _float32(x)
    if x.ndim not in (3, 4):
        raise UserError(
            f"dataset={about} has samples of shape {x.shape[1:]} and type {x.dtype}. Give vectors (N, D), or images (N, H, W), "
            "(N, C, H, W) or (N, H, W, C)."
        )
    if x.dtype != np.uint8:
        raise UserError(
            f"dataset={about} has images of type {x.dtype}. Give uint8 from 0 to 255, neither scaled nor standardized: the "
            "model does that, and so does the file that is exported."
        )
    if x.ndim == 3:
        return x[:, None]
    if x.shape[1] in (1, 3):
        return x
    if x.shape[3] in (1, 3):
        return np.ascontiguousarray(np.moveaxis(x, 3, 1))
    raise UserError(f"dataset={about} has images of shape {x.shape[1:]}. Give 1 or 3 channels, first or last.")


def _targets(y: Array, names: list[str], task: str, about: str) -> tuple[Array, str, tuple[str, ...], tuple[str, ...]]:
    """Return targets as training takes them, the task, and the names of classes and of targets."""
    y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
    found = task or _task_of(y)
    if y.ndim not in (1, 2) or y.dtype.kind not in "fiubUS":
        raise UserError(f"dataset={about} has targets of shape {y.shape[1:]} and type {y.dtype}. Give (N,) or (N, K) numbers.")
    kind = TASKS[found]
    if not kind.has_strata:
        if y.dtype.kind in "US":
            raise UserError(f"task={found} needs numbers, and dataset={about} has texts as targets. Leave --task out.")
        values = _float32(y[:, None] if y.ndim == 1 else y)
        numbers = tuple(names) if len(names) == values.shape[1] else tuple(map(str, range(values.shape[1])))
        return (values, found, numbers, ()) if kind.has_labels else (values, found, (), numbers)
    if y.ndim != 1 or (y.dtype.kind == "f" and (y != np.round(y)).any()):
        raise UserError(f"task={found} needs one label a sample, and dataset={about} has none such. Leave --task out.")
    values, labels = np.unique(y, return_inverse=True)
    if names and y.dtype.kind in "iub":
        if values[0] < 0 or values[-1] >= len(names):
            raise UserError(f"dataset={about} has labels from {values[0]} to {values[-1]}, and names {len(names)} classes.")
        labels, classes = y.astype(np.int64), tuple(names)
    else:
        classes = tuple(f"{value:.0f}" if y.dtype.kind == "f" else _text(value) for value in values)
    if len(classes) < 2:
        raise UserError(f"dataset={about} has samples of a single class ({classes[0]}). Add samples of another.")
    if not kind.takes_classes(len(classes)):
        raise UserError(f"task={found} needs two classes, and dataset={about} has {len(classes)}. Leave --task out.")
    return labels.astype(np.int64), found, classes, ()


def _task_of(y: Array) -> str:
    """Return the task that targets are for: texts and few whole numbers are classes, columns of 0 and 1 labels."""
    if y.ndim == 2:
        return "multilabel" if y.dtype.kind in "iub" and ((y == 0) | (y == 1)).all() else "regression"
    if y.dtype.kind in "US" or y.dtype.kind == "b":
        return of_classes(len(np.unique(y)))
    count = len(np.unique(y))
    if y.dtype.kind in "iu" and count <= min(_MOST_CLASSES, max(2, len(y) // 2)):
        return of_classes(count)
    return "regression"
