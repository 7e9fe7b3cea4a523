"""Under load: the bits of an answer never hang on its neighbors, every wait has an end, and what was taken is answered."""

from __future__ import annotations

import json
import random
import signal
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from export.serve import model as models
from tests.export.conftest import Trained
from tests.export.serve.conftest import MakeOnnx
from tests.export.serve.serving import PATIENCE, Server, served
from tests.export.serve.test_bits import mixing_onnx, vector_onnx

VECTOR = {"instances": [[1.0, 2.0, 3.0]]}


def slow_onnx(path: Path, steps: int) -> Path:
    """Write a file that adds 1 to its input so many times, one after the other."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Add", ["x", "one"], ["y"]), helper.make_node("Identity", ["go"], ["still"])],
        "body", [value("k", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("x", TensorProto.FLOAT, None)],
        [value("still", TensorProto.BOOL, []), value("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    constants = [
        helper.make_tensor("steps", TensorProto.INT64, [], [steps]),
        helper.make_tensor("one", TensorProto.FLOAT, [], [1.0]),
    ]
    return vector_onnx(path, [helper.make_node("Loop", ["steps", "", "input"], ["logits"], body=body)], constants)


def _until(server: Server, name: str, value: float) -> None:
    """Ask for a metric until it has a value."""
    end = time.monotonic() + PATIENCE
    while server.metrics()[name] != value:
        assert time.monotonic() < end, server.metrics()


def _asked_at_once(server: Server, bodies_: list[bytes], path: str, clients: int = 32) -> list[bytes]:
    """Return the answers to all bodies, which so many clients send at once, each over its own connection."""
    start = threading.Barrier(clients)
    found: list[bytes] = [b""] * len(bodies_)

    def client(number: int) -> None:
        connection = server.connection()
        start.wait(PATIENCE)
        for place in range(number, len(bodies_), clients):
            connection.request("POST", path, bodies_[place])
            answer = connection.getresponse()
            found[place] = answer.read()
            assert answer.status == 200, found[place]
        connection.close()

    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(client, number) for number in range(clients)]:
            done.result(timeout=PATIENCE)
    return found


def test_32_clients_at_once_get_the_bits_that_each_sample_has_alone(exports: Callable[[str], Trained]) -> None:
    onnx_file = exports("cnn").run.folder / "export" / "model.onnx"
    model = models.load(onnx_file, threads=1)
    x = np.random.default_rng(5).integers(0, 256, (320, *model.input_shape), dtype=np.uint8)
    names = ["logits", "probabilities", "features"]
    sent = [
        json.dumps(
            {"inputs": [{"name": "input", "datatype": "UINT8", "shape": [1, *each.shape], "data": each.ravel().tolist()}]}
        )
        for each in x
    ]
    for flags in ({"max_delay_ms": 5, "num_threads": 3}, {}):  # by threads, and by the event loop
        with served(onnx_file, max_queue=1000, **flags) as server:
            for answer, each in zip(_asked_at_once(server, [s.encode() for s in sent], "/v2/models/cnn/infer"), x, strict=True):
                for found, expected in zip(json.loads(answer)["outputs"], model.run(names, [each[None]]), strict=True):
                    assert np.array(found["data"], np.float32).tobytes() == expected.tobytes()
            seen = server.metrics()
            assert seen["trainyard_batch_samples_sum"] == 320
            assert seen['trainyard_requests_total{path="/v2/models/cnn/infer",status="200"}'] == 320
            assert any("few samples" in line for line in server.said) == (not flags)


def test_samples_that_would_change_each_other_are_never_computed_together(tmp_path: Path) -> None:
    """And many samples of one request neither."""
    onnx_file = mixing_onnx(tmp_path / "mixing.onnx")
    model = models.load(onnx_file, threads=1)
    x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
    with served(onnx_file, max_delay_ms=5) as server:
        sent = [json.dumps({"instances": [each]}).encode() for each in x.tolist()]
        alone = [json.loads(answer)["predictions"][0] for answer in _asked_at_once(server, sent, "/predict")]
        assert alone == server.predict({"instances": x.tolist()})
        for answer, each in zip(alone, x, strict=True):
            expected = model.answer([each[None]]).values[0]
            assert np.array(list(answer["probabilities"].values()), np.float32).tobytes() == expected.tobytes()
        assert server.metrics()["trainyard_batch_samples_count"] == 128


def test_requests_that_wait_are_computed_together_and_one_too_many_gets_429(table_onnx: Path) -> None:
    row = {"rows": [{"age": 20, "member": True, "since": "2020-01-01", "city": "Rome"}]}
    with served(table_onnx, max_queue=2, max_delay_ms=50_000, timeout_ms=59_000, num_threads=1) as server:
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(server.predict, row) for _ in range(2)]
            _until(server, "trainyard_queue_requests", 2)
            connection = server.connection()
            connection.request("POST", "/predict", json.dumps(row))
            answer = connection.getresponse()
            assert answer.status == 429 and answer.headers["Retry-After"] == "1" and json.loads(answer.read())["error"]
            assert server.ask("/v2/health/ready")[0] == 200
            started = time.monotonic()
            assert server.stop() == 0  # what waits for company is answered at once
            assert [each.result(timeout=PATIENCE)[0]["prediction"] for each in waiting] == ["dog", "dog"]
            assert time.monotonic() - started < 30
        assert any("stopping" in line for line in server.said) and "stopped: " in server.said[-1]
        with pytest.raises(OSError):
            server.ask("/v2/health/live")


def test_requests_in_flight_are_answered_after_sigterm(tmp_path: Path) -> None:
    with served(slow_onnx(tmp_path / "slow.onnx", 200_000), max_batch=1, num_threads=1, timeout_ms=50_000) as server:
        with ThreadPoolExecutor(4) as pool:
            flying = [pool.submit(server.ask, "/predict", VECTOR) for _ in range(4)]
            _until(server, "trainyard_inside_requests", 5)
            assert server.stop() == 0
            assert [each.result(timeout=PATIENCE)[0] for each in flying] == [200] * 4
        assert server.said[-1].startswith("stopped: ")


def test_an_answer_that_takes_too_long_is_a_504_and_the_server_goes_on(tmp_path: Path) -> None:
    with served(slow_onnx(tmp_path / "slow.onnx", 200_000), max_batch=1, timeout_ms=20, num_threads=1) as server:
        for _ in range(3):
            status, content = server.ask("/predict", VECTOR)
            assert status == 504 and "in time" in json.loads(content)["error"]
        assert server.ask("/v2/health/live")[0] == 200
        assert server.metrics()['trainyard_requests_total{path="/predict",status="504"}'] == 3
        assert server.stop() == 0


def _sent_raw(server: Server, head: str, body: bytes = b"") -> bytes:
    """Send a head and a body as they are, and return all that comes back."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
        connection.sendall(f"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{head}\r\n".encode() + body)
        found = b""
        while part := connection.recv(4096):
            found += part
    return found


