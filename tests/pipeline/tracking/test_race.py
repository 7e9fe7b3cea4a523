"""Fifty promotions at one moment over HTTP: one after the other gets in, the best one stays, and everybody is told."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline import files
from pipeline.cli import main
from pipeline.tracking import connection, history, served
from tests.export.serve.serving import served as serving
from tests.promotions import num_versions, twin, version
from tests.servers import mlflow_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

COUNT = 50


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "server").mkdir()
    with mlflow_server(tmp_path / "server") as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        connection.configure()
        yield uri
        monkeypatch.undo()
        connection.configure()


@pytest.fixture(params=["server", "sqlite"])
def store(request: pytest.FixtureRequest) -> str:
    if request.param == "server":
        request.getfixturevalue("server")
    return str(request.param)


def _figures(count: int) -> list[float]:
    """Return accuracies in no order, some of them twice."""
    values = [round(0.5 + 0.01 * (k % (count - 10)), 4) for k in range(count)]
    random.Random(19).shuffle(values)
    return values


def test_of_fifty_promotions_at_once_the_best_stays_and_each_is_told(
    proven: Path, tmp_path: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, figures = f"raced-{store}", _figures(COUNT)
    folders = {str(twin(proven, tmp_path / f"twin-{k}", accuracy=value)): value for k, value in enumerate(figures)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.pipeline.tracking.racer", name, *folders],
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ends: list[dict[str, Any]] = json.loads(done.stdout)
    assert {end["status"] for end in ends} <= {0, 1}, [end for end in ends if end["status"] not in (0, 1)]
    won = {}
    for end in ends:
        if end["status"] == 0:
            won[re.search(rf"{name}@champion is version (\d+): ", end["said"])[1]] = folders[end["folder"]]  # type: ignore[index]
        else:
            assert f"{name}@champion stays version" in end["said"] and "it has to be better" in end["said"], end
    moves = history.read(name, "champion")
    assert [move.after for move in moves] == sorted(won, key=int), "each win is in the history, and nothing else"
    assert [move.before for move in moves] == ["", *(move.after for move in moves[:-1])]
    values = [won[move.after] for move in moves]
    assert values == sorted(set(values)), "each one was better than the one before it"
    assert version(name) == moves[-1].after and values[-1] == max(figures)
    assert num_versions(name) == len(won), "who lost has registered nothing"
    assert not [each for each in MlflowClient().search_registered_models() if each.name.startswith(f"{name}.")]
    content = served.fetch(f"models:/{name}@champion")[0].read_bytes()
    (best,) = (folder for folder in folders if (Path(folder) / "export/model.onnx").read_bytes() == content)
    assert folders[best] == max(figures)
    with capsys.disabled():
        print(f"\n{store}: {COUNT} at once, {len(won)} won one after the other, {COUNT - len(won)} were told no")


def test_a_promotion_that_is_killed_while_it_holds_the_lock_hinders_the_next_for_a_minute_at_most(
    proven: Path, tmp_path: Path, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed between the move and the note of it: the alias counts."""
    first, second = (twin(proven, tmp_path / f"twin-{value}", accuracy=value) for value in (0.6, 0.7))
    code = (
        "import os, signal; from pipeline.tracking import history; from pipeline.cli import main\n"
        "history.note = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"main(['promote', '--run', {str(first)!r}, '--name', 'killed'])"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=100, env=os.environ, check=False)
    assert done.returncode == -signal.SIGKILL and version("killed") == "1"
    assert main(["promote", "--run", str(second), "--name", "killed"]) == 0
    moves = history.read("killed", "champion")
    assert [(move.before, move.after) for move in moves] == [("1", "2")] and version("killed") == "2"
    assert main(["promote", "--rollback", "true", "--name", "killed"]) == 0 and version("killed") == "1"
    assert not [each for each in MlflowClient().search_registered_models() if each.name.startswith("killed.")]


def test_somebody_who_sets_the_alias_by_hand_at_the_same_moment_is_not_overlooked(
    proven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.tracking import promotion

    first, second = (twin(proven, tmp_path / f"twin-{value}", accuracy=value) for value in (0.6, 0.7))
    assert main(["promote", "--run", str(first), "--name", "hand"]) == 0
    own, thread = promotion._set, []

    def both(name: str, alias: str, number: str) -> None:
        own(name, alias, number)
        thread.append(threading.current_thread())
        MlflowClient().set_registered_model_alias(name, alias, "1")

    monkeypatch.setattr(promotion, "_set", both)
    assert main(["promote", "--run", str(second), "--name", "hand"]) == 1
    assert "hand@champion was set to version 1 by somebody else at the same moment" in capsys.readouterr().err
    assert thread and version("hand") == "1"


def test_serve_answers_from_the_file_that_was_promoted(proven: Path, server: str, tmp_path: Path) -> None:
    folder = twin(proven, tmp_path / "twin", accuracy=0.9)
    assert main(["promote", "--run", str(folder), "--name", "answers"]) == 0
    x = [[0.5] * 30]
    with serving("models:/answers@champion") as ours, serving(folder / "export/model.onnx") as file:
        assert json.loads(ours.ask("/v2/models/answers")[1])["versions"] == ["1"]
        assert ours.predict({"instances": x}) == file.predict({"instances": x})
    path, *_ = served.fetch("models:/answers@champion")
    assert files.sha256(path) == files.sha256(folder / "export/model.onnx")
