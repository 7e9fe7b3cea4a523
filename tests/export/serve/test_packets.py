"""What is written one after the other is sent as one packet, and nothing waits for what does not come."""

from __future__ import annotations

import asyncio
from typing import Any

from export.serve.packets import Packets


class _Transport:
    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes) -> None:
        assert not self.is_closed
        self.sent.append(data)

    def close(self) -> None:
        self.is_closed = True

    def get_extra_info(self, name: str) -> str:
        return name


def _after(*calls: Any) -> _Transport:
    """Return the transport after these calls in one turn of the event loop, and another turn."""

    async def write() -> _Transport:
        packets = Packets(transport := _Transport(), asyncio.get_running_loop())  # type: ignore[arg-type]
        assert packets.get_extra_info("peername") == "peername"
        for call in calls:
            call(packets)
        await asyncio.sleep(0)
        return transport

    return asyncio.run(write())


def test_a_head_and_a_body_are_one_packet() -> None:
    found = _after(lambda p: p.write(b"head "), lambda p: p.write(b"body"), lambda p: p.write(b""))
    assert found.sent == [b"head body"] and not found.is_closed


def test_what_stays_alone_is_sent_in_this_turn() -> None:
    assert _after(lambda p: p.write(b"100 Continue")).sent == [b"100 Continue"]
    assert _after(*(lambda p, k=k: p.write(b"%d" % k) for k in range(5))).sent == [b"01", b"23", b"4"]


def test_nothing_is_lost_where_the_connection_is_closed() -> None:
    found = _after(lambda p: p.write(b"last"), lambda p: p.close())
    assert found.sent == [b"last"] and found.is_closed
