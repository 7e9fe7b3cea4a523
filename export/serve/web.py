"""The paths of the server, and what each answers: a request is bounded in size, in time, and in how many others it may join.

Whatever goes wrong is {"error": a sentence}. A body that is too large is read to its end and thrown away, so that a client that
sends before it listens gets the answer; one that asked first (Expect: 100-continue) gets it at once.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from export.serve import bodies, protocol
from export.serve.batching import Answer, Batcher, Full, Job, told
from export.serve.bodies import Question
from export.serve.model import Model
from export.serve.telemetry import CONTENT_TYPE, Telemetry

_THROWN_AWAY = 1 << 29  # bytes of a body that is too large, before its connection is closed
_SMALL = 1 << 14  # bytes of JSON, which are read in a millisecond or so

Handle = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bytes of a body, seconds until its answer, and bodies that are being read at once."""

    max_body: int
    timeout: float
    max_reading: int


class Refused(Exception):
    """A request that gets no answer, with a status and a sentence."""

    def __init__(self, status: int, reason: str, **headers: str) -> None:
        super().__init__(reason)
        self.status, self.headers = status, {name.replace("_", "-"): text for name, text in headers.items()}


class Service:
    """A model on the web: `name` and `version` stand in its paths. `batcher` comes when the event loop runs."""

    batcher: Batcher

    def __init__(self, model: Model, telemetry: Telemetry, limits: Limits, *, name: str, version: str, server: str) -> None:
        self.model, self.telemetry, self.limits = model, telemetry, limits
        self.name, self.version, self.server = name, version, server
        self.is_ready, self.num_reading, self.num_inside = False, 0, 0

    def app(self) -> ASGIApp:
        """Return the application. It offers no schema and no pages: those of FastAPI load scripts from the network.

        What asks the model does not pass through FastAPI's layers, of which it needs none: they take a tenth of its time.
        """
        path = f"/v2/models/{self.name}"
        shown: dict[str, Handle] = {
            "/": self._overview, "/metrics": self._metrics, "/v2": self._server, "/v2/health/live": self._live,
            "/v2/health/ready": self._ready,
        }  # fmt: skip
        asked: dict[str, Handle] = {"/predict": self._predict}
        for base in (path, f"{path}/versions/{self.version}"):
            shown |= {base: self._about, f"{base}/ready": self._ready}
            asked[f"{base}/infer"] = self._infer
        quick = {path: self._guarded(path, handle) for path, handle in asked.items()}
        routes: list[BaseRoute] = [Route(path, handle, methods=["POST"]) for path, handle in quick.items()]
        routes += [Route(path, self._guarded(path, handle), methods=["GET"]) for path, handle in shown.items()]
        rest = FastAPI(
            routes=routes, openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False,
            exception_handlers={HTTPException: self._not_ours},
        )  # fmt: skip

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in quick:
                response = await quick[scope["path"]](Request(scope, receive, send))
                await response(scope, receive, send)
            else:
                await rest(scope, receive, send)

        return app

    def _guarded(self, path: str, handle: Handle) -> Handle:
        async def guarded(request: Request) -> Response:
            start = time.perf_counter()
            self.num_inside += 1
            try:
                response = await handle(request)
            except Refused as refusal:
                response = _json({"error": str(refusal)}, refusal.status, **refusal.headers)
            except ClientDisconnect:
                return Response(status_code=400)  # nobody reads it
            except Exception as error:
                answer = told(error)
                response = _json({"error": answer.body}, answer.status)
            finally:
                self.num_inside -= 1
            self.telemetry.request(path, response.status_code, time.perf_counter() - start)
            return response

        return guarded

    async def _not_ours(self, request: Request, error: Any) -> Response:
        self.telemetry.request("other", error.status_code, 0.0)
        what = "has no such path" if error.status_code == 404 else "does not take this method here"
        return _json({"error": f"this server {what}. GET / says what there is."}, error.status_code)

    async def _overview(self, _: Request) -> Response:
        infer = f"/v2/models/{self.name}/infer"
        what = {
            "predict": f"POST /predict: {bodies.takes(self.model)}",
            "infer": f"POST {infer}: the open inference protocol, V2",
        }
        said = {"model": self.name, "version": self.version, "task": self.model.task, "classes": list(self.model.names)}
        return _json(said | what | {"health": "GET /v2/health/ready", "metrics": "GET /metrics"})

    async def _metrics(self, _: Request) -> Response:
        gauges = {
            "queue_requests": ("requests that wait for a thread", float(len(self.batcher.waiting))),
            "inside_requests": ("requests that are not answered yet, this one too", float(self.num_inside)),
        }
        return Response(self.telemetry.text(gauges), media_type=CONTENT_TYPE)

    async def _server(self, _: Request) -> Response:
        return _json({"name": "trainyard", "version": self.server, "extensions": []})

    async def _live(self, _: Request) -> Response:
        return _json({"live": True})

    async def _ready(self, _: Request) -> Response:
        return _json({"name": self.name, "ready": self.is_ready}, 200 if self.is_ready else 503)

    async def _about(self, _: Request) -> Response:
        return _json(protocol.metadata(self.model, name=self.name, version=self.version))

    async def _predict(self, request: Request) -> Response:
        return await self._answered(request, lambda content: bodies.read(content, self.model))

    async def _infer(self, request: Request) -> Response:
        def read(content: bytes) -> Question:
            return protocol.read(content, self.model, name=self.name, version=self.version)

        return await self._answered(request, read)

    async def _answered(self, request: Request, read: Callable[[bytes], Question]) -> Response:
        arrived = time.monotonic()
        content = await self._body(request, arrived + self.limits.timeout)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()
        deadline = arrived + self.limits.timeout
        is_small = len(content) <= _SMALL and content.startswith(b"{")  # a small image may have many pixels
        try:
            self.batcher.submit(Job(lambda: read(content), arrived, deadline, future, is_small))
        except Full:
            raise Refused(429, "as many requests wait as may. Ask again later.", Retry_After="1") from None
        if future.done():
            status, body = future.result()
        else:
            timer = loop.call_at(deadline, _expire, future)
            status, body = await future
            timer.cancel()
        if isinstance(body, str):
            raise Refused(status, body)
        return Response(body, media_type="application/json")

    async def _body(self, request: Request, deadline: float) -> bytes:
        """Return the body. Raises Refused for one that is too large, too slow, packed, or too many at once."""
        limit, headers = self.limits.max_body, request.headers
        is_packed = headers.get("content-encoding", "identity").lower() != "identity"
        declared = headers.get("content-length", "0")
        too_large = Refused(413, f"the body has more than {limit} bytes, which is all that is taken.", Connection="close")
        if "expect" in headers and (is_packed or int(declared) > limit):
            raise _packed() if is_packed else too_large
        if self.num_reading >= self.limits.max_reading:
            raise Refused(429, "as many requests are being read as may. Ask again later.", Retry_After="1")
        chunks, size = list[bytes](), 0
        self.num_reading += 1
        try:
            async with asyncio.timeout_at(deadline):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size <= limit and not is_packed:
                        chunks.append(chunk)
                    elif size > _THROWN_AWAY:
                        break
                    else:
                        chunks.clear()
        except TimeoutError:
            raise Refused(408, "the body did not come in time.", Connection="close") from None
        finally:
            self.num_reading -= 1
        if size > limit:
            raise too_large
        if is_packed:
            raise _packed()
        if not size:
            raise Refused(400, f"the body is empty. Send {bodies.takes(self.model)}.")
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _packed() -> Refused:
    return Refused(415, "the body is compressed (Content-Encoding), which is not taken. Send it as it is.", Connection="close")


def _expire(future: asyncio.Future[Answer]) -> None:
    if not future.done():
        future.set_result(Answer(504, "the answer was not ready in time. Ask again later."))


def _json(content: Any, status: int = 200, **headers: str) -> Response:
    return Response(json.dumps(content, ensure_ascii=False), status, headers, media_type="application/json")
