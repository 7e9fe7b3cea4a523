"""Addresses that lead to no MLflow and variables that name nothing: a sentence, exit 2, nothing created. No secret is told."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline.cli import main
from pipeline.tracking import connection, runs
from tests.conftest import ROOT, all_runs
from tests.servers import mlflow_server

pytestmark = pytest.mark.timeout(200)
SECRET = "hunter2-Zq"
Told = Callable[..., str]


def _ask_a_new_database(address: str, barrier: Any) -> None:
    os.environ["MLFLOW_TRACKING_URI"] = address
    connection.configure(check=False)
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

    barrier.wait(timeout=150)
    connection.configure()


def test_several_that_ask_a_new_database_at_one_moment_all_have_it(tmp_path: Path) -> None:
    """MLflow fills it with tables at the first question, without a lock: of two at once, one fails, or both."""
    spawn, count = multiprocessing.get_context("spawn"), 3
    barrier = spawn.Barrier(count)
    asking = [
        spawn.Process(target=_ask_a_new_database, args=(f"sqlite:///{tmp_path}/new.db", barrier), daemon=True)
        for _ in range(count)
    ]
    for each in asking:
        each.start()
    for each in asking:
        each.join(timeout=180)
    assert [each.exitcode for each in asking] == [0] * count


@pytest.fixture
def told(cache_dir: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Told]:
    """Return a function that trains with MLflow's variables set, expects exit 2 and no folder, and returns what was said."""

    def start(**variables: str) -> str:
        for name, value in variables.items():
            monkeypatch.setenv(f"MLFLOW_{name}", value)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        before = set(tmp_path.iterdir())
        status = main(["train", "--model", "polynomial", "--epochs", "1", "--output_dir", "run", "--cache_dir", str(cache_dir)])
        out, err = capfd.readouterr()
        assert status == 2 and "run folder" not in out and "epoch" not in out.partition("loading")[2], err
        assert err.count("\n") == 1 and "Traceback" not in err, err
        assert set(tmp_path.iterdir()) == before
        return str(err)

    yield start
    monkeypatch.undo()
    connection.configure()


NO_DATABASE = {
    "text file": ("sqlite:///{folder}/notes.txt", "names a file that is no SQLite database. Give"),
    "folder": ("sqlite:///{folder}/sub", "names a folder that is no SQLite database"),
    "folder in a file": ("sqlite:///{folder}/notes.txt/x.db", "does not answer"),
    "unknown scheme": ("gopher://somewhere/x", "does not answer"),
    "no driver": ("postgresql+asyncpg://127.0.0.1/x", "needs the package asyncpg, which is not installed. Install it"),
    "nonsense": ("::::", "does not answer"),
    "a word": ("hello", "does not answer"),
    "no host": ("http://", "does not answer"),
    "no port": ("http://127.0.0.1:99999", "does not answer"),
    "refused": ("http://127.0.0.1:9", "does not answer"),
}


