"""A job that has done its work ends with 0: a worker that ends right after it made its group was seen to abort."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_WORKER = """
import sys
from pipeline import distributed, signals
with distributed.process_group("cpu") as ranks:
    if sys.argv[1:] == ["fail"] and ranks.rank == 1:
        signals.exit_now(7)
signals.exit_now(0)
"""
_LAUNCH = "import sys; sys.path.insert(0, '.'); from pipeline.distributed import launch; sys.exit(launch(sys.argv[1:], 2))"


def _statuses(folder: Path, count: int, *words: str) -> list[int]:
    (folder / "short.py").write_text(_WORKER)
    command = [sys.executable, "-c", _LAUNCH, "short", *words]
    jobs = [subprocess.run(command, capture_output=True, text=True, timeout=100, check=False) for _ in range(count)]
    for number, job in enumerate(jobs):  # pytest shows it where a status is not the right one
        print(f"job {number} ended with {job.returncode}\n{job.stdout}{job.stderr}")
    return [job.returncode for job in jobs]


def test_a_job_of_two_ranks_that_ends_at_once_ends_with_0_and_one_that_fails_does_not(tmp_path: Path) -> None:
    assert _statuses(tmp_path, 1) == [0]
    assert _statuses(tmp_path, 1, "fail") == [1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fifty_jobs_in_a_row_end_with_0(tmp_path: Path) -> None:
    statuses = _statuses(tmp_path, 50)
    assert statuses == [0] * 50
