"""What a training would need: the model that is proposed, its command, and about how much disk, memory and steps.

The constants of networks are measured, as torch is not asked here: an order of magnitude, not a promise.
"""

from __future__ import annotations

import math
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from models import MODELS
from models.recipes import RECIPES, recipe
from pipeline.config import RunConfig
from pipeline.data.spec import DataSpec, Samples
from pipeline.flags import program
from pipeline.task import task

RESNET = "torchvision:resnet18"
_SMALL = 40  # pixels: the shorter side of images up to which a small network sees all that is in them
_LARGEST = 224  # what larger networks were made for
_STEP = 32  # pixels; a resnet halves the side five times
_PROCESS = 900_000_000  # bytes of a process with torch and MLflow
_COPIES = 9  # of the weights, as in `pipeline/skeleton.py`
_HIDDEN = 25  # of the mlp
_WEIGHTS = {"cnn": 220_000, "lenet": 62_000, RESNET: 11_200_000}
_TRAINED = {"cnn": 270, "lenet": 140, RESNET: 600}  # bytes for each pixel of a batch, forward and backward
_ANSWERED = {"cnn": 150, "lenet": 70, RESNET: 120}  # forward alone
_BATCH = 1000  # samples that are evaluated at once


def propose(side: int, *, image_size: int, name: str = "") -> tuple[str, int]:
    """Return a model and the --image_size to train it at, 0 where none is to be given.

    `side` is the shorter one of the image in the middle, 0 for data of other kinds; `image_size` is what the user asks for.
    Data of the `name` for which a model was made that does nothing else gets that model.
    """
    if not side:
        made = [model for model in RECIPES if recipe(model, "default")["dataset"] == name]
        model = next((model for model in made if not any(task(each).has_decisions for each in MODELS[model].tasks)), "mlp")
        return model, image_size  # which is refused by the trainer, as it has no effect
    if image_size in (28, 32):
        return ("cnn" if image_size == 28 else "lenet"), image_size
    if not image_size and side <= _SMALL:
        return "cnn", 0
    return RESNET, image_size or min(_LARGEST, side // _STEP * _STEP)


def command(flags: Mapping[str, str]) -> str:
    """Return the line that trains with these flags."""
    return " ".join([program(), "run", *(word for name, text in flags.items() for word in (f"--{name}", shlex.quote(text)))])


def needs(
    config: RunConfig, spec: DataSpec, samples: Samples, rows: Mapping[str, NDArray[np.int64]], model: str,
    *, is_sharded: bool = False,
) -> list[Any]:  # fmt: skip
    """Return labels and texts: the disk, the memory and the steps that a training of `model` takes.

    Training samples that are sharded stay where they are, or are fetched as far as --local_cache_gb lets.
    """
    there, available = _free(config.cache_dir), psutil.virtual_memory().available
    kept = {name: r for name, r in rows.items() if not is_sharded or name != "train"}
    disk, memory = num_bytes(spec, samples, kept), _memory(config, spec, samples, rows, model)
    num_train = len(rows["train"])
    steps = max(1, -(-num_train // config.batch_size))
    lines, beside = [], ", beside training shards" if is_sharded else ""
    if there is not None:
        more = "" if disk < there else ": ATTENTION, that is too little; give another --cache_dir, or a smaller --image_size"
        lines.append(("disk", f"{size(disk)} of prepared tensors{beside}; {size(there)} are free in {config.cache_dir}{more}"))
    more = "" if memory < available else ": ATTENTION, that is too little; give a smaller --batch_size or --image_size"
    return [
        *lines,
        ("memory", f"about {memory / 1e9:.1f} GB to train on the CPU; {size(available)} are free{more}"),
        ("steps", f"{steps:,} an epoch: {num_train:,} training samples in batches of {config.batch_size}"
                  + (f", {config.epochs} epochs" if config.epochs else f", {config.max_steps} in all")),
    ]  # fmt: skip


def num_bytes(spec: DataSpec, samples: Samples, rows: Mapping[str, NDArray[np.int64]]) -> int:
    """Return about how many bytes the prepared tensors take."""
    count = sum(map(len, rows.values()))
    sample = math.prod(spec.sample_shape) * np.dtype(spec.dtype).itemsize
    target = samples.y.itemsize * (samples.y.shape[1] if samples.y.ndim > 1 else 1)
    raw = len(rows.get("test", rows.get("train", ()))) * sum(16 if c.is_category else 8 for c in spec.columns)
    return count * (sample + target) + raw


def _memory(config: RunConfig, spec: DataSpec, samples: Samples, rows: Mapping[str, NDArray[np.int64]], model: str) -> int:
    """Return about how many bytes preparing or training takes at most, of which the mapped tensors are none."""
    if not spec.is_image:
        width = spec.sample_shape[0]
        table = len(samples.y) * (4 * width + sum(16 if c.is_category else 24 for c in spec.columns))
        return _PROCESS + max(table, _COPIES * 4 * _HIDDEN * (width + spec.num_outputs))
    pixels = spec.sample_shape[1] * spec.sample_shape[2]
    evaluated = min(_BATCH, max((len(r) for name, r in rows.items() if name != "train"), default=0) or len(rows["train"]))
    batch = max(min(config.batch_size, len(rows["train"])) * _TRAINED[model], evaluated * _ANSWERED[model]) * pixels
    held = samples.x.nbytes if isinstance(samples.x, np.ndarray) else 0
    return _PROCESS + max(held, _COPIES * 4 * _WEIGHTS[model] + batch)


def _free(folder: Path) -> int | None:
    """Return the bytes that are free where a folder is, or would be; None where that cannot be told."""
    try:
        folder = folder.expanduser().absolute()
        return shutil.disk_usage(next(each for each in (folder, *folder.parents) if each.exists())).free
    except (OSError, RuntimeError):  # no home folder
        return None


def size(count: int) -> str:
    """Return a number of bytes for a reader: `1.5 MB`."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:,.1f} {unit}"
    return f"{count} bytes"
