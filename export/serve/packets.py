"""Connections that send an answer's head and body as one packet: a call of the system less, and a wait for the interpreter.

uvicorn writes the two one after the other, and each write lets the threads that compute take the interpreter.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


class Packets:
    """A transport that keeps what is written to it for what is written next, and no longer than this turn of the event loop."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop, self._kept = transport, loop, b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._kept:
            kept, self._kept = self._kept, b""
            self._transport.write(kept + data)
        elif data:
            self._kept = data
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        if self._kept:
            kept, self._kept = self._kept, b""
            self._transport.write(kept)

    def close(self) -> None:
        self._send()
        self._transport.close()


class Protocol(H11Protocol):
    """uvicorn's, on such transports."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Packets(transport, self.loop))  # type: ignore[arg-type]
