"""What checkpoints and tracking cost: the same training with and without, in turn. `uv run python -m benchmarks.overhead`

A pair trains twice in one process, in an order that changes from pair to pair; the ratio of a pair is what is reported, its
median over all pairs with the smallest and the largest. Outages come from a proxy before a real MLflow server on loopback.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from pipeline import store
from pipeline.config import resolve
from pipeline.data.loader import open_split
from pipeline.data.prepare import prepare, read_manifest
from pipeline.distributed import single_process
from pipeline.progress import Progress
from pipeline.tracking import runs
from pipeline.tracking.tracker import NullTracker, Tracker
from pipeline.train import Training
from tests.servers import FAULTS, Proxy, mlflow_server


class _Silent(Training):
    """A training that saves nothing."""

    def save_checkpoint(self) -> None: ...


def _seconds(kind: type[Training], flags: dict[str, str], folder: Path, tracker: Callable[[Path], Any] | None = None) -> float:
    """Return how long `fit` takes, without what comes before and after."""
    config = resolve(flags)
    data = prepare(config)
    run_id = runs.begin() if tracker else ""
    run = store.create(folder, config=config, mlflow_run_id=run_id, git_commit="", data=read_manifest(data))
    with ExitStack() as stack:
        tracking = NullTracker()
        if tracker:
            tracking = Tracker(folder, run_id)
            tracking.begin(config, {}, dataset={"name": "x", "digest": "0" * 36, "source": "x"})
            stack.callback(tracking.close)
            tracker(folder)
        training = kind(run, single_process(), tracking, open_split(data, "train"), open_split(data, "val"))
        start = time.perf_counter()
        training.fit(Progress())
        seconds = time.perf_counter() - start
        if isinstance(tracking, Tracker):
            tracking._monitor.finish()
    return seconds


def _pairs(with_it: Callable[[Path], float], without: Callable[[Path], float], count: int) -> list[float]:
    """Return time with over time without, for each pair; the first pair warms up and is not counted."""
    ratios = []
    for number in range(count + 1):
        with tempfile.TemporaryDirectory() as base:
            both = [("with", with_it), ("without", without)]
            seen = {name: run(Path(base) / name) for name, run in (both if number % 2 else both[::-1])}
        if number:
            ratios.append(seen["with"] / seen["without"])
    return ratios


def _tell(what: str, ratios: list[float]) -> None:
    middle = statistics.median(ratios)
    print(f"{what:58} {100 * (middle - 1):+6.2f} %  [{100 * (min(ratios) - 1):+.2f}, {100 * (max(ratios) - 1):+.2f}], "
          f"{len(ratios)} pairs", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--data_dir", default="", help="folder with the real MNIST; empty: digits only")
    parser.add_argument("--cache_dir", default="~/.cache/trainyard")
    given = parser.parse_args()
    torch.set_num_threads(1)  # a second thread of a busy machine would be measured, too
    common = {"cache_dir": given.cache_dir}
    jobs = {"cnn on digits, 10 epochs": common | {"model": "cnn"}, "mlp, 40 epochs": common | {"model": "mlp"}}
    if given.data_dir:
        jobs["cnn on MNIST, 1 epoch"] = common | {"model": "cnn", "dataset": "mnist", "data_dir": given.data_dir, "epochs": "1"}
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, 1 thread")
    for name, flags in jobs.items():
        ratios = _pairs(
            lambda folder, flags=flags: _seconds(Training, flags, folder),  # type: ignore[misc]
            lambda folder, flags=flags: _seconds(_Silent, flags, folder),  # type: ignore[misc]
            given.pairs,
        )
        _tell(f"{name}: default checkpoints", ratios)
    flags = jobs.get("cnn on MNIST, 1 epoch", jobs["cnn on digits, 10 epochs"])
    with tempfile.TemporaryDirectory() as base, mlflow_server(Path(base)) as uri:
        for fault in ("", *FAULTS):
            proxy = Proxy(uri)
            os.environ["MLFLOW_TRACKING_URI"] = proxy.uri
            runs.configure()

            def tracked(folder: Path, proxy: Proxy = proxy, fault: str = fault) -> float:
                proxy.fail("")
                return _seconds(_Silent, flags, folder, lambda _: proxy.fail(fault))

            ratios = _pairs(tracked, lambda folder: _seconds(_Silent, flags, folder), given.pairs)
            _tell(f"tracking, server {fault or 'well'}", ratios)
            proxy.fail("")
            proxy.close()


if __name__ == "__main__":
    main()