def test_a_body_that_is_too_large_or_too_slow_is_refused(make_onnx: MakeOnnx) -> None:
    with served(make_onnx(shape=(3,)), max_body_mb=1, timeout_ms=5000) as server:
        assert server.ask("/predict", b"x" * 1_000_001)[0] == 413
        assert server.ask("/predict", b"x" * 60_000_000)[0] == 413
        chunks = b"".join(b"%x\r\n%s\r\n" % (1 << 16, b"x" * (1 << 16)) for _ in range(20)) + b"0\r\n\r\n"
        assert _sent_raw(server, "Transfer-Encoding: chunked\r\n", chunks).startswith(b"HTTP/1.1 413")
        asked = _sent_raw(server, "Content-Length: 99000000\r\nExpect: 100-continue\r\n")
        assert asked.startswith(b"HTTP/1.1 413"), asked
        assert _sent_raw(server, "Content-Length: 100\r\n", b"{").startswith(b"HTTP/1.1 408")
        good = json.dumps(VECTOR).encode()
        whole = good + b" " * (1_000_000 - len(good))
        assert server.ask("/predict", whole)[0] == 200


def test_the_metrics_count_each_request_once(make_onnx: MakeOnnx) -> None:
    with served(make_onnx(shape=(3,))) as server:
        before = server.metrics()
        assert before['trainyard_model_info{model="model",version="1",task="multiclass"}'] == 1
        for _ in range(3):
            server.predict({"instances": [[1, 2, 3], [4, 5, 6]]})
        assert server.ask("/predict", b"{")[0] == 400
        assert server.ask("/nowhere")[0] == 404
        seen = server.metrics()
        requests = {name: value for name, value in seen.items() if name.startswith("trainyard_requests_total")}
        expected = {("/predict", 200): 3, ("/predict", 400): 1, ("other", 404): 1, ("/metrics", 200): 1}
        for (path, status), count in expected.items():
            assert requests.pop(f'trainyard_requests_total{{path="{path}",status="{status}"}}') == count
        assert not requests
        assert seen["trainyard_batch_samples_sum"] == 6
        assert seen["trainyard_model_seconds_count"] == seen["trainyard_batch_samples_count"] >= 3
        assert seen['trainyard_request_seconds_count{path="/predict"}'] == 4
        buckets = [value for name, value in seen.items() if name.startswith('trainyard_request_seconds_bucket{path="/predict"')]
        assert buckets == sorted(buckets) and buckets[-1] == 4
        assert seen["trainyard_inside_requests"] == 1 and seen["trainyard_queue_requests"] == 0


def test_many_samples_of_many_requests_come_back_to_their_own(make_onnx: MakeOnnx) -> None:
    source = random.Random(0)
    onnx_file = make_onnx(shape=(3,))
    model = models.load(onnx_file, threads=1)
    counts = [source.randrange(1, 40) for _ in range(64)]
    x: list[Any] = [np.random.default_rng(k).normal(size=(count, 3)).astype(np.float32) for k, count in enumerate(counts)]
    with served(onnx_file, max_delay_ms=3, max_batch=64) as server:
        sent = [json.dumps({"instances": each.tolist()}).encode() for each in x]
        for answer, each in zip(_asked_at_once(server, sent, "/predict"), x, strict=True):
            found = [list(one["probabilities"].values()) for one in json.loads(answer)["predictions"]]
            expected = np.concatenate([model.answer([row[None]]).values for row in each])
            assert np.array(found, np.float32).tobytes() == expected.tobytes()


def test_a_body_that_was_on_its_way_at_sigterm_is_answered(make_onnx: MakeOnnx) -> None:
    body = json.dumps(VECTOR).encode()
    for flags in ({}, {"num_threads": 1}, {"num_threads": 1, "max_delay_ms": 100}):
        with served(make_onnx(shape=(3,)), **flags) as server:
            with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
                connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:5])
                _until(server, "trainyard_inside_requests", 2)
                server.process.send_signal(signal.SIGTERM)
                server.wait_for("stopping")
                connection.sendall(body[5:])
                assert connection.recv(4096).startswith(b"HTTP/1.1 200")
            assert server.process.wait(timeout=PATIENCE) == 0
