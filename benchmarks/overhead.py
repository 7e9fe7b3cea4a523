"""What checkpoints and tracking cost: the same training with and without, in turn. `uv run python -m benchmarks.overhead`

A pair trains twice in one process, in an order that changes from pair to pair; the ratio of a pair is what is reported, its
median over all pairs with the smallest and the largest. The share that saving and tracking take of one run is also measured by
the clocks of its threads, which a busy machine bends less. Outages come from a proxy before a real MLflow server on loopback.
`--team true` measures tracking alone, with a team's MLflow in turns with one of our own: PostgreSQL, S3 and passwords.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.report import hardware_precision, options, pairs
from benchmarks.training import build
from pipeline.progress import Progress
from pipeline.tracking import runs
from pipeline.tracking.tracker import Tracker
from tests.servers import FAULTS, Proxy, mlflow_server


def _seconds(flags: dict[str, str], *, saves: bool) -> float:
    """Return how long `fit` takes, without what comes before and after."""
    with tempfile.TemporaryDirectory() as folder:
        training = build(flags, Path(folder), saves=saves)
        start = time.perf_counter()
        training.fit(Progress())
        return time.perf_counter() - start


def _save_share(flags: dict[str, str]) -> tuple[float, float]:
    """Return what saving takes of a training's time: in its own thread (waits included), and in the writing one (CPU time)."""
    with tempfile.TemporaryDirectory() as folder:
        training = build(flags, Path(folder))
        save, spent = training.save_checkpoint, 0.0

        def timed() -> None:
            nonlocal spent
            begin = time.perf_counter()
            save()
            spent += time.perf_counter() - begin

        training.save_checkpoint = timed  # type: ignore[method-assign]
        start, own, all_threads = time.perf_counter(), time.thread_time(), time.process_time()
        training.fit(Progress())
        seconds, own, all_threads = time.perf_counter() - start, time.thread_time() - own, time.process_time() - all_threads
        return spent / seconds, (all_threads - own) / seconds


class _Timed(Tracker):
    """A tracker that adds up what the training thread spends in it."""

    spent = 0.0

    def log(self, row: Any) -> None:
        start = time.perf_counter()
        super().log(row)
        self.spent += time.perf_counter() - start


def _tracking_share(flags: dict[str, str], folder: Path, control: Any, fault: str) -> tuple[float, float]:
    """Return what tracking takes of a training's time: in its own thread, and in that of the other threads (CPU time).

    The clock starts when the run's first figures are sent, because opening a run happens once; then the server fails.
    """
    run_id = runs.create_run()
    training = build(flags, folder, run_id=run_id, saves=False)
    tracker = _Timed(folder, run_id)
    tracker.begin(training.config, {}, dataset={"name": "x", "digest": "0" * 36, "source": "x"})
    assert tracker._sender.send_now(60)
    training.tracker = tracker
    control.put(fault)
    time.sleep(1)
    start, own, all_threads = time.perf_counter(), time.thread_time(), time.process_time()
    training.fit(Progress())
    seconds, own, all_threads = time.perf_counter() - start, time.thread_time() - own, time.process_time() - all_threads
    tracker._monitor.finish()
    tracker.close()
    control.put("")
    time.sleep(1)
    return tracker.spent / seconds, (all_threads - own) / seconds


def _fit_seconds(flags: dict[str, str], *, tracks: bool) -> tuple[float, float]:
    """Return how long `fit` takes, by the wall and by its thread's clock, without what comes before and after."""
    with tempfile.TemporaryDirectory() as base:
        folder = Path(base) / "run"
        run_id = runs.create_run() if tracks else ""
        training = build(flags, folder, run_id=run_id, saves=False)
        tracker = Tracker(folder, run_id) if tracks else None
        if tracker:
            tracker.begin(training.config, {}, dataset={"name": "x", "digest": "0" * 36, "source": "x"})
            assert tracker._sender.send_now(60), tracker._sender.problem
            training.tracker = tracker
        start, own = time.perf_counter(), time.thread_time()
        training.fit(Progress())
        seconds, own = time.perf_counter() - start, time.thread_time() - own
        if tracker:
            tracker.end("FINISHED")
            tracker.close()
        return seconds, own


