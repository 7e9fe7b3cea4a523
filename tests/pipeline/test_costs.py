"""What a step of training costs, in counts that no busy machine moves: what is counted here may fall, and not rise."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import csv, parquet

from pipeline import distributed, manifest
from pipeline.config import RunConfig
from pipeline.data.prepare import prepare
from pipeline.progress import Progress
from pipeline.resolve import resolve
from pipeline.tracking import runs, sender
from pipeline.tracking.journal import Journal, Outbox
from pipeline.tracking.tracker import training_run
from tests.trainings import begin

Make = Callable[..., RunConfig]

CALLS = {"cnn": 400, "mlp": 320}  # of Python and built-in functions in one step, torch's own wrappers included


@pytest.fixture(scope="module")
def counted(cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Return what tests/pipeline/calls.py counts, in a process of its own."""
    command = [sys.executable, "-m", "tests.pipeline.calls", cache_dir, tmp_path_factory.mktemp("calls")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=280)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("model", CALLS)
def test_a_step_calls_no_more_python_than_it_did(counted: dict[str, float], model: str) -> None:
    assert 100 < counted[model] <= CALLS[model]


@pytest.mark.timeout(300)
def test_a_sample_costs_no_python_at_all(counted: dict[str, float]) -> None:
    assert counted["20"] == counted["160"] > 1000


