"""What holds on a CPU holds on a GPU: the same curve, files that are proven, ends by a signal that lose nothing.

`pytest -m gpu tests/test_gpu.py` on a machine with one; TRAINYARD_TEST_DEVICE=cpu rehearses it without.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SHORT, read_rows
from tests.trainings import CLOCKS, same_weights

DEVICE = os.environ.get("TRAINYARD_TEST_DEVICE", "cuda")
HALF = [] if DEVICE == "cpu" else ["fp16"]
pytestmark = [pytest.mark.gpu, pytest.mark.timeout(400)]


def _train(command: Any, folder: str, cache_dir: Path, *flags: str, verb: str = "train", device: str = DEVICE) -> Path:
    done = command(verb, "--output_dir", folder, "--cache_dir", cache_dir, "--device", device, *flags, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(folder)


def _points(folder: Path) -> dict[tuple[int, str], float]:
    return {(r["step"], k): v for r in read_rows(folder) for k, v in r.items()
            if k.startswith(("train/loss", "train/epoch_loss", "val/loss"))}  # fmt: skip


@pytest.mark.parametrize("model", SHORT)
def test_a_run_on_the_gpu_is_proven_and_draws_the_curve_of_the_cpu(model: str, command: Any, cache_dir: Path) -> None:
    flags = ["--model", model, "--epochs", SHORT[model], "--precision", "fp32"]
    run = _train(command, "gpu", cache_dir, *flags, verb="run")
    assert json.loads((run / "export" / "parity.json").read_text())["passed"]
    cache = ["--cache_dir", cache_dir]
    for verb, more in (("evaluate", [*cache, "--device", DEVICE]), ("export", []), ("verify", cache)):
        done = command(verb, "--run", run, *more)
        assert done.returncode == 0, done.stdout + done.stderr
    seen, cpu = _points(run), _points(_train(command, "cpu", cache_dir, *flags, device="cpu"))
    assert seen.keys() == cpu.keys()
    apart = {key: abs(seen[key] - cpu[key]) / max(1, abs(cpu[key])) for key in cpu}
    begin = max(value for (step, _), value in apart.items() if step <= 10)
    print(f"{model}: largest difference of {len(cpu)} losses {max(apart.values()):.1e}, in the first 10 steps {begin:.1e}")
    # sums in another order; lenet's weights changed by 1e-7 of themselves draw a curve on the CPU that is 7e-3 apart by step 40
    assert begin <= 1e-3 and max(apart.values()) <= (1e-2 if model == "lenet" else 1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", *HALF])
@pytest.mark.parametrize("model", SHORT)
def test_a_training_that_was_ended_by_a_signal_goes_on_bit_for_bit(
    model: str, precision: str, command: Any, cache_dir: Path
) -> None:
    """SIGKILL, and SIGTERM, each after the first checkpoint; and the same training twice has the same bits."""
    epochs = "60" if model not in ("cnn", "lenet") else "6"
    dropout = ["--model_args", "dropout=0.3"] if model in ("cnn", "lenet", "mlp") else []  # drawn within the graph
    flags = [*dropout, "--model", model, "--epochs", epochs, "--precision", precision, "--dataset", _dataset_of(model),
             "--checkpoint_every", "4"]  # fmt: skip
    whole = _train(command, "whole", cache_dir, *flags)
    again = _train(command, "again", cache_dir, *flags)
    assert same_weights(whole / "last.safetensors", again / "last.safetensors"), "two runs of one command differ"
    for number in (signal.SIGKILL, signal.SIGTERM):
        folder = Path(f"run-{number}")
        words = ["train", *flags, "--output_dir", str(folder), "--cache_dir", str(cache_dir), "--device", DEVICE]
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        deadline = time.monotonic() + 200
        while process.poll() is None and time.monotonic() < deadline:
            if any(folder.glob("checkpoints/step-*.json")):
                process.send_signal(number)
                break
            time.sleep(0.002)
        out, _ = process.communicate(timeout=100)
        assert process.returncode == (-9 if number == signal.SIGKILL else 143), out
        _train(command, str(folder), cache_dir, "--resume", "true")
        assert same_weights(whole / "last.safetensors", folder / "last.safetensors"), f"{number.name}: resumed otherwise"
        strip = [{k: v for k, v in r.items() if k not in CLOCKS} for r in read_rows(folder) if "train/loss" in r]
        assert strip == [{k: v for k, v in r.items() if k not in CLOCKS} for r in read_rows(whole) if "train/loss" in r]


def _dataset_of(model: str) -> str:
    from models.recipes import recipe

    return str(recipe(model, "default")["dataset"])


@pytest.mark.parametrize(
    "flags", [["--precision", "auto"], ["--compile", "true"], ["--precision", "bf16", "--num_workers", "2"]]
)
def test_other_ways_to_compute_are_proven_too(flags: list[str], command: Any, cache_dir: Path) -> None:
    run = _train(command, "run", cache_dir, "--epochs", "2", *flags, verb="run")
    assert json.loads((run / "export" / "parity.json").read_text())["passed"]


@pytest.mark.parametrize(("backend", "ranks"), [("nccl", 1), ("gloo", 1), ("gloo", 2)])
def test_a_process_group_computes_what_one_process_does(backend: str, ranks: int, cache_dir: Path, tmp_path: Path) -> None:
    """NCCL takes one rank for a GPU, so one rank is what it is tried with; two on one GPU talk over gloo."""
    if DEVICE == "cpu" and backend == "nccl":
        backend = "gloo"

    def seen(name: str, nproc: int, by: str) -> Any:
        folder = tmp_path / name
        folder.mkdir()
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}", "-m"]
        done = subprocess.run(
            [*words, "tests.gpu_worker", by, DEVICE, folder, cache_dir],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        return json.loads((folder / "seen.json").read_text())

    alone, group = seen("alone", 1, "gloo"), seen("group", ranks, backend)
    for case, expected in alone.items():
        found = group[case]
        pairs = list(zip(expected["losses"] + expected["val"], found["losses"] + found["val"], strict=True))
        worst = max(abs(a - b) / max(1, abs(a)) for a, b in pairs)
        begin = max(abs(a - b) / max(1, abs(a)) for a, b in pairs[:3])
        print(
            f"{backend} {ranks}, {case}: largest difference of {len(pairs)} figures {worst:.2g}, of the first three {begin:.2g}"
        )
        # images that are read between pixels and mixed: what rounding begins, the steps make larger
        assert begin <= 1e-4 and worst <= (1e-2 if case == "mixed images" else 1e-4)


def test_torchrun_with_one_rank_is_the_same_training(command: Any, cache_dir: Path) -> None:
    flags = ["--epochs", "2", "--precision", "fp32"]
    plain = _train(command, "plain", cache_dir, *flags)
    words = ["--standalone", "--nproc-per-node=1", "-m", "pipeline", "train", "--output_dir", "torchrun", "--cache_dir"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words, str(cache_dir), "--device", DEVICE, *flags],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert same_weights(plain / "last.safetensors", Path("torchrun/last.safetensors"))


def test_more_ranks_than_gpus_are_refused_with_a_sentence(command: Any, cache_dir: Path) -> None:
    done = command("train", "--device", "cuda", "--nproc", "9", "--cache_dir", cache_dir, "--output_dir", "run")
    assert done.returncode == 2 and ("GPU" in done.stderr or "CUDA" in done.stderr)
    assert not Path("run").exists()