def _with_team(flags: dict[str, str], count: int) -> None:
    """Say what sending to a team's MLflow takes, in turns with none at all and with a server of our own."""
    from tests.team import team

    shares: dict[str, list[tuple[float, float]]] = {"own server": [], "team's": []}
    with tempfile.TemporaryDirectory() as base, mlflow_server(Path(base)) as own, team(Path(base)) as servers:
        variables = servers.variables("ada")
        os.environ.update(variables)
        runs.configure()
        seen = []
        for number in range(count + 1):  # the first is thrown away
            first, second = (_fit_seconds(flags, tracks=tracks) for tracks in (number % 2 == 0, number % 2 == 1))
            if number:
                seen.append((first, second) if number % 2 == 0 else (second, first))
        for clock, what in enumerate(("wall", "processor time of the training thread")):
            _tell(f"tracked by a team's MLflow, {what}", [a[clock] / b[clock] for a, b in seen])
        for _ in range(3):
            for name, uri in (("own server", own), ("team's", servers.uri)):
                os.environ["MLFLOW_TRACKING_URI"] = uri
                runs.configure()
                with tempfile.TemporaryDirectory() as folder:
                    shares[name].append(_tracking_share(flags, Path(folder) / "run", queue.SimpleQueue(), ""))
        for name, values in shares.items():
            inside, beside = (100 * statistics.median(each) for each in zip(*values, strict=True))
            print(f"  {name:12} {inside:5.2f} % in the training thread, {beside:5.2f} % CPU beside it", flush=True)


def _proxy(uri: str, address: Any, control: Any) -> None:
    """Run the proxy in a process of its own, so that what it takes is not counted."""
    proxy = Proxy(uri)
    address.put(proxy.uri)
    while True:
        proxy.fail(control.get())


def _tell(what: str, ratios: list[float]) -> None:
    middle = statistics.median(ratios)
    print(f"{what:58} {100 * (middle - 1):+6.2f} %  [{100 * (min(ratios) - 1):+.2f}, {100 * (max(ratios) - 1):+.2f}], "
          f"{len(ratios)} pairs", flush=True)  # fmt: skip


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--team", default="false", choices=("true", "false"), help="measure tracking by a team's MLflow alone")
    given = parser.parse_args()
    torch.set_num_threads(1)  # a second thread of a busy machine would be measured, too
    precision = hardware_precision() if given.precision == "auto" else given.precision
    common = {"cache_dir": given.cache_dir, "precision": precision}
    jobs = {"cnn on digits, 10 epochs": common | {"model": "cnn"}, "mlp, 40 epochs": common | {"model": "mlp"}}
    if given.data_dir:
        jobs["cnn on MNIST, 1 epoch"] = common | {"model": "cnn", "dataset": "mnist", "data_dir": given.data_dir, "epochs": "1"}
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, 1 thread, {precision}")
    if given.team == "true":
        _with_team(jobs["cnn on digits, 10 epochs"] | {"epochs": "40"}, given.pairs)
        return
    for name, flags in jobs.items():
        seen = pairs(
            lambda flags=flags: _seconds(flags, saves=True),  # type: ignore[misc]
            lambda flags=flags: _seconds(flags, saves=False),  # type: ignore[misc]
            given.pairs,
        )
        ratios = [a / b for a, b in seen]
        _tell(f"{name}: default checkpoints", ratios)
        shares = zip(*(_save_share(flags) for _ in range(5)), strict=True)
        inside, beside = (100 * statistics.median(values) for values in shares)
        print(f"  by the threads' clocks: {inside:.2f} % in the training thread, {beside:.2f} % CPU beside it", flush=True)
    flags = jobs["cnn on digits, 10 epochs"] | {"epochs": "40"}
    print("tracking, cnn on digits, 40 epochs: share of the training's time (median of 3)")
    with tempfile.TemporaryDirectory() as base, mlflow_server(Path(base)) as uri:
        address: multiprocessing.Queue[str] = multiprocessing.Queue()
        control: multiprocessing.Queue[str] = multiprocessing.Queue()
        process = multiprocessing.Process(target=_proxy, args=(uri, address, control), daemon=True)
        process.start()
        os.environ["MLFLOW_TRACKING_URI"] = address.get(timeout=60)
        runs.configure()
        for fault in ("", *FAULTS):
            seen = []
            for _ in range(3):
                with tempfile.TemporaryDirectory() as folder:
                    seen.append(_tracking_share(flags, Path(folder) / "run", control, fault))
            inside, beside = (100 * statistics.median(values) for values in zip(*seen, strict=True))
            print(
                f"  server {fault or 'well':12} {inside:5.2f} % in the training thread, {beside:5.2f} % CPU beside it",
                flush=True,
            )
        process.terminate()
        process.join(10)


if __name__ == "__main__":
    main()