def test_collectives_of_an_epoch_are_one_a_window_and_two_more(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for the accuracy and one for validation; DDP's own are counted on two ranks, in test_distributed.py."""
    shapes: list[tuple[int, ...]] = []
    real = distributed.all_reduce_sum
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda tensor: shapes.append(tuple(tensor.shape)) or real(tensor))
    training = begin(make_config(model="mlp", batch_size=10, epochs=2, log_every=10), tmp_path / "run")
    training.fit(Progress())
    steps = len(training.batches)
    windows = -(-steps // 10)
    assert steps == 35 and len(shapes) == 2 * (windows + 2)


def test_the_training_thread_never_calls_mlflow(make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in a step nor in an epoch: figures go to a file, and from there to MLflow in another thread."""
    from mlflow import MlflowClient

    called: list[tuple[str, str]] = []
    for name in ("log_batch", "log_metric", "log_param", "log_artifact", "set_tag", "get_run", "search_runs", "set_terminated"):
        real = getattr(MlflowClient, name)

        def recorded(self: Any, *given: Any, _name: str = name, _real: Any = real, **named: Any) -> Any:
            called.append((threading.current_thread().name, _name))
            return _real(self, *given, **named)

        monkeypatch.setattr(MlflowClient, name, recorded)
    runs.configure()
    config = make_config(model="mlp", batch_size=10, epochs=3)
    training = begin(config, tmp_path / "run", run_id=runs.create_run())
    with training_run(training.run, {}, dataset={"name": "x", "digest": "0" * 36, "source": "x"}) as tracker:
        training.tracker = tracker
        called.clear()
        training.fit(Progress())
        inside = Counter(thread for thread, _ in called)
    assert set(inside) <= {"tracking"}
    assert any(name == "log_batch" for _, name in called)


def test_mlflow_is_called_once_for_a_thousand_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    sizes: list[int] = []
    monkeypatch.setattr(MlflowClient, "log_batch", lambda self, run_id, metrics: sizes.append(len(metrics)))
    journal, outbox = Journal(tmp_path / manifest.METRICS), Outbox(tmp_path, "0" * 32)
    for step in range(2500):
        journal.append({"step": step, "epoch": 0, "time": 0, "train/loss": 1.0})
    assert sender.send(outbox, [journal]) == 2500
    assert sizes == [1000, 1000, 500]


def test_neither_a_long_first_call_nor_a_curve_that_grows_holds_up_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sender rests after a batch, in proportion to its work (10 s here, at 2 %), while the training writes more."""
    from mlflow import MlflowClient

    journal, outbox = Journal(tmp_path / manifest.METRICS), Outbox(tmp_path, "0" * 32)

    def grow(*_: Any, **__: Any) -> None:
        journal.append({"step": 1, "epoch": 0, "time": 0, "train/loss": 1.0})

    clock, uploaded = itertools.count(step=10), threading.Event()
    monkeypatch.setattr(sender.time, "thread_time", lambda: next(clock))
    monkeypatch.setattr(MlflowClient, "log_batch", grow)
    monkeypatch.setitem(sender._SEND, "checkpoint", lambda *_: uploaded.set())
    monkeypatch.setattr(runs, "close_abandoned", lambda **_: None)
    grow()
    outbox.enqueue("checkpoint", 1)
    started = sender.Sender(outbox, [journal])
    try:
        assert uploaded.wait(20)
    finally:
        started.end()


def test_a_training_process_counts_denormal_numbers_as_zero_in_all_its_threads() -> None:
    """They made steps of the CNN 16 times slower once units had died; a new process, as threads take it from their parent."""
    code = """
import torch
from pipeline.distributed import process_group
torch.set_num_threads(2)
with process_group("cpu"):
    tiny = torch.full((1_000_000,), 1e-39)
    assert not (tiny * 1.0).any() and not (tiny[:10] * 1.0).any()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100, env=os.environ | {"OMP_NUM_THREADS": "2"})


@pytest.mark.slow
def test_a_whole_run_builds_its_model_once(cache_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what has shapes and no values: a large network takes its time. It is trained, evaluated, exported and proven."""
    import models
    from pipeline.cli import main

    devices, build = [], models.build

    def counted(*arguments: Any, **more: Any) -> Any:
        devices.append(torch.get_default_device().type)
        return build(*arguments, **more)

    monkeypatch.setattr(models, "build", counted)
    flags = [
        "--model",
        "lenet",
        "--epochs",
        "1",
        "--max_steps",
        "3",
        "--precision",
        "auto",
        "--output_dir",
        str(tmp_path / "run"),
    ]
    assert main(["run", *flags, "--cache_dir", str(cache_dir)]) == 0
    assert devices.count("cpu") == 1 and set(devices) <= {"cpu", "meta"}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_row_of_a_table_costs_no_python(suffix: str, tmp_path: Path) -> None:
    """From the file to the tensors all work is on whole columns and blocks of rows, in any thread."""

    def calls(num_rows: int) -> int:
        path = tmp_path / f"{num_rows}.{suffix}"
        rng = np.random.default_rng(0)
        x = rng.normal(size=num_rows)
        table = pa.table({
            "x": pa.array(x, mask=x > 1), "k": rng.integers(0, 9, num_rows), "y": rng.integers(0, 2, num_rows),
            "t": np.array(["a", "b", "", "c"], object)[rng.integers(0, 4, num_rows)],
        })  # fmt: skip
        csv.write_csv(table, path) if suffix == "csv" else parquet.write_table(table, path)
        config = resolve({"model": "mlp", "dataset": str(path), "target": "y", "cache_dir": str(tmp_path)})
        found = itertools.count()

        def seen(frame: Any, event: str, argument: Any) -> None:
            if event in ("call", "c_call"):
                next(found)

        threading.setprofile(seen)
        sys.setprofile(seen)
        try:
            prepare(config)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
        return next(found)

    calls(1_000)  # imports
    few, many = calls(10_000), calls(60_000)
    assert few > 500 and many - few < 0.1 * 50_000


def test_a_table_is_prepared_without_torch(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,y\n" + "1,a\n2,b\n" * 30)
    words = ["prepare", "--model", "mlp", "--dataset", str(tmp_path / "t.csv"), "--target", "y", "--cache_dir", str(tmp_path)]
    script = f"""
import sys
from pipeline.cli import main
assert main({words!r}) == 0
print(sorted({{"torch", "matplotlib", "mlflow"}} & {{*sys.modules}}))
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_image_is_opened_for_its_header_and_for_its_pixels_and_written_by_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(40):
        path = tmp_path / "own" / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(k).integers(0, 256, (30 + k, 30, 3), dtype=np.uint8)  # files of different sizes
        Image.fromarray(pixels).save(path)
    counts: Counter[str] = Counter()
    for owner, name in ((Image, "open"), (os, "pwrite")):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, _real=real, _name=name, **k: counts.update([_name]) or _real(*a, **k))
    prepare(resolve({"model": "cnn", "dataset": str(tmp_path / "own"), "image_size": "28", "cache_dir": str(tmp_path / "c")}))
    assert counts == {"open": 80, "pwrite": 40}
