"""What a worker's figures stand on: real calls, its own memory, and the cores of others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from export.benchmark import machine, samples, worker
from export.benchmark.samples import Inputs
from pipeline.data.spec import Column, DataSpec


def test_samples_come_back_as_they_were_written_and_a_batch_begins_again_where_there_are_too_few(tmp_path: Path) -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    columns = {"city": np.array(["Rome", "", "Oslo"], object), "age": np.array([1.0, np.nan, 3.0])}
    Inputs(x, "3 test samples", columns).write(tmp_path)
    assert worker.batch_of(worker.read_samples(tmp_path, []), 5).tolist() == x[[0, 1, 2, 0, 1]].tolist()
    batch = worker.batch_of(worker.read_samples(tmp_path, ["city", "age"]), 4)
    assert batch["city"].tolist() == [["Rome"], [""], ["Oslo"], ["Rome"]] and batch["city"].dtype == object
    assert batch["age"].shape == (4, 1) and np.isnan(batch["age"][1, 0])


def test_a_slow_call_is_made_three_times_and_each_is_timed() -> None:
    calls: list[int] = []
    times, found = worker.measure(calls.append, 0, seconds=1e-9)
    assert len(times) == worker.MIN_CALLS and len(calls) == worker.MIN_CALLS + 2, "two to warm up"
    assert 0 < times.sum() <= found["elapsed"]


def test_random_samples_are_of_the_kind_of_the_data() -> None:
    image = DataSpec(name="x", task="multiclass", sample_shape=(3, 4, 4), dtype="uint8", value_range=(0, 255))
    found = samples.random(image, count=5)
    assert found.x.shape == (5, 3, 4, 4) and found.x.dtype == np.uint8 and found.x.max() > 200
    columns = (
        Column(name="city", kind="category", categories=("Oslo", "Rome")),
        Column(name="age", kind="number", center=40.0),
    )
    table = samples.random(DataSpec(name="x", task="binary", sample_shape=(4,), columns=columns), count=5)
    assert set(table.columns["city"]) <= {"Oslo", "Rome"} and table.columns["age"].dtype == np.float64


def test_the_peak_is_that_of_the_process_and_not_of_the_one_that_began_it() -> None:
    """`getrusage` counts the parent's memory before `exec`."""
    script = "from export.benchmark.worker import peak_mb; print(peak_mb())"
    ballast = np.ones(60_000_000, np.uint64)  # 480 MB
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert ballast.any() and 5 < float(done.stdout) < 200


def test_a_watch_sees_other_processes_and_not_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = {"busy": 100.0, "own": 5.0, "now": 0.0}
    monkeypatch.setattr(machine, "busy_seconds", lambda: clocks["busy"])
    monkeypatch.setattr(machine.time, "process_time", lambda: clocks["own"])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: clocks["now"])
    watch = machine.Watch()
    clocks.update(busy=103.0, own=7.0, now=2.0)
    assert watch.others() == pytest.approx(0.5)


def test_busy_seconds_are_those_of_the_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    both = machine.busy_seconds()
    monkeypatch.setattr(machine, "cores", lambda: [0])
    assert 0 < machine.busy_seconds() <= both + 1
