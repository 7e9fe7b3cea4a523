"""A disk that is full or read-only, for real: small file systems of their own. Needs root to mount them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.checkpoint import newest_checkpoint
from pipeline.cli import main
from pipeline.data.spill import scratch
from pipeline.errors import Failure
from pipeline.run import Run
from tests.conftest import read_rows
from tests.disks import fill, mount, small_disk

pytestmark = pytest.mark.timeout(200)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    with small_disk(tmp_path / "disk") as folder:
        yield folder


def _train(folder: Path, cache_dir: Path, *flags: str) -> subprocess.Popen[str]:
    words = ["--model", "two_layer", "--batch_size", "4", "--epochs", "20", "--checkpoint_every", "100"]
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "train", *words, "--output_dir", str(folder), "--cache_dir", str(cache_dir), *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def _wait_for_epoch(process: subprocess.Popen[str], epoch: int) -> None:
    assert process.stdout
    for line in process.stdout:
        if line.startswith(f"epoch {epoch}/"):
            return
    raise AssertionError("the training ended early")


def test_a_disk_without_room_is_told_before_anything_is_created(disk: Path, cache_dir: Path, capsys: Any) -> None:
    (disk / "ballast").write_bytes(bytes(10_000_000))
    assert main(["train", "--model", "mlp", "--output_dir", str(disk / "run"), "--cache_dir", str(cache_dir)]) == 2
    told = capsys.readouterr().err
    assert "its disk has 15 MB left, and this training writes about 20 MB. Make room, or give a folder" in told
    assert not (disk / "run" / "config.json").exists()


def test_a_read_only_disk_is_told_before_anything_is_created(disk: Path, cache_dir: Path, capsys: Any) -> None:
    """One that becomes read-only in mid-run: tests/faults/test_kills.py has EROFS at every hook of a save."""
    mount("-o", "remount,ro", str(disk))
    assert main(["train", "--model", "mlp", "--output_dir", str(disk / "run"), "--cache_dir", str(cache_dir)]) == 2
    assert f"output_dir={disk / 'run'} cannot be written (Read-only file system)" in capsys.readouterr().err


def test_no_room_for_the_order_of_many_samples_is_told(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It lies in a mapped file: without room set apart for it, the first page written too many would kill the process."""
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    with pytest.raises(Failure, match=rf"order of 10,000,000 samples needs 40 MB in {disk} \(No space left.*set TMPDIR"):
        scratch((10_000_000,), torch.int32)
    assert len(scratch((5_000_000,), torch.int32)) == 5_000_000


def test_a_full_disk_under_the_cache_says_so_and_keeps_no_half_of_it(disk: Path, capsys: Any) -> None:
    (disk / "ballast").write_bytes(bytes(24_000_000))
    flags = ["prepare", "--model", "cnn", "--cache_dir", str(disk / "cache")]
    assert main(flags) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"cache_dir={disk / 'cache'}: its disk has ") and "1,797 samples of 1 x 28 x 28 need 1 MB" in told
    assert told.count("\n") == 1 and "give another --cache_dir" in told
    assert [path.name for path in (disk / "cache").iterdir() if not path.name.endswith(".lock")] == []
    (disk / "ballast").unlink()
    assert main(flags) == 0


@pytest.mark.slow
def test_a_disk_that_fills_up_in_mid_run_fails_the_save_and_keeps_the_checkpoint_before(disk: Path, cache_dir: Path) -> None:
    """The training goes on in memory; what could not be saved in the end is a failure; with room again, it goes on."""
    run = disk / "run"
    process = _train(run, cache_dir)
    try:
        _wait_for_epoch(process, 3)
        fill(disk)
        _, told = process.communicate(timeout=150)
    finally:
        process.kill()
    assert process.returncode == 1 and "Traceback" not in told, told
    assert "No space left on device); the one before it is kept, and training goes on" in told
    assert "Free some space or fix the permissions, then rerun with --resume true." in " ".join(told.split())
    before = newest_checkpoint(run, run_id=Run.open(run, check=False).mlflow_run_id)
    assert before and 100 <= before[1]["state"]["step"] < 3200
    (disk / "ballast").unlink()
    assert main(["train", "--output_dir", str(run), "--resume", "true", "--cache_dir", str(cache_dir)]) == 0
    steps = [row["step"] for row in read_rows(Run.open(run).folder) if "train/loss" in row]
    assert steps == list(range(10, 3201, 10))
