"""Twenty trainings at once into a team's MLflow whose servers die and whose ways are cut: nothing is lost, nothing doubled."""

from __future__ import annotations

import hashlib
import json
import math
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline import manifest
from pipeline.cli import main
from pipeline.run import Run
from pipeline.tracking import runs, sender
from pipeline.tracking.sender import NOT_METRICS
from tests.conftest import ROOT
from tests.team import SECRETS, USERS, Team, team, waited

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

NUMBER = 20
AT_ONCE = 5  # that begin: 20 that ask for the first time at once take a server of half a core more than 10 s
EPOCHS = 10
BEHIND = "Send it later: python -m pipeline sync --run run"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, session_folder: Path) -> Iterator[Team]:
    with team(tmp_path_factory.mktemp("team")) as made:
        yield made


@pytest.fixture
def as_user(servers: Team, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that has this process speak to the team's MLflow as somebody."""

    def become(user: str, password: str = "") -> None:
        for name, value in servers.variables(user, password).items():
            monkeypatch.setenv(name, value)
        runs.configure(check=False)

    yield become
    monkeypatch.undo()
    runs.configure()


class _Fleet:
    """Twenty folders, in each of which a command begins at the same moment, again and again; they can be held and let go."""

    def __init__(self, folders: list[Path], variables: list[dict[str, str]], cache_dir: Path) -> None:
        self.folders, self._variables = folders, variables
        with Path("fleet.log").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.fleet", str(cache_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=log, text=True, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )  # fmt: skip

    def begin(self, words: list[list[str]]) -> None:
        jobs = [
            {"folder": str(f), "words": w, "variables": v} for f, w, v in zip(self.folders, words, self._variables, strict=True)
        ]
        assert self._process.stdin
        for folder in self.folders:
            (folder / "pid").unlink(missing_ok=True)
        self._process.stdin.write(json.dumps(jobs) + "\n")
        self._process.stdin.flush()

    def release(self, folders: list[Path]) -> None:
        """Have those begin."""
        waited("forks", lambda: all((folder / "pid").exists() for folder in folders), Path("fleet.log"), seconds=600)
        for folder in folders:
            os.kill(int((folder / "pid").read_text()), signal.SIGUSR1)

    def hold(self, folder: Path) -> None:
        """Stop one of them where it is."""
        os.kill(int((folder / "pid").read_text()), signal.SIGSTOP)

    def go_on(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)

    def said(self, text: str) -> int:
        """Return how many of them have said something."""
        return sum(text in (folder / "said").read_text() for folder in self.folders if (folder / "said").exists())

    def num_missing(self) -> int:
        """Return how many miss MLflow now: it is told once, and so is that it answers again."""
        texts = [(folder / "said").read_text() for folder in self.folders]
        return sum(text.rfind("does not take the metrics") > text.rfind("MLflow answers again") for text in texts)

    def ended(self) -> bool:
        """Tell whether all have ended, so that `statuses` does not wait."""
        return bool(select.select([self._process.stdout], [], [], 0)[0])

    def statuses(self) -> list[int]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, Path("fleet.log").read_text()[-3000:]
        return list(json.loads(line))

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate(timeout=60)


def test_twenty_trainings_at_once_lose_nothing_and_double_nothing(servers: Team, tmp_path: Path, cache_dir: Path) -> None:
    """They begin five at a time, the first in an experiment that is not there yet, and each is held as soon as it trains. Then
    all go on at one moment. While they train, MLflow is killed and PostgreSQL crashes, both come back, and the way is cut until
    the end. All twenty send what is left at one moment, through the same faults and a cut way to S3, and at last without."""
    folders = [tmp_path / f"{number:02}" for number in range(NUMBER)]
    for folder in folders:
        folder.mkdir()
    short = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
    fleet = _Fleet(folders, [servers.variables(user) | short for user in list(USERS) * (NUMBER // len(USERS))], cache_dir)
    try:
        _train_through_faults(servers, fleet, cache_dir)
        _send_through_faults(servers, fleet)
    finally:
        fleet.kill()
    for folder in folders:
        told = (folder / "said").read_text()
        assert "Traceback" not in told and not any(secret in told for secret in (*SECRETS.values(), *USERS.values())), told
    points = sum(_holds_what_the_folder_holds(servers, folder / "run") for folder in folders)
    files = sum(_has_the_files_of(servers, folder / "run") for folder in folders)
    names = [name for (name,) in servers.rows("SELECT name FROM experiments WHERE lifecycle_stage = 'active'")]
    (runs_there,) = servers.rows("SELECT count(*), count(*) FILTER (WHERE status = 'FINISHED') FROM runs")
    assert runs_there == (NUMBER, NUMBER) and sorted(names) == ["Default", "moons"]
    print(f"{NUMBER} runs, {points} points and {files} files: each is there once, and is the one of its run folder")


def _train_through_faults(servers: Team, fleet: _Fleet, cache_dir: Path) -> None:
    words = ["train", "--model", "two_layer", "--batch_size", "8", "--epochs", str(EPOCHS), "--precision", "fp32",
             "--output_dir", "run", "--cache_dir", str(cache_dir)]  # fmt: skip
    fleet.begin([[*words, "--seed", str(number)] for number in range(NUMBER)])
    ready, begun, held = list(fleet.folders), set[Path](), set[Path]()

    def hold_whoever_trains() -> bool:
        assert not fleet.ended(), fleet.statuses()
        while ready and len(begun) < AT_ONCE:
            fleet.release(ready[:1])
            begun.add(ready.pop(0))
        for folder in [folder for folder in begun if _num_rows(folder)]:
            fleet.hold(folder)
            begun.remove(folder)
            held.add(folder)
        return len(held) == NUMBER

    waited("twenty trainings", hold_whoever_trains, seconds=1200)
    servers.mlflow.end(signal.SIGKILL)
    fleet.go_on()
    waited("senders that miss MLflow", lambda: fleet.ended() or fleet.num_missing() >= NUMBER // 2)
    servers.start_mlflow()
    servers.crash_postgres()
    servers.clients.cut()
    assert fleet.statuses() == [0] * NUMBER, [(folder / "said").read_text()[-500:] for folder in fleet.folders]
    missed, behind = fleet.said("does not take the metrics"), fleet.said(BEHIND)
    print(f"{missed} of {NUMBER} told that MLflow was away, {behind} had something left at the end")
    assert missed >= NUMBER // 2 and behind


def _send_through_faults(servers: Team, fleet: _Fleet) -> None:
    """Have all send at one moment: while MLflow is killed and PostgreSQL crashes, without a way to S3, and undisturbed."""
    servers.clients.mend()
    known = servers.rows("SELECT count(*) FROM metrics")[0][0]
    sync = [["sync", "--run", "run"]] * NUMBER
    fleet.begin(sync)
    fleet.release(fleet.folders)
    waited("metrics", lambda: fleet.ended() or servers.rows("SELECT count(*) FROM metrics")[0][0] > known)
    servers.mlflow.end(signal.SIGKILL)
    servers.crash_postgres()
    servers.start_mlflow()
    struck = fleet.statuses()
    assert set(struck) <= {0, 1, 2}  # 2: it had not begun to send
    servers.files.cut()
    fleet.begin(sync)
    fleet.release(fleet.folders)
    without_files = fleet.statuses()
    assert set(without_files) <= {0, 1}
    servers.files.mend()
    fleet.begin(sync)
    fleet.release(fleet.folders)
    assert fleet.statuses() == [0] * NUMBER, [(folder / "said").read_text()[-500:] for folder in fleet.folders]
    fleet.begin(sync)
    fleet.release(fleet.folders)
    assert fleet.statuses() == [0] * NUMBER and fleet.said("run: 0 metrics sent") == NUMBER
    crashed, cut = struck.count(0), without_files.count(0)
    print(f"of {NUMBER} that sent at once, {crashed} got through both crashes, and {cut} through a cut way to S3")


def _num_rows(folder: Path) -> int:
    path = folder / "run" / manifest.METRICS
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _points(folder: Path) -> list[tuple[str, int, int, float]]:
    """Return the points of a run's journals: name, step, time in ms, value."""
    rows = [json.loads(line) for name in manifest.JOURNALS for line in (folder / name).read_text().splitlines()]
    found = [(n, int(r["step"]), int(r["time"]), float(v)) for r in rows for n, v in r.items() if n not in NOT_METRICS]
    assert found and all(math.isfinite(point[3]) for point in found)
    return sorted(found)


def _holds_what_the_folder_holds(servers: Team, folder: Path) -> int:
    """Hold the database's points of a run against its journals; return their number."""
    run_id = Run.open(folder).mlflow_run_id
    there = servers.rows(f"SELECT key, step, timestamp, value FROM metrics WHERE run_uuid = '{run_id}'")
    expected = _points(folder)
    assert sorted(there) == expected, folder
    assert len(set(expected)) == len(expected)
    status = servers.rows(f"SELECT status, lifecycle_stage FROM runs WHERE run_uuid = '{run_id}'")
    assert status == [("FINISHED", "active")]
    seed = servers.rows(f"SELECT value FROM params WHERE run_uuid = '{run_id}' AND key = 'seed'")
    assert seed == [(str(Run.open(folder).config.seed),)]
    return len(expected)


def _has_the_files_of(servers: Team, folder: Path) -> int:
    """Hold what S3 itself has of a run against the run folder, by SHA-256; return the number of files."""
    run_id = Run.open(folder).mlflow_run_id
    ((uri,),) = servers.rows(f"SELECT artifact_uri FROM runs WHERE run_uuid = '{run_id}'")
    prefix = f"artifacts/{uri.removeprefix('mlflow-artifacts:/')}/"
    there = {
        each.key.removeprefix(prefix): _sha256(each.get()["Body"].read())
        for each in servers.bucket().objects.filter(Prefix=prefix)
    }
    names = {*manifest.read(folder)[1], *manifest.JOURNALS, manifest.LOG, manifest.MANIFEST}
    assert there == {name: _sha256((folder / name).read_bytes()) for name in names}
    return len(there)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# Who may do what


@pytest.mark.parametrize("user", ["ada", "nobody", ""])
def test_a_wrong_password_is_a_sentence_and_is_never_told(
    user: str, servers: Team, as_user: Any, cache_dir: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "hunter2-Zq"
    as_user(user, wrong)
    if not user:
        monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
        monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    runs_before = servers.rows("SELECT count(*) FROM runs")
    flags = ["--model", "polynomial", "--epochs", "1", "--output_dir", "run", "--cache_dir", str(cache_dir)]
    for words in (["train", *flags], ["evaluate", "--run", "0" * 32]):
        assert main(words) == 2
        out, err = capfd.readouterr()
        who = f"the user {user} with this password" if user else "anybody without a user name and a password"
        assert err == (
            f"MLFLOW_TRACKING_URI={servers.uri} does not let in {who}. Set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD as its administrator gave them to you.\n"
        )
        assert wrong not in out + err and "epoch" not in out.partition("loading")[2]
    assert not list(tmp_path.iterdir()) and servers.rows("SELECT count(*) FROM runs") == runs_before


def test_a_password_that_is_changed_while_a_model_trains_costs_nothing(
    servers: Team, as_user: Any, cache_dir: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent with the old one stays; the rest goes with `sync` and the new one."""
    as_user("ada")
    flags = ["--model", "polynomial", "--epochs", "3", "--output_dir", "run", "--cache_dir", str(cache_dir)]
    send = sender.send

    def refused(*given: Any, **words: Any) -> int:
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "the-old-one")
        return send(*given, **words)

    monkeypatch.setattr(sender, "send", refused)
    assert main(["train", *flags]) == 0
    told = capfd.readouterr()
    assert "does not take the metrics" in told.err and "401" in told.err and BEHIND in told.err
    assert main(["sync", "--run", "run"]) == 2
    told = capfd.readouterr()
    assert "does not let in the user ada" in told.err and "the-old-one" not in told.out + told.err
    monkeypatch.setattr(sender, "send", send)
    as_user("ada")
    assert main(["sync", "--run", "run"]) == 0
    assert _holds_what_the_folder_holds(servers, Path("run")) and _has_the_files_of(servers, Path("run"))


def test_what_a_colleague_may_not_do_is_told_or_left_undone(
    servers: Team, as_user: Any, cache_dir: Path, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever begins an experiment owns it. Others add to it, unless they are kept out, and do not delete in it."""
    as_user("ada")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "adas")
    number = MlflowClient().create_experiment("adas")
    as_user("grace")
    for words, said in {
        ("evaluate", "--run", "f" * 32): f"is neither a folder nor a run that can be seen at {servers.uri}.",
        ("serve", "--onnx", f"models:/m-{'0' * 32}"): "is not in MLflow at",
        ("serve", "--onnx", "models:/nobodys/1"): "is not in MLflow at",
        ("serve", "--onnx", "models:/nobodys@champion"): "is not in MLflow at",  # MLflow forbids a model that is not there
    }.items():
        assert main(list(words)) == 2 and said in capfd.readouterr().err
    run_id = runs.create_run()
    client = MlflowClient()
    (tmp_path / "model.int8.onnx").write_text("rejected")
    client.log_artifact(run_id, str(tmp_path / "model.int8.onnx"), "export")
    sender._take_back(client, run_id, "export/model.int8.onnx")
    assert [each.path for each in client.list_artifacts(run_id, "export")] == ["export/model.int8.onnx"]
    (tmp_path / "model.int8.onnx").unlink()
    grant = {"username": "grace", "resource_type": "experiment", "resource_id": number, "permission": "DENY"}
    servers.ask("users/permissions/grant", grant, version=3)
    flags = ["--model", "polynomial", "--epochs", "1", "--output_dir", "run", "--cache_dir", str(cache_dir)]
    assert main(["train", *flags]) == 2
    told = capfd.readouterr().err
    assert told.startswith(f"MLFLOW_TRACKING_URI={servers.uri} does not permit this (") and told.count("\n") == 1
    assert told.endswith("Ask its administrator, or have an experiment of your own: MLFLOW_EXPERIMENT_NAME.\n")
    assert not list(tmp_path.iterdir())
