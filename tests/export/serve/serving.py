"""A real `serve` in a process of its own, on loopback; whoever waits for it waits for its words."""

from __future__ import annotations

import http.client
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATIENCE = 60  # s


@dataclass
class Server:
    """Where it answers, and what it says."""

    process: subprocess.Popen[str]
    said: list[str] = field(default_factory=list)
    lines: queue.SimpleQueue[str] = field(default_factory=queue.SimpleQueue)
    port: int = 0

    def wait_for(self, text: str) -> str:
        """Return the first line from now on that holds a text."""
        while text not in (line := self.lines.get(timeout=PATIENCE)):
            assert line, self.said
        return line

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)

    def ask(self, path: str, body: Any = None, *, method: str = "", **headers: str) -> tuple[int, bytes]:
        """Return the status and the body of an answer; a body that is no text or bytes is sent as JSON."""
        connection = self.connection()
        try:
            content = body if body is None or isinstance(body, (bytes, str)) else json.dumps(body)
            given = {name.replace("_", "-"): text for name, text in headers.items()}
            connection.request(method or ("GET" if body is None else "POST"), path, content, given)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def predict(self, body: Any) -> list[dict[str, Any]]:
        status, content = self.ask("/predict", body)
        assert status == 200, content
        found = json.loads(content)["predictions"]
        assert isinstance(found, list)
        return found

    def infer(self, inputs: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """Ask the model `model` by the protocol, and return its outputs by name."""
        status, content = self.ask("/v2/models/model/infer", {"inputs": inputs, **more})
        assert status == 200, content
        return {each["name"]: each for each in json.loads(content)["outputs"]}

    def metrics(self) -> dict[str, float]:
        _, content = self.ask("/metrics")
        lines = [line for line in content.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=PATIENCE)


@contextmanager
def served(onnx: Path | str, *, code: str = "", **flags: object) -> Iterator[Server]:
    """Serve a file on a free port; `code` replaces `-m pipeline`. It is stopped, and has to end well, if it still runs."""
    more = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    program = ["-c", code] if code else ["-m", "pipeline"]
    process = subprocess.Popen(
        [sys.executable, *program, "serve", "--onnx", str(onnx), "--port", "0", *more],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    server = Server(process)

    def listen() -> None:
        assert process.stdout
        for line in process.stdout:
            server.said.append(line.rstrip())
            server.lines.put(line)
        server.lines.put("")

    reader = threading.Thread(target=listen, daemon=True)
    reader.start()
    try:
        found = re.search(r"on http://127\.0\.0\.1:(\d+) ", server.wait_for("serving "))
        assert found, server.said
        server.port = int(found[1])
        yield server
        if process.poll() is None:
            assert server.stop() == 0, server.said
    finally:
        process.kill()
        process.wait(timeout=PATIENCE)
        reader.join(timeout=PATIENCE)
    assert not any("Traceback" in line for line in server.said), server.said
