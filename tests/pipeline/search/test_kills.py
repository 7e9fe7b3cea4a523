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

from tests.conftest import read_rows
from tests.pipeline.search.searches import report, words

SEED = 20_261_127
STEPS = 20  # of an epoch


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


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("storage", ["journal", "sqlite"])
def test_a_worker_killed_in_a_trial_gives_it_back_and_the_search_is_the_same(
    storage: str, tmp_path: Path, cache_dir: Path
) -> None:
    rows = _run(tmp_path, cache_dir, storage, 1, "SIGKILL", timeout=280)
    assert {row["status"] for row in rows} == {-signal.SIGKILL}


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("storage", ["journal", "sqlite"])
def test_of_two_workers_on_one_study_the_other_finishes_the_trial_of_the_killed_one(
    storage: str, tmp_path: Path, cache_dir: Path
) -> None:
    """And both take part: no trial is done twice, and there is one winner."""
    place = f"sqlite:///{tmp_path}/study.db" if storage == "sqlite" else str(tmp_path / "study.journal")
    line = words(tmp_path / "search", cache_dir, "--storage", place, trials=6)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    script = "import sys; from pipeline.cli import main; from tests.faults.inject import arm; "
    script += "arm('step', 30, after=True, kind='SIGKILL'); sys.exit(main(sys.argv[1:]))"
    processes = [
        subprocess.Popen(
            [sys.executable, *start, *line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for start in (["-c", script], ["-m", "pipeline"])
    ]
    said = [process.communicate(timeout=500) for process in processes]
    assert [process.returncode for process in processes] == [-signal.SIGKILL, 0], said
    assert [trial["state"] in ("complete", "pruned") for trial in report(tmp_path / "search")["trials"]] == [True] * 6
    assert len({trial["mlflow_run_id"] for trial in report(tmp_path / "search")["trials"]}) == 6
    assert len(list((tmp_path / "search").glob("winner-*/export/parity.json"))) == 1
    for folder in (tmp_path / "search").glob("trial-*"):
        steps = [row["step"] for row in read_rows(folder) if "train/loss" in row]
        assert steps == sorted(set(steps)) and steps, folder


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_leave_each_trial_at_the_same_step(tmp_path: Path, cache_dir: Path) -> None:
    line = words(tmp_path / "search", cache_dir, "--epochs", "4", "--pruner", "hyperband", trials=8)
    script = (
        "import sys; from pipeline import distributed; "
        "sys.exit(distributed.launch(['tests.pipeline.search.ranks', sys.argv[1], *sys.argv[2:]], 2))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), *line], capture_output=True, text=True, timeout=580, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = ((tmp_path / f"rank{rank}").read_text().split() for rank in range(2))
    trials = report(tmp_path / "search")["trials"]
    assert first == second == [str(trial["epochs"] * STEPS) for trial in trials] + [first[-1]]
    assert {trial["state"] for trial in trials} == {"complete", "pruned"}
