"""No wrong request is answered as if it were right, none brings the server down, and none sees a traceback."""

from __future__ import annotations

import io
import json
import random
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.export.serve.conftest import MakeOnnx
from tests.export.serve.serving import Server, served

Request = tuple[str, Any, dict[str, str]]
ROW = {"age": 20.0, "member": True, "since": "2020-01-01", "city": "Rome"}
SEED = 19


def _png(height: int = 9, width: int = 12, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _bomb(kind: str, side: int) -> bytes:
    """Return a small file of a large image."""
    file = io.BytesIO()
    more = {"compression": "tiff_deflate"} if kind == "TIFF" else {}
    Image.new("1" if kind != "GIF" else "P", (side, side)).save(file, kind, **more)
    assert len(file.getvalue()) < 1_000_000
    return file.getvalue()


def _tensor(**changes: Any) -> dict[str, Any]:
    return {"name": "input", "shape": [1, 3, 8, 8], "datatype": "UINT8", "data": [7] * 192} | changes


def _with_one(value: Any, source: random.Random) -> list[Any]:
    data: list[Any] = [7] * 192
    data[source.randrange(192)] = value
    return data


def _bad_numbers() -> list[Any]:
    return [None, "7", "x", True, False, 256, -1, 0.5, 1e300, 10**30, [7], [], {}, {"a": 1}]


def _images(source: random.Random) -> Iterator[Request]:
    whole = _png()
    for _ in range(24):
        yield "/predict", whole[: source.randrange(len(whole) * 3 // 4)], {}
        yield "/predict", source.randbytes(source.randrange(1, 500)), {"Content_Type": "image/png"}
    for place in range(16, 29):  # of a PNG's head, whose checksum notices it
        yield "/predict", whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :], {}
    yield from (
        ("/predict", _bomb(kind, side), {})
        for kind in ("PNG", "GIF", "TIFF")
        for side in (6_000, 10_000, 20_000)
        if kind != "GIF" or side < 20_000
    )
    yield "/predict", b"", {}
    yield "/predict", whole, {"Content_Encoding": "gzip"}
    yield "/predict", b"\0" * 100_000_000, {}
    yield "/v2/models/model/infer", b"\0" * 20_000_000, {}
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        yield "/predict", None if method == "GET" else whole, {"method": method}
    for path in (
        "/nowhere",
        "/predict/",
        "/v2/models/other/infer",
        "/v2/models/model/versions/2/infer",
        "/../etc/passwd",
        "//",
    ):
        yield path, whole, {}


def _texts(source: random.Random, good: dict[str, Any], path: str) -> Iterator[Request]:
    """Yield what is no JSON, made from a good body."""
    text = json.dumps(good)
    for _ in range(24):
        yield path, text[: source.randrange(1, len(text))], {}
    for odd in ("[" * 200_000, "{" * 10_000, text.replace("7", "NaN", 1), text.replace("7", "Infinity", 1), text + "]",
                text.replace('"', "'"), "null", "3", '"x"', "[]", "{}", "[1, 2]", "\ufeff" + text):  # fmt: skip
        yield path, odd.encode(), {}
    yield path, text.encode("utf-16"), {}
    yield path, b"\xff\xfe" + text.encode(), {}
    yield path, b'{"instances": "\xc3\x28"}', {}


def _arrays(source: random.Random) -> Iterator[Request]:
    infer, good = "/v2/models/model/infer", {"inputs": [_tensor()]}
    yield from _texts(source, good, infer)
    yield from _texts(source, {"instances": np.full((1, 3, 8, 8), 7).tolist()}, "/predict")
    for value in _bad_numbers():
        yield infer, {"inputs": [_tensor(data=_with_one(value, source))]}, {}
        yield "/predict", {"instances": np.array(_with_one(value, source), object).reshape(1, 3, 8, 8).tolist()}, {}
    for shape in ([1], [1, 3, 8], [1, 3, 8, 9], [0, 3, 8, 8], [-1, 3, 8, 8], [1, 1, 8, 24], [1, 3, 8, 8, 1], [], None, "x",
                  [True, 3, 8, 8],
                  [1.0, 3, 8, 8], [1 << 40, 3, 8, 8], [1, 3, 1 << 30, 1 << 30], [2, 3, 8, 8]):  # fmt: skip
        yield infer, {"inputs": [_tensor(shape=shape)]}, {}
    for change in ({"datatype": "FP32"}, {"datatype": 3}, {"datatype": None}, {"name": "x"}, {"name": 3},
                   {"data": None},
                   {"data": []}, {"data": "7" * 192}, {"data": [7] * 191}, {"data": [[7] * 192]},
                   {"data": [[7], [7, 7]]}):  # fmt: skip
        yield infer, {"inputs": [_tensor(**change)]}, {}
    for inputs in (None, [], {}, "input", [_tensor(), _tensor()], [3], [_tensor(), _tensor(name="y")]):
        yield infer, {"inputs": inputs}, {}
    for outputs in (None, [], "logits", [{"name": "nothing"}], [{"name": "logits"}, {"name": "logits"}], ["logits"], [{}]):
        yield infer, good | {"outputs": outputs}, {}
    yield infer, good | {"id": 3}, {}
    for instances in (None, [], {}, "x", 3, [[]], [[[]]], [1, 2], [[1, 2], [3]], [None], [{}], [{"b64": "x"}], [["x"]]):
        yield "/predict", {"instances": instances}, {}
    yield "/predict", {"rows": [[1]], "instances": [[1]]}, {}


def _tables(source: random.Random) -> Iterator[Request]:
    yield "/predict", _png(), {}
    yield from _texts(source, {"rows": [ROW | {"age": 7}]}, "/predict")
    for name in ROW:
        yield "/predict", {"rows": [{k: v for k, v in ROW.items() if k != name}]}, {}
        yield "/predict", {"rows": [ROW, {k: v for k, v in ROW.items() if k != name} | {name.upper(): 1}]}, {}
        for value in ([], [1], {}, {"a": 1}):
            yield "/predict", {"rows": [ROW | {name: value}]}, {}
            yield "/predict", {"rows": [ROW, ROW | {name: value}, ROW]}, {}
    for name, values in {
        "age": ["x", 10**400, "1e999", "NaN?"],
        "member": [2, "perhaps", -1],
        "since": ["2020-13-01", 3, "x", True],
    }.items():
        for value in values:
            yield "/predict", {"rows": [ROW | {name: value}]}, {}
            yield "/predict", {"rows": [ROW | {name: value}, ROW]}, {}
    yield "/predict", '{"rows": [{"age": 1e999, "member": true, "since": null, "city": "x"}]}', {}
    yield "/predict", '{"rows": [{"age": 1, "member": true, "since": null, "city": "\\ud800"}]}', {}
    for rows in (None, [], {}, "x", [None], [[20, True, 3, "Rome"]], [ROW, None], [3]):
        yield "/predict", {"rows": rows}, {}
    infer = "/v2/models/model/infer"
    tensors = [{"name": n, "datatype": "FP64", "shape": [1, 1], "data": [1]} for n in ("age", "member", "since")]
    city = {"name": "city", "datatype": "BYTES", "shape": [1, 1], "data": ["Rome"]}
    for change in (
        {"data": [1]},
        {"data": ["a", "b"]},
        {"data": [["a", "b"]]},
        {"data": ["\ud800"]},
        {"shape": [1]},
        {"shape": [2, 1]},
        {"datatype": "FP64"},
    ):
        yield infer, {"inputs": [*tensors, city | change]}, {}
    for data in (["x"], [True], [1, 2], [10**400], [[1, 2]], [{}]):
        yield infer, {"inputs": [tensors[0] | {"data": data}, *tensors[1:], city]}, {}
    yield infer, {"inputs": tensors}, {}
    yield infer, '{"inputs": [{"name": "age", "datatype": "FP64", "shape": [1, 1], "data": [1e999]}]}', {}


def _all_refused(server: Server, requests: Iterator[Request]) -> Counter[int]:
    statuses: Counter[int] = Counter()
    for path, body, more in requests:
        status, content = server.ask(path, body, **more)
        assert 400 <= status < 500, (status, path, str(body)[:300], content[:300])
        error = json.loads(content)["error"]
        assert isinstance(error, str) and len(error) > 15 and "Traceback" not in error and ".py" not in error, content
        statuses[status] += 1
    return statuses


@pytest.mark.timeout(300)
def test_more_than_200_wrong_requests_about_images_get_no_answer_and_a_right_one_stays_the_same(make_onnx: MakeOnnx) -> None:
    with served(make_onnx(side=8), max_body_mb=16) as server:
        right = ("/predict", _png()), ("/v2/models/model/infer", {"inputs": [_tensor()]})
        before = [server.ask(*each) for each in right]
        statuses = _all_refused(server, _images(random.Random(SEED)))
        statuses += _all_refused(server, _arrays(random.Random(SEED)))
        assert [server.ask(*each) for each in right] == before and {status for status, _ in before} == {200}
        assert statuses.total() >= 200 and set(statuses) == {400, 404, 405, 413, 415}, statuses
        assert _garbage(server) == b"HTTP/1.1 400"
        assert _endless_head(server) < 16_000_000, "a head of any length was taken"
        asks_for_http2 = {
            "Connection": "Upgrade, HTTP2-Settings",
            "Upgrade": "h2c",
            "HTTP2_Settings": "AAMAAABkAAQAoAAAAAIA",
        }
        assert server.ask("/predict", _png(), **asks_for_http2) == before[0], "Java's client asks so at first"
        assert server.ask("/v2/health/ready")[0] == 200
    print(f"{statuses.total()} wrong requests: {dict(statuses)}")


def _garbage(server: Server) -> bytes:
    """Send what is no HTTP, and return the beginning of the answer."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        return connection.recv(12)


def _endless_head(server: Server) -> int:
    """Send a head that does not end, and return how many bytes were taken before the connection was closed."""
    sent = 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection, suppress(OSError):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nx: ")
        while sent < 64_000_000:
            connection.sendall(b"y" * 65_536)
            sent += 65_536
    return sent


@pytest.mark.timeout(300)
def test_wrong_rows_of_a_table_get_no_answer_and_a_right_one_stays_the_same(table_onnx: Path) -> None:
    with served(table_onnx) as server:
        before = server.ask("/predict", {"rows": [ROW]})
        statuses = _all_refused(server, _tables(random.Random(SEED)))
        assert server.ask("/predict", {"rows": [ROW]}) == before and before[0] == 200
        assert statuses.total() >= 100, statuses
    print(f"{statuses.total()} wrong requests: {dict(statuses)}")
