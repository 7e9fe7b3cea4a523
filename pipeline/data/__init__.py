"""Data: what is there, prepared tensors, and batches. `find` is the only door to a data set by its name."""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches

from pipeline.data.builtin import SOURCES
from pipeline.data.spec import DataSpec, Source


def find(name: str) -> Source:
    """Return the data set that `--dataset` names. Raises ValueError with the end of a sentence that begins `dataset=name `."""
    if name in SOURCES:
        return SOURCES[name]
    near = get_close_matches(name, SOURCES, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ValueError(f"is not known.{hint} Choose one of: {', '.join(SOURCES)}.")


def matching(fits: Callable[[DataSpec], bool] = lambda spec: True) -> list[str]:
    """Return the names of the data sets that come with Trainyard and that `fits` takes."""
    return [name for name, source in SOURCES.items() if fits(source.spec)]
