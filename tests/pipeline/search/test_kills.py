"""A worker that is killed or stopped in a trial gives it back, and another one ends the search as if nothing had been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SEED = 20_261_127


def _run(folder: Path, cache_dir: Path, storage: str, count: int, *kinds: str, timeout: float) -> list[dict[str, Any]]:
    arguments = ["-m", "tests.pipeline.search.killer", folder, cache_dir, storage, count, SEED, *kinds]
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    errors = (folder / "errors").read_text() if (folder / "errors").exists() else ""
    assert done.returncode == 0, done.stderr + errors
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"search"')]
    assert len(rows) == count and [row for row in rows if not row["same"]] == [], errors[-2000:]
    return rows


@pytest.mark.timeout(300)
@pytest.mark.parametrize("storage", ["journal", "sqlite"])
def test_a_worker_killed_in_a_trial_gives_it_back_and_the_search_is_the_same(
    storage: str, tmp_path: Path, cache_dir: Path
) -> None:
    rows = _run(tmp_path, cache_dir, storage, 1, "SIGKILL", timeout=280)
    assert {row["status"] for row in rows} == {-signal.SIGKILL}


@pytest.mark.timeout(300)
def test_ctrl_c_stops_after_the_step_and_the_same_command_goes_on_bit_for_bit(tmp_path: Path, cache_dir: Path) -> None:
    (row,) = _run(tmp_path, cache_dir, "journal", 1, "SIGINT", timeout=280)
    assert row["status"] == 130
    said = next(tmp_path.glob("search0/trial-*/run.log")).parent.parent
    logs = "".join(path.read_text() for path in said.glob("trial-*/run.log"))
    assert logs.count("the checkpoint is written. Go on with:") == 1 and " search --model mlp " in logs


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("storage", "count"), [("journal", 60), ("sqlite", 20)])
def test_many_kills_at_any_place(storage: str, count: int, tmp_path: Path, cache_dir: Path) -> None:
    rows = _run(tmp_path, cache_dir, storage, count, "SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM", timeout=3500)
    killed = sum(row["status"] == -signal.SIGKILL for row in rows)
    stopped = sum(row["status"] == 143 for row in rows)
    print(f"seed {SEED}, {storage}: {killed} SIGKILLs and {stopped} SIGTERMs in {len(rows)} searches, all the same bit for bit")
    assert killed >= 0.5 * count and stopped >= 0.15 * count  # a shot may aim behind the last call of its hook
