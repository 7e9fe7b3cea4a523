"""A client that asks one question over and over: `python -m benchmarks.http_load PORT PATH BODY CONNECTIONS SECONDS RATE`.

Each connection is kept. With RATE 0 each asks again as soon as it is answered. Otherwise requests are due at an even pace,
whoever is free sends the next, and its time counts from when it was due, so that a server that stops for a moment is charged
for all that had to wait. Prints JSON: answers a second, p50 and p99 in ms, and how many were no 200.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import selectors
import sys
import time
from pathlib import Path

_WARM_UP = 0.2  # of the seconds, whose answers do not count
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bool:
    """Send a request and read its answer; return whether it was a 200."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    if length:
        await reader.readexactly(int(length[1]))
    else:  # in chunks
        while True:
            size = int(await reader.readline(), 16)
            await reader.readexactly(size + 2)
            if not size:
                break
    return head.startswith(b"HTTP/1.1 200")


async def _load(port: int, request: bytes, *, connections: int, seconds: float, rate: float) -> dict[str, float]:
    times: list[tuple[float, float]] = []  # when it was answered, and after how long
    failed, due = 0, itertools.count()
    start = time.perf_counter()
    end = start + seconds

    async def client() -> None:
        nonlocal failed
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (asked := start + next(due) / rate if rate else time.perf_counter()) < end:
            if (early := asked - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            is_good = await _ask(reader, writer, request)
            failed += not is_good
            now = time.perf_counter()
            times.append((now, now - asked))
        writer.close()

    await asyncio.wait_for(asyncio.gather(*(client() for _ in range(connections))), seconds + 30)
    counted = sorted(took for when, took in times if start + _WARM_UP * seconds <= when <= end)
    quantile = {name: 1000 * counted[int(share * (len(counted) - 1))] for name, share in (("p50", 0.5), ("p99", 0.99))}
    return {"rate": len(counted) / ((1 - _WARM_UP) * seconds), **quantile, "failed": failed}


def main() -> None:
    port, path, body, connections, seconds, rate = sys.argv[1:]
    content = Path(body).read_bytes()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    found = _load(int(port), head.encode() + content, connections=int(connections), seconds=float(seconds), rate=float(rate))
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        print(json.dumps(runner.run(found)))  # epoll would wake whole milliseconds later


if __name__ == "__main__":
    main()
