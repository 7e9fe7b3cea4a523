"""One, two and three gloo processes do the same training in float32: real processes, started as a user's are."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.distributed import single_process
from tests.pipeline.distributed_worker import CASES, STOP_AT, run_cases, train_in_parts

_LAUNCH = "import sys; from pipeline.distributed import launch; sys.exit(launch(sys.argv[2:], int(sys.argv[1])))"


Seen = Callable[[int], dict[str, Any]]
WORLDS = [2, pytest.param(3, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Seen:
    """Return a function that says what so many ranks saw."""
    result: dict[int, dict[str, Any]] = {}
    parts = tmp_path_factory.mktemp("parts")

    def by(world: int) -> dict[str, Any]:
        if world in result:
            return result[world]
        if world != 2:
            by(2)  # which stop in the middle of an epoch; one and three go on, each from there
            shutil.copytree(parts / "on2", parts / f"on{world}")
        folder = tmp_path_factory.mktemp(f"ranks{world}")
        if world == 1:
            result[1] = run_cases(folder, str(cache_dir), single_process())
            for name in ("on1", "whole"):
                result[1][name] = train_in_parts(parts / name, str(cache_dir), single_process(), stop=False)
            result[1]["parts"] = result[1].pop("on1")
            return result[1]
        words = [str(world), "tests.pipeline.distributed_worker", str(folder), str(cache_dir), str(parts / f"on{world}")]
        done = subprocess.run([sys.executable, "-c", _LAUNCH, *words], capture_output=True, text=True, timeout=110, check=False)
        assert done.returncode == 0, done.stderr
        result[world] = json.loads((folder / "seen.json").read_text())
        return result[world]

    return by


@pytest.mark.timeout(300)
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", CASES)
def test_any_number_of_ranks_draws_the_same_loss_curve(seen: Seen, case: str, world: int) -> None:
    alone, together = (np.array(seen(w)[case]["losses"]) for w in (1, world))
    assert len(alone) >= 20
    np.testing.assert_allclose(together[:20], alone[:20], rtol=1e-5)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", CASES)
def test_evaluation_counts_each_sample_once_on_any_number_of_ranks(seen: Seen, case: str, world: int) -> None:
    alone, together = seen(1)[case]["test"], seen(world)[case]["test"]
    for name in alone:
        assert together[name] == pytest.approx(alone[name], rel=1e-3)
    if "accuracy" in alone:  # a count of samples over the size of the split, so no sample was padded or left out
        hits = together["accuracy"] * seen(world)[case]["num_test"]
        assert hits == pytest.approx(round(hits), abs=1e-9) and together["accuracy"] == alone["accuracy"]


@pytest.mark.parametrize("world", [1, *WORLDS[1:]])
def test_a_run_stopped_on_two_ranks_goes_on_with_another_number(seen: Seen, world: int) -> None:
    """In mid-epoch, with the same global batches: the curve goes on as if nothing had happened, to rounding."""
    whole, before, after = seen(1)["whole"], seen(2)["parts"], seen(world)["parts"]
    assert len(before) == STOP_AT and len(before) + len(after) == len(whole) == 22
    np.testing.assert_allclose([*before, *after], whole, rtol=2e-5)


@pytest.mark.parametrize("world", WORLDS)
def test_a_step_exchanges_its_gradients_once_and_nothing_else(seen: Seen, world: int) -> None:
    """22 steps of a CNN whose gradients fit one bucket; sums at steps 10, 11, 20, 22, and two at the end of each epoch.

    Once DDP agrees on the layout of its bucket (two broadcasts), and at the end of an epoch there is a checkpoint.
    """
    assert seen(world)["collectives"] == {"steps": 22, "all_reduce": 22 + 8, "broadcast": 2, "all_gather": 2}


@pytest.mark.parametrize("world", WORLDS)
def test_gradients_are_the_mean_over_the_ranks_in_one_bucket_and_in_several(seen: Seen, world: int) -> None:
    small, large = seen(world)["differences"]
    assert small < 1e-5 and large < 1e-5


_RANK_0_IS_GONE = """
import os, signal
from pipeline import distributed
from pipeline.errors import Failure
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher ends the others when one is gone
try:
    with distributed.process_group("cpu") as ranks:
        distributed.gather(1)
        if ranks.is_main:
            os._exit(1)
        raise Failure("the loss diverged")
except Failure as error:
    print(f"told: {error}, {error.__context__}", flush=True)
"""


def test_a_failure_stays_itself_when_rank_0_is_gone_first(tmp_path: Path) -> None:
    """Rank 0 keeps the store on which the others wait for its last words; without them, no second error covers the first."""
    (tmp_path / "gone.py").write_text(_RANK_0_IS_GONE)
    code = "import sys; sys.path.insert(0, '.'); from pipeline.distributed import launch; sys.exit(launch(['gone'], 2))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert "told: the loss diverged, None" in done.stdout and "Traceback" not in done.stderr
