"""A team's MLflow on loopback, from deploy/: PostgreSQL, a server that speaks S3 (moto), and MLflow with passwords.

Each of them can be killed, stopped and started again, and each way between them can be cut: clients to MLflow, MLflow to S3.
"""

from __future__ import annotations

import base64
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.servers import free_port

COMPOSE = ROOT / "deploy" / "compose.yaml"
SERVER = ROOT / "deploy" / "mlflow-server.sh"
SECRETS = {
    "POSTGRES_PASSWORD": "pg-5e1f0c2d", "S3_SECRET_KEY": "s3-77ab10e9", "MLFLOW_AUTH_ADMIN_PASSWORD": "admin-Zq-90c1e2",
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "flask-3b1d",
}  # fmt: skip
USERS = {"ada": "ada-Yx-41d0b7aa", "grace": "grace-Wk-c07e55f1"}
_PATIENCE = 300.0  # s; a busy machine needs a minute for MLflow alone
_NOT_ROOT = ("postgres", "nobody")  # PostgreSQL refuses to run as root


def needed() -> None:
    """Skip a test where PostgreSQL is not installed; where a team's tests are required, fail."""
    missing = [name for name in ("postgres", "initdb") if not shutil.which(name)]
    if missing and os.environ.get("TRAINYARD_TEAM_TESTS") != "required":
        pytest.skip(f"a team's MLflow was not tried: PostgreSQL ({' and '.join(missing)}) is not on the PATH")
    assert not missing, f"{' and '.join(missing)} not on the PATH, and the tests of a team's MLflow are required here"


def waited(what: str, ready: Callable[[], bool], log: Path | None = None, *, seconds: float = _PATIENCE) -> None:
    """Wait until something is so; fail with the end of a log if it never is."""
    deadline = time.monotonic() + seconds
    while not ready():
        told = log.read_text(errors="replace")[-3000:] if log and log.exists() else ""
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s\n{told}"
        time.sleep(0.05)


class Service:
    """A process that listens on a port of its own, and that can end and begin again there."""

    def __init__(
        self, words: list[str], folder: Path, environment: dict[str, str], *, port: int, address: str = "127.0.0.1"
    ) -> None:
        self.words, self.folder, self.environment, self.port, self.address = words, folder, environment, port, address
        self.log = folder / f"{Path(words[-1]).name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert not self._process
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.words, stdout=log, stderr=log, cwd=self.folder, env=self.environment, start_new_session=True
            )
        waited(f"port {self.port}", self._listens, self.log)

    def _listens(self) -> bool:
        assert self._process and self._process.poll() is None, self.log.read_text(errors="replace")[-3000:]
        with socket.socket() as probe:
            return probe.connect_ex((self.address, self.port)) == 0

    def send(self, number: signal.Signals) -> None:
        """Signal the process and all that it has started."""
        assert self._process
        os.killpg(self._process.pid, number)

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it, if it runs, and wait until it is gone."""
        if self._process:
            with suppress(ProcessLookupError):
                self.send(number)
            self._process.wait(timeout=60)
            self._process = None


class Wire:
    """Carries bytes between whoever connects and a port, until it is cut: then connections break, and new ones are refused.

    With a `pause` it carries a kilobyte, and rests so many seconds before the next.
    """

    pause = 0.0

    def __init__(self, to: int) -> None:
        self._to, self.port = to, free_port()
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.mend()

    def mend(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=256)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        if self._listener:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes whoever waits in accept
            self._listener.close()
            self._listener = None
        with self._lock:
            for each in self._open:
                with suppress(OSError):
                    each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, as of a lost way
                    each.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._to), timeout=10)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            left = [2]
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(a, b, left, (near, far)), daemon=True).start()

    def _carry(self, a: socket.socket, b: socket.socket, left: list[int], both: tuple[socket.socket, ...]) -> None:
        with suppress(OSError):
            while content := a.recv(1 << (10 if self.pause else 16)):
                time.sleep(self.pause)
                b.sendall(content)
        with suppress(OSError):
            b.shutdown(socket.SHUT_WR)
        with self._lock:
            left[0] -= 1
            if not left[0]:
                self._open -= set(both)
                for each in both:
                    each.close()


@dataclass(frozen=True)
class Team:
    """The servers, and the ways between them."""

    postgres: Service
    s3: Service
    mlflow: Service
    clients: Wire  # to MLflow
    files: Wire  # MLflow's, to S3

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.clients.port}"

    def variables(self, user: str, password: str = "") -> dict[str, str]:
        """Return MLflow's variables of a user."""
        return {
            "MLFLOW_TRACKING_URI": self.uri, "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": password or USERS[user],
        }  # fmt: skip

    def ask(self, path: str, body: dict[str, Any], *, version: int = 2) -> Any:
        """Ask MLflow something as its administrator."""
        known = base64.b64encode(f"admin:{SECRETS['MLFLOW_AUTH_ADMIN_PASSWORD']}".encode()).decode()
        headers = {"Authorization": f"Basic {known}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.uri}/api/{version}.0/mlflow/{path}", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"{}")

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Ask the database itself."""
        import psycopg2

        with psycopg2.connect(_database(self.postgres.port)) as database, database.cursor() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())

    def bucket(self) -> Any:
        """Return the bucket as S3 itself has it."""
        import boto3

        return boto3.resource(
            "s3", endpoint_url=f"http://127.0.0.1:{self.s3.port}", region_name="us-east-1", aws_access_key_id="mlflow",
            aws_secret_access_key=SECRETS["S3_SECRET_KEY"],
        ).Bucket("mlflow")  # fmt: skip

    def answers(self) -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.mlflow.port}/health", timeout=2).close()
        except OSError:
            return False
        return True

    def crash_postgres(self) -> None:
        """End the database as a crash would, and start it again; it listens before it has recovered from its log."""
        import psycopg2

        def recovered() -> bool:
            try:
                return bool(self.rows("SELECT 1"))
            except psycopg2.OperationalError:
                return False

        self.postgres.end(signal.SIGQUIT)
        self.postgres.start()
        waited("PostgreSQL", recovered, self.postgres.log)

    def start_mlflow(self) -> None:
        self.mlflow.start()
        waited("MLflow", self.answers, self.mlflow.log)


def _database(port: int) -> str:
    return f"postgresql://mlflow:{SECRETS['POSTGRES_PASSWORD']}@127.0.0.1:{port}/mlflow"


def mlflow_variables(*, places: dict[str, str], folder: Path, port: int) -> dict[str, str]:
    """Return what compose.yaml gives MLflow's container, with loopback in the place of the other containers."""
    text = json.dumps(yaml.safe_load(COMPOSE.read_text())["services"]["mlflow"]["environment"])
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", r"\2", text)
    text = re.sub(r"\$\{(\w+)(:\?[^}]*)?\}", lambda found: SECRETS[found[1]], text)
    for known, here in places.items():
        assert known in text, f"compose.yaml does not name {known}"
        text = text.replace(known, here)
    given = {name: str(value) for name, value in json.loads(text).items()}
    return given | {"MLFLOW_HOST": "127.0.0.1", "MLFLOW_PORT": str(port), "MLFLOW_WORKERS": "2",
                    "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini")}  # fmt: skip


