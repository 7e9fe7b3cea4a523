"""The proof from a data set's own images: each in its own size, answered by the ONNX file, held against the training.

What was trained on are images that had been resized before; here the graph does it. So this is in one process, and beside the
comparison of the outputs for the prepared samples, which each file has to give in a process of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export import compare, gates
from export.gates import Limits
from pipeline.data import source_of
from pipeline.data.image_table import contents
from pipeline.data.images import decode
from pipeline.data.prepare import read_manifest
from pipeline.run import Run
from pipeline.task import Task

Array = NDArray[Any]

_AHEAD = 64  # images that are decoded at a time


Images = Sequence[Path | bytes] | Array
"""Files, the bytes of such, or an array (N, C, H, W)."""


def find(run: Run, data: Path, split: str, *, dataset: str) -> Images | None:
    """Return the images of a split as they were before they were resized; None where what was prepared is all there is.

    `data` is the prepared folder and `dataset` where the run's own data lies now: images of a folder come as paths, those of a
    Parquet file's rows as bytes, those of arrays as one. Raises UserError where it can no longer be read.
    """
    manifest = read_manifest(data)
    if names := manifest.get("names"):
        root = Path(dataset)
        return [root / n for n in names[split]] if root.is_dir() else contents(root, [int(n) for n in names[split]])
    if rows := manifest.get("rows"):
        config = dataclasses.replace(run.config, dataset=dataset)
        samples = source_of(config).load(data_dir=config.data_dir, seed=config.split_seed, **config.data_args)
        return np.asarray(samples.x)[rows[split]]
    return None


def answers(content: bytes, images: Images, *, channels: int) -> Array:
    """Return the first output (N, K) of an ONNX file for N images. Raises what onnxruntime or decoding raises."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    first = [session.get_outputs()[0].name]
    if isinstance(images, np.ndarray):
        return np.concatenate([session.run(first, {name: image[None]})[0] for image in images])
    rows = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(images), _AHEAD):
            for image in pool.map(partial(decode, channels=channels), images[start : start + _AHEAD]):
                rows.append(session.run(first, {name: image[None]})[0])
    return np.concatenate(rows)


def judge(
    content: bytes, images: Images, *, channels: int, want: Array, labels: Array, task: Task,
    limits: Limits | None = None,
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """Return what came of it for the report, and what is wrong: a class that is another one, or no answer.

    A file that may lose something is held to its `limits` instead.
    """
    try:
        got = answers(content, images, channels=channels)
    except Exception as error:  # onnxruntime has types of its own
        line = (str(error).splitlines() or [type(error).__name__])[0]
        return {"num_images": len(images)}, [f"it does not answer for the original images: {line[:300]}"]
    if got.shape != want.shape:
        return {"num_images": len(images)}, [f"for the original images its first output is {got.shape}, not {want.shape}"]
    score = compare.score(got, want, labels, task)
    found = {
        "num_images": len(images), "argmax_flips": score.flips, "metric": score.value,
        "max_abs_diff": float(np.abs(got.astype(np.float64) - want).max()),
    }  # fmt: skip
    if limits:
        figures = gates.figures(got, want, labels, task)
        return found, [f"from the original images, {p}" for p in gates.missed(figures, limits, task=task, split="original")]
    if score.flips:
        return found, [f"{score.flips} of {len(images)} original images are classified otherwise than the prepared images"]
    return found, []
