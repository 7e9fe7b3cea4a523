"""The proof from a data set's own files: each decoded in its own size, answered by the ONNX file, held against the training.

What was trained on are images that had been resized before; here the graph does it. So this is in one process, and beside the
comparison of the outputs for the prepared samples, which each file has to give in a process of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export import compare, gates
from export.gates import Limits
from pipeline.data.image_table import contents
from pipeline.data.images import decode
from pipeline.task import Task

Array = NDArray[Any]

_AHEAD = 64  # images that are decoded at a time


def read(root: Path, names: Sequence[str]) -> list[Path] | list[bytes]:
    """Return the images of a folder as paths, those of a Parquet file's rows as bytes."""
    return [root / name for name in names] if root.is_dir() else contents(root, [int(name) for name in names])


def answers(content: bytes, files: Sequence[Path | bytes], *, channels: int) -> Array:
    """Return the first output (N, K) of an ONNX file for N image files. Raises what onnxruntime or decoding raises."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    first = [session.get_outputs()[0].name]
    rows = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), _AHEAD):
            for image in pool.map(partial(decode, channels=channels), files[start : start + _AHEAD]):
                rows.append(session.run(first, {name: image[None]})[0])
    return np.concatenate(rows)


def judge(
    content: bytes, files: Sequence[Path | bytes], *, channels: int, want: Array, labels: Array, task: Task,
    limits: Limits | None = None,
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """Return what came of it for the report, and what is wrong: a class that is another one, or no answer.

    A file that may lose something is held to its `limits` instead.
    """
    try:
        got = answers(content, files, channels=channels)
    except Exception as error:  # onnxruntime has types of its own
        line = (str(error).splitlines() or [type(error).__name__])[0]
        return {"num_files": len(files)}, [f"it does not answer for the original files: {line[:300]}"]
    if got.shape != want.shape:
        return {"num_files": len(files)}, [f"for the original files its first output is {got.shape}, not {want.shape}"]
    score = compare.score(got, want, labels, task)
    found = {
        "num_files": len(files), "argmax_flips": score.flips, "metric": score.value,
        "max_abs_diff": float(np.abs(got.astype(np.float64) - want).max()),
    }  # fmt: skip
    if limits:
        figures = gates.figures(got, want, labels, task)
        return found, [f"from the original files, {p}" for p in gates.missed(figures, limits, task=task, split="original")]
    if score.flips:
        return found, [f"{score.flips} of {len(files)} original files are classified otherwise than the prepared images"]
    return found, []
