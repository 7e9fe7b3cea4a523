"""A real `mlflow server` on loopback, and a proxy before it that fails in all the ways in which servers fail."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAULTS = ("refuse", "hang", "500", "cut", "lost answers", "garbage")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mlflow_server(folder: Path, *, address: str = "127.0.0.1") -> Iterator[str]:
    """Run a server that keeps its artifacts to itself; yield where it answers."""
    port = free_port()
    uri = f"http://{address}:{port}"
    words = ["server", "--host", address, "--allowed-hosts", "*", "--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/db",
             "--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # five more processes, for what is not tested here
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words], stdout=log, stderr=log, cwd=folder, env=environment,
            start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=2).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.2)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=10)


class Proxy:
    """Passes requests on to a server, until `fault` names how it is to fail."""

    def __init__(self, uri: str) -> None:
        self.server, self.fault, self.failed = uri.removeprefix("http://"), "", 0
        self.released = threading.Event()  # lets hanging requests go
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._listener: ThreadingHTTPServer | None = None
        self._listen()

    def _listen(self) -> None:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fault = proxy.fault
                proxy.failed += bool(fault)
                if fault == "hang":
                    proxy.released.wait(60)
                if fault in ("hang", "cut", "refuse"):
                    self._hang_up()
                elif fault in ("500", "garbage"):
                    self._send(500 if fault == "500" else 200, {}, b"<html>the gateway is not well</html>")
                else:
                    status, headers, content = self._pass_on(body)
                    if fault == "lost answers":
                        self._hang_up()
                    else:
                        self._send(status, headers, content)

            def _hang_up(self) -> None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

            def _pass_on(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
                inner = http.client.HTTPConnection(proxy.server, timeout=30)
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
                inner.request(self.command, self.path, body, headers)
                answer = inner.getresponse()
                content = answer.read()
                inner.close()
                return answer.status, dict(answer.headers), content

            def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _answer

            def log_message(self, *_: object) -> None: ...

        ThreadingHTTPServer.allow_reuse_address = True
        self._listener = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._listener.daemon_threads = True
        threading.Thread(target=self._listener.serve_forever, args=(0.05,), daemon=True).start()

    def fail(self, fault: str) -> None:
        """Fail from now on; "" to be well again."""
        if self._listener and fault == "refuse":
            self.close()
        self.fault = fault
        if not fault:
            self.released.set()
            if not self._listener:
                self._listen()

    def close(self) -> None:
        if self._listener:
            self._listener.shutdown()
            self._listener.server_close()
            self._listener = None
