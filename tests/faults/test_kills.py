"""A trainer killed, stopped or refused by its disk at any place loses nothing that was saved, and resumes bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SEED = 20_261_120


def _run(folder: Path, cache_dir: Path, mode: str, count: int, timeout: float) -> tuple[list[dict[str, Any]], str]:
    words = ["-m", "tests.faults.killer", str(folder), str(cache_dir), mode, str(count), str(SEED)]
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=timeout, env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [row for row in rows if not row["same"]] == []
    errors = folder / "errors"
    return rows, errors.read_text() if errors.exists() else ""


def _kill(folder: Path, cache_dir: Path, kills: int, timeout: float) -> None:
    rows, _ = _run(folder, cache_dir, "random", kills, timeout)
    killed = sum(status == -signal.SIGKILL for row in rows for status in row["statuses"])
    print(f"seed {SEED}: {len(rows)} runs, {killed} SIGKILLs inside a save, all resumed bit for bit")
    assert len(rows) == kills and killed >= 0.7 * kills  # a shot may aim behind the last call of its hook


@pytest.mark.timeout(200)
def test_a_trainer_killed_inside_a_save_resumes_bit_for_bit(tmp_path: Path, cache_dir: Path) -> None:
    _kill(tmp_path, cache_dir, kills=7, timeout=180)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_hundred_kills_inside_a_save(tmp_path: Path, cache_dir: Path) -> None:
    _kill(tmp_path, cache_dir, kills=200, timeout=1700)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("one_of", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_a_fault_at_a_hook_of_a_save_leaves_a_run_that_resumes_bit_for_bit(
    one_of: int, tmp_path: Path, cache_dir: Path
) -> None:
    """SIGKILL, a full disk and a read-only one, before and after each; a refused save is told and training goes on."""
    rows, errors = _run(tmp_path, cache_dir, "every", one_of, 280)
    assert len(rows) == -(-7 * 3 * 2 // one_of)
    for row in rows:
        (_, _, _, kind), (status,) = row["faults"][0], row["statuses"]
        assert status == (-signal.SIGKILL if kind == "SIGKILL" else 0), row
    told = [line for line in errors.splitlines() if "the one before it is kept, and training goes on" in line]
    kinds = [row["faults"][0][3] for row in rows]
    for kind, said in (("ENOSPC", "No space left on device"), ("EROFS", "Read-only")):
        assert sum(said in line for line in told) >= kinds.count(kind) / 2 > 0
    assert "child failed" not in errors


@pytest.mark.timeout(200)
@pytest.mark.parametrize("count", [pytest.param(18, marks=pytest.mark.slow), 6])
def test_a_signal_at_any_step_saves_and_resumes_bit_for_bit(count: int, tmp_path: Path, cache_dir: Path) -> None:
    rows, _ = _run(tmp_path, cache_dir, "signals", count, 180)
    print(f"seed {SEED}: {len(rows)} runs, stopped at {[row['faults'][0][1] for row in rows]}, all resumed bit for bit")
    terminated = 0
    for row in rows:
        (_, step, _, kind), (status,), (saved,) = row["faults"][0], row["statuses"], row["steps"]
        assert status == (130 if kind == "SIGINT" else 143), row
        if kind == "SIGTERM twice":
            assert saved <= step, "a second signal quits at once"
        else:  # the step after which the ranks agree: the end of a logging window, of an epoch, or where a save is due
            assert step <= saved < step + 3, row
            terminated += kind == "SIGTERM"
    assert terminated >= count / 2
