"""Which samples may be computed together: those whose answers then have the bits that each has alone.

A matrix product of several rows may sum in another order than one of a single row. That depends on the file, on onnxruntime and
on the processor, and not on the values; so it is tried, when a file is loaded, for each size of a batch and each place in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from export.serve.model import Array, Model

_PATIENCE = 3.0  # s for all trials
_TRIES = 3  # of each size, with other values each time
_GAIN = 0.9  # of the time that a sample takes alone: a larger batch has to be quicker than that
_READING = 0.0005  # s of the interpreter for a request, about: its connection, reading and writing it
_TOGETHER = 0.001  # s of work that is taken at once, even if each sample is computed alone


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes of batches, from 1 upward, that keep the bits and are worth it; and for which shapes of a sample that is known.

    `together` is how many requests a thread takes at once, `seconds` what the model takes for a sample alone.
    """

    sizes: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...]
    together: int
    seconds: float

    def num_threads(self, cores: int) -> int:
        """Return how many threads are worth it: more than the interpreter can feed would only wait for it, and each other."""
        return min(cores, 1 + int(self.seconds / _READING))

    @property
    def is_quick(self) -> bool:
        """Whether the model takes less for a sample than the interpreter for a request."""
        return self.seconds < _READING

    def is_short(self, count: int) -> bool:
        """Tell whether so many samples are computed before anybody else would notice, even one by one."""
        return count * self.seconds <= _TOGETHER

    def sizes_for(self, inputs: Sequence[Array]) -> tuple[int, ...]:
        return self.sizes if tuple(array.shape[1:] for array in inputs) == self.shapes else (1,)


def plan(model: Model, max_batch: int) -> Plan:
    """Return how samples are computed together, by trial with values drawn from a seed.

    Images of other sizes than the model's own are not tried, and computed alone. Raises Unanswered where none is taken.
    """
    names = [tensor.name for tensor in model.outputs]
    rng = np.random.default_rng(0)
    first = samples(model, 1, rng)
    model.run(names, first)  # what is slow only once
    alone, sizes, started = _seconds(lambda: model.run(names, first)), [1], time.perf_counter()
    for size in (2**k for k in range(1, max_batch.bit_length())):
        together, tries = np.inf, 0
        while tries < _TRIES and time.perf_counter() - started + 2 * size * alone < _PATIENCE:
            inputs = samples(model, size, rng)
            single = [[array[k : k + 1] for array in inputs] for k in range(size)]
            if not _equal(model.run(names, inputs), [model.run(names, each) for each in single]):
                break
            alone = min(alone, _seconds(lambda: model.run(names, single[0])))  # noqa: B023
            together = min(together, _seconds(lambda: model.run(names, inputs)))  # noqa: B023
            tries += 1
        if tries == _TRIES and together < _GAIN * size * alone:
            sizes.append(size)
    at_once = max(sizes[-1], min(max_batch, int(_TOGETHER / alone)), 1)
    return Plan(sizes=tuple(sizes), shapes=tuple(array.shape[1:] for array in first), together=at_once, seconds=alone)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return max(time.perf_counter() - start, 1e-9)


def _equal(whole: Sequence[Array], single: Sequence[Sequence[Array]]) -> bool:
    """Tell whether the outputs of a batch have the bits of its samples; one whose first axis is not the batch has not."""
    for place, values in enumerate(whole):
        rows = [found[place] for found in single]
        if not values.ndim or values.shape != (len(rows), *rows[0].shape[1:]):
            return False
        if values.tobytes() != np.concatenate(rows).tobytes():
            return False
    return True


def samples(model: Model, count: int, rng: np.random.Generator) -> list[Array]:
    """Return inputs of `count` samples as `Model.run` takes them: bytes, numbers around 0; known, new and missing values."""
    if not model.columns:
        shape = (count, *model.input_shape)
        if model.dtype == "uint8":
            return [rng.integers(0, 256, shape, dtype=np.uint8)]
        return [rng.normal(size=shape).astype(np.float32)]
    found: list[Array] = []
    for column in model.columns:
        if column.is_category:
            texts = np.array([*column.categories, "?", ""], object)
            found.append(texts[rng.integers(0, len(texts), (count, 1))])
        else:
            values = column.center + column.scale * rng.normal(size=(count, 1))
            found.append(np.where(rng.random((count, 1)) < 0.1, np.nan, values))
    return found