@pytest.mark.parametrize("kind", NO_DATABASE)
def test_an_address_that_leads_to_no_store_is_a_sentence(kind: str, told: Told, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("milk, bread\n" * 100)
    (tmp_path / "sub").mkdir()
    address, said = NO_DATABASE[kind]
    address = address.format(folder=tmp_path)
    line = told(TRACKING_URI=address)
    assert line.startswith(f"MLFLOW_TRACKING_URI={address} ") and said in line
    assert (tmp_path / "notes.txt").read_text().startswith("milk") and not list((tmp_path / "sub").iterdir())


@contextmanager
def _server(answer: Callable[[socket.socket, str], None]) -> Iterator[str]:
    """Listen on loopback, and have `answer` deal with each request, of which it is given the first line."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connected: socket.socket) -> None:
        with connected, suppress(OSError):  # the other side has had enough
            answer(connected, connected.recv(65536).partition(b"\r\n")[0].decode())

    def accept() -> None:
        while True:
            try:
                connected, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connected,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


def _reply(connected: socket.socket, body: bytes, kind: str = "application/json", status: str = "200 OK") -> None:
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    connected.sendall(head.encode() + body)


WRONG: dict[str, Any] = {
    "list": [], "number": 7, "text": "hello", "null": None, "nothing": {}, "experiments is a number": {"experiments": 5},
    "experiments of numbers": {"experiments": [1, 2]}, "ids are objects": {"experiments": [{"experiment_id": {}}]},
    "every key is wrong": {"experiment": [], "experiments": {}, "run": 3, "experiment_id": []},
    "a run without an id": {"experiments": [], "experiment": {"experiment_id": "1", "lifecycle_stage": "active"}, "run": {}},
    "an id that is a path": {"experiment": {"experiment_id": "1", "lifecycle_stage": "active"},
                             "run": {"info": {"run_id": "../../../x", "run_uuid": "../../../x", "experiment_id": "1"}}},
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_server_whose_json_has_other_types_is_a_sentence(kind: str, told: Told) -> None:
    with _server(lambda connected, _: _reply(connected, json.dumps(WRONG[kind]).encode())) as uri:
        assert told(TRACKING_URI=uri).startswith(f"MLFLOW_TRACKING_URI={uri} does not answer (")


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found", "500 Internal Server Error", "302 Found"])
def test_a_server_that_is_another_one_is_a_sentence(status: str, told: Told) -> None:
    with _server(lambda connected, _: _reply(connected, b"<html>hello</html>", "text/html", status)) as uri:
        for variable in ({}, {"RUN_ID": "0" * 32}):
            assert told(TRACKING_URI=uri, **variable).startswith(f"MLFLOW_TRACKING_URI={uri} does not answer (")


REFUSED = {
    "401 Unauthorized": (
        "does not let in the user me with this password. Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD as its "
        "administrator gave them to you.\n"
    ),
    "403 Forbidden": "Ask its administrator, or have an experiment of your own: MLFLOW_EXPERIMENT_NAME.\n",
}


@pytest.mark.parametrize("status", REFUSED)
def test_a_server_that_refuses_this_user_is_not_said_to_be_away(status: str, told: Told) -> None:
    with _server(lambda connected, _: _reply(connected, b"Permission denied", "text/plain", status)) as uri:
        line = told(TRACKING_URI=uri, TRACKING_USERNAME="me", TRACKING_PASSWORD=SECRET)
    assert line.startswith(f"MLFLOW_TRACKING_URI={uri} does not ") and line.endswith(REFUSED[status]) and SECRET not in line


def test_a_server_that_sends_a_byte_now_and_then_holds_nobody_up(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def drip(connected: socket.socket, _: str) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b" " * 100_000:
            connected.sendall(bytes([byte]))
            if ended.wait(0.05):
                return

    monkeypatch.setattr(connection, "_WAIT_FOR_SERVER", 1.0)
    with _server(drip) as uri:
        try:
            assert "does not answer (nothing whole came within 1 s)" in told(TRACKING_URI=uri)
        finally:
            ended.set()


def _deleted() -> dict[str, str]:
    client = MlflowClient()
    name = f"gone-{time.time_ns()}"
    number = client.create_experiment(name)
    run_id = client.create_run(client.create_experiment(f"kept-{name}")).info.run_id
    client.delete_experiment(number)
    client.delete_run(run_id)
    return {"EXPERIMENT_ID": number, "EXPERIMENT_NAME": name, "RUN_ID": run_id}


IDS = ["987654321", "f" * 32, "../../x", "'; --", "x" * 5000, "deleted"]
NAMED = [(variable, value) for variable in ("EXPERIMENT_ID", "RUN_ID") for value in IDS]


@pytest.mark.parametrize(("variable", "value"), [*NAMED, ("EXPERIMENT_NAME", "x" * 5000), ("EXPERIMENT_NAME", "deleted")])
def test_a_variable_that_names_nothing_is_blamed_itself(variable: str, value: str, told: Told) -> None:
    value = _deleted()[variable] if value == "deleted" else value
    number = len(all_runs())
    line = told(**{variable: value})
    assert line.startswith(f"MLFLOW_{variable}={value[:80]}") and "does not answer" not in line and len(line) < 400
    assert len(all_runs()) == number


def test_two_variables_that_name_two_experiments_are_refused(told: Told) -> None:
    number = MlflowClient().create_experiment(f"one-{time.time_ns()}")
    assert "MLFLOW_EXPERIMENT_NAME says other. Unset one of them." in told(EXPERIMENT_ID=number, EXPERIMENT_NAME="other")


@pytest.mark.parametrize("text", ["f" * 32, "no-such-run", "'; drop table", "x" * 200, "runs:x", "%00"])
def test_a_run_that_is_not_there_is_no_fault_of_the_address(text: str, capsys: Any) -> None:
    assert main(["evaluate", "--run", text]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"run={text[:100]}") and "does not answer" not in err and err.count("\n") == 1


# Secrets


ADDRESSES = [
    f"http://user:{SECRET}@127.0.0.1:9", f"https://{SECRET}@127.0.0.1:9/path", f"http://user:{SECRET}/with/slash@127.0.0.1:9",
    f"http://us%40er:{SECRET}%2F%40@127.0.0.1:9", f"http://127.0.0.1:9/?token={SECRET}",
    f"postgresql://user:{SECRET}@127.0.0.1:9/db", f"postgresql+nosuch://user:{SECRET}@127.0.0.1/db",
    f"mysql+pymysql://user:{SECRET}@127.0.0.1:9/db?ssl_key=x", f"postgresql://127.0.0.1:9/db?user=me&password={SECRET}",
    f"sqlite:////proc/nowhere/x.db?password={SECRET}", f"gopher://user:{SECRET}@somewhere", f"//user:{SECRET}@somewhere",
    f"user:{SECRET}@somewhere",
]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_the_password_in_an_address_is_never_told(address: str, told: Told) -> None:
    line = told(TRACKING_URI=address)
    assert SECRET not in line and line.startswith("MLFLOW_TRACKING_URI=") and "***" in line


TEXTS = {
    f"cannot clone https://me:{SECRET}@git.example/x.git": "cannot clone https://***@git.example/x.git",
    f"https://{SECRET}@git.example/x.git, and http://a:{SECRET}@b": "https://***@git.example/x.git, and http://***@b",
    "ssh://git@git.example/x.git and git@git.example:x.git": "ssh://git@git.example/x.git and git@git.example:x.git",
    f"host=db user=me password={SECRET} port=5": "host=db user=me password=*** port=5",
    f"GET /x?a=1&api_key={SECRET}&b=2": "GET /x?a=1&api_key=***&b=2",
    f"https://blob.example/x?sv=1&sig={SECRET}": "https://blob.example/x?sv=1&sig=***",
    "sqlite:////home/me@work/mlflow.db": "sqlite:////home/me@work/mlflow.db",
}


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_loses_its_secrets_and_nothing_else(text: str) -> None:
    assert connection.redacted(text) == TEXTS[text]


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline" / "tracking").glob("*.py")), ids=lambda path: path.stem)
def test_what_mlflow_says_and_where_it_is_are_told_through_one_file(path: Path) -> None:
    raw = re.findall(r"str\(error\)|repr\(error\)|error!r|\buri\(\)|get_tracking_uri", path.read_text())
    assert path.stem == "connection" or not raw, "use connection.first_line and connection.shown"


def test_logs_and_tracebacks_tell_no_password(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    address = f"http://user:{SECRET}@127.0.0.1:9"
    connection.configure(check=False)
    logging.getLogger("mlflow.store").warning("cannot reach %s", address)
    try:
        raise ValueError(address)
    except ValueError as error:
        logging.getLogger("mlflow.store").exception("no")
        sys.excepthook(ValueError, error, error.__traceback__)
    told = capfd.readouterr().err
    assert told.count("http://***@127.0.0.1:9") >= 3 and SECRET not in told


def _everything_in(folder: Path) -> bytes:
    """Return all files of a folder, a database as its rows: its file keeps what was overwritten."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "db"]
    rows = "\n".join(sqlite3.connect(folder / "db").iterdump()) if (folder / "db").exists() else ""
    return b"".join(path.read_bytes() for path in files) + rows.encode()


SOURCE = {"name": f"https://me:{SECRET}@git.example/x.git#sub", "git.repoURL": f"https://{SECRET}@g/x"}  # as `mlflow run` notes
CONTEXT = json.dumps({"ci.url": f"https://ci:{SECRET}@ci.example/7"})


def test_the_tags_of_a_run_hold_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_CONTEXT", CONTEXT)
    client = MlflowClient()
    wrapper = client.create_run("0", tags={f"mlflow.source.{k}": v for k, v in SOURCE.items()}).info.run_id
    tags = client.get_run(runs.create_run()).data.tags
    monkeypatch.setenv("MLFLOW_RUN_ID", wrapper)
    assert runs.create_run() == wrapper
    tags |= client.get_run(wrapper).data.tags
    assert tags["ci.url"] == "https://***@ci.example/7" and tags["mlflow.source.name"] == "https://***@git.example/x.git#sub"
    assert tags["mlflow.source.git.repoURL"] == "https://***@g/x"


@pytest.mark.slow
def test_a_whole_run_leaves_the_password_nowhere(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, cache_dir: Path, command: Any
) -> None:
    """Neither in what is printed, nor in the run folder, nor anywhere in the server's database and artifacts."""
    server = tmp_path_factory.mktemp("server")
    with mlflow_server(server) as address:
        uri = address.replace("http://", f"http://user:{SECRET}@")
        client = MlflowClient(address)
        wrapper = client.create_run("0", tags={f"mlflow.source.{k}": v for k, v in SOURCE.items()}).info.run_id
        variables = {"MLFLOW_TRACKING_URI": uri, "MLFLOW_RUN_ID": wrapper, "MLFLOW_RUN_CONTEXT": CONTEXT}
        flags = ["--model", "polynomial", "--epochs", "2", "--cache_dir", cache_dir, "--output_dir", "run"]
        done = command("run", *flags, timeout=180, **variables)
        assert done.returncode == 0, done.stderr
        assert SECRET not in done.stdout + done.stderr
    for folder in (tmp_path, server):
        found = _everything_in(folder)
        at = found.find(SECRET.encode())
        assert at < 0, found[max(0, at - 300) : at + 100]
