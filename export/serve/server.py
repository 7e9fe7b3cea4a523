"""`serve`: an exported .onnx file answers over HTTP, with onnxruntime, FastAPI and uvicorn, and without torch.

One process, whose event loop passes requests on, and answers the small ones itself where the model is quick. SIGTERM and Ctrl-C
drain: no new connections, what was taken is answered within the time that an answer may take, and the exit status is 0, as an
orchestrator expects of a server that it has stopped. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import math
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from export.serve import bits
from export.serve import model as models
from export.serve.model import Model
from export.serve.telemetry import Telemetry
from pipeline.errors import Failure, UserError
from pipeline.output import say
from pipeline.release import ServeConfig
from pipeline.values import shown

_BACKLOG = 2048


class Found(NamedTuple):
    """A file that is served, and its name and version in MLflow, if it came from there."""

    path: Path
    name: str = ""
    version: str = "1"


def serve(config: ServeConfig, *, fetch: Callable[[str], Found], server: str) -> int:
    """Answer until a signal comes; return 0 if all that was taken was answered. `fetch` brings a models:/ address.

    Raises UserError, before a port is opened, for what cannot be served, and for a port that cannot be opened.
    """
    if config.max_delay_ms >= config.timeout_ms:
        raise UserError(
            f"max_delay_ms={config.max_delay_ms:g} is not below timeout_ms={config.timeout_ms:g}, so that nothing would be "
            "answered in time. Give a smaller --max_delay_ms."
        )
    found = fetch(config.onnx) if config.onnx.startswith("models:") else Found(Path(config.onnx))
    model = models.load(found.path, threads=1)  # a batch is computed by the thread that takes it
    try:
        plan = bits.plan(model, config.max_batch)
    except models.Unanswered as error:
        raise UserError(
            f"onnx={shown(config.onnx)} does not answer samples of its own shape ({error}). Give another file."
        ) from error
    name = found.name or _name(model)
    listener = _listener(config.host, config.port)
    with listener:
        telemetry = Telemetry(model=name, version=found.version, task=model.task)
        return _run(config, model, plan, telemetry, listener, found._replace(name=name), server)


def _name(model: Model) -> str:
    """Return the model's name as a path can hold it."""
    said = models.metadata(model.session).get("model")
    return re.sub(r"[^\w.:-]+", "-", said if isinstance(said, str) else "") or "model"


def _listener(host: str, port: int) -> socket.socket:
    """Return a socket that listens, and whose connections send at once. Raises UserError."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no name of a machine"
        raise UserError(
            f"host={shown(host)} is not known ({reason}). Give an address of this machine, as in --host 127.0.0.1."
        ) from error
    try:
        listener = socket.create_server(address[:2], family=family, backlog=_BACKLOG)
        # an answer is written as a head and a body: with Nagle's algorithm the body would wait 40 ms for the head's receipt
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # which each connection takes over
        return listener
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(f"host={shown(host)} is no address of this machine. Give one, as in --host 127.0.0.1.") from error
        reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be opened ({error.strerror})"
        raise UserError(
            f"port={port} {reason} on {shown(host)}. Give another --port, or --port 0 for one that is free."
        ) from error


def _run(
    config: ServeConfig,
    model: Model,
    plan: bits.Plan,
    telemetry: Telemetry,
    listener: socket.socket,
    found: Found,
    version: str,
) -> int:
    import uvicorn

    from export.serve.batching import Batcher
    from export.serve.packets import Protocol
    from export.serve.web import Limits, Service

    limits = Limits(
        max_body=int(config.max_body_mb * 1_000_000), timeout=config.timeout_ms / 1000, max_reading=config.max_queue
    )
    service = Service(model, telemetry, limits, name=found.name, version=found.version, server=version)
    num_threads = config.num_threads or plan.num_threads(len(os.sched_getaffinity(0)))
    is_quick = not (config.num_threads or config.max_delay_ms) and plan.is_quick

    class Server(uvicorn.Server):
        """uvicorn's, with our signals and our words."""

        is_cut = False

        def _is_alone(self) -> bool:
            return len(self.server_state.tasks) == 1

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            service.batcher = Batcher(
                model, plan, telemetry, asyncio.get_running_loop(), num_threads=num_threads, max_queue=config.max_queue,
                max_delay=config.max_delay_ms / 1000, is_alone=self._is_alone if is_quick else None,
            )  # fmt: skip
            await super().startup(sockets)
            gc.collect()
            gc.freeze()  # what is there now stays: no pause looks through it
            service.is_ready = True
            say(_described(listener, found.name, plan, num_threads, is_quick=is_quick))

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            service.is_ready = False
            say("stopping: no new connections; what was taken is answered")
            service.batcher.hurry()
            await super().shutdown(sockets)
            self.is_cut = bool(service.num_inside)
            service.batcher.close(timeout=0.5)

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            def stop(signum: int, frame: FrameType | None) -> None:
                earlier = before[signal.Signals(signum)]
                if self.should_exit and callable(earlier):
                    earlier(signum, frame)
                self.should_exit = True

            before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
            try:
                yield
            finally:
                for each, handler in before.items():
                    signal.signal(each, handler)

    # h11 bounds the head of a request, and answers one that asks for HTTP/2; the faster httptools does neither (uvicorn 0.54)
    server = Server(
        uvicorn.Config(
            service.app(), loop="asyncio", http=Protocol, ws="none", lifespan="off", log_config=None, log_level="critical",
            access_log=False, proxy_headers=False, server_header=False, backlog=_BACKLOG, timeout_keep_alive=75,
            timeout_graceful_shutdown=math.ceil(limits.timeout) + 2,
        )
    )  # fmt: skip
    server.run(sockets=[listener])
    if server.is_cut:
        raise Failure("stopped, and some requests were cut off: they were not answered in time.")
    say(f"stopped: {telemetry.requests.total()} requests were answered")
    return 0


def _described(listener: socket.socket, name: str, plan: bits.Plan, num_threads: int, *, is_quick: bool) -> str:
    host, port = listener.getsockname()[:2]
    where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    sizes = f"together in batches of {', '.join(map(str, plan.sizes))}" if len(plan.sizes) > 1 else "one by one"
    threads = f"{num_threads} threads compute" if num_threads > 1 else "1 thread computes"
    small = "; a request of few samples does not wait for it" if is_quick else ""
    return (
        f"{threads} samples {sizes}, which keeps the bits that each has alone{small}\n"
        f"serving {name} on {where} (POST /predict and /v2/models/{name}/infer, GET /metrics; Ctrl-C stops it)"
    )