@contextmanager
def _postgres() -> Iterator[Service]:
    """Make a new PostgreSQL, that asks for passwords, in a folder of the user that it runs as."""
    user = next(u for u in pwd.getpwall() if u.pw_name in _NOT_ROOT) if os.getuid() == 0 else None
    run_as = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--"] if user else []
    port, folder = free_port(), Path(tempfile.mkdtemp(prefix="trainyard-postgres-"))
    try:
        (folder / "password").write_text(SECRETS["POSTGRES_PASSWORD"])
        if user:
            for path in (folder, folder / "password"):
                shutil.chown(path, user.pw_uid)
        words = ["initdb", "-D", str(folder / "data"), "-U", "mlflow", "-A", "scram-sha-256", "--pwfile",
                 str(folder / "password"), "-E", "UTF8", "--locale=C", "--no-sync"]  # fmt: skip
        subprocess.run([*run_as, *words], check=True, timeout=120, cwd=folder, capture_output=True)
        settings = ["listen_addresses=127.0.0.1", f"port={port}", "unix_socket_directories="]
        words = [*run_as, "postgres", *(f"-c{each}" for each in settings), "-D", str(folder / "data")]
        service = Service(words, folder, dict(os.environ), port=port)
        service.start()
        try:
            waited("PostgreSQL", lambda: _makes_database(port), service.log)
            yield service
        finally:
            service.end()
    finally:
        shutil.rmtree(folder)


def _makes_database(port: int) -> bool:
    import psycopg2

    try:
        database = psycopg2.connect(_database(port).rpartition("/")[0] + "/postgres")
    except psycopg2.OperationalError:
        return False
    database.autocommit = True
    with database.cursor() as cursor:
        cursor.execute("CREATE DATABASE mlflow")
    database.close()
    return True


@contextmanager
def team(folder: Path) -> Iterator[Team]:
    """Run all of it; yield it with its users made."""
    needed()
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "AWS_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with _postgres() as postgres:
        words = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(s3_port := free_port())]
        s3 = Service(words, folder, clean, port=s3_port)
        s3.start()
        files = Wire(s3_port)
        places = {"@postgres:5432": f"@127.0.0.1:{postgres.port}", "http://s3:7070": f"http://127.0.0.1:{files.port}"}
        variables = mlflow_variables(places=places, folder=folder, port=(port := free_port()))
        mlflow = Service(["sh", str(SERVER)], folder, clean | variables | {"PATH": path}, port=port)
        made = Team(postgres, s3, mlflow, Wire(port), files)
        try:
            made.start_mlflow()
            for user, password in USERS.items():
                made.ask("users/create", {"username": user, "password": password})
            yield made
        finally:
            for wire in (made.clients, files):
                wire.cut()
            for service in (mlflow, s3):
                service.end()
