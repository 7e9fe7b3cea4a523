"""The queue of the server, without a server: who answers what, and what a mistake of ours looks like from outside."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from export.serve import bits, bodies
from export.serve import model as models
from export.serve.batching import Answer, Batcher, Full, Job
from export.serve.telemetry import Telemetry
from export.serve.web import Limits, Service
from tests.export.serve.conftest import MakeOnnx
from tests.export.serve.serving import PATIENCE

ONE = json.dumps({"instances": [[1.0, 2.0, 3.0]]}).encode()
HERE, THREAD = "MainThread", "answering"


@pytest.fixture
def model(make_onnx: MakeOnnx) -> models.Model:
    return models.load(make_onnx(shape=(3,)), threads=1)


def _batcher(model: models.Model, *, max_queue: int = 9, is_alone: Callable[[], bool] | None = None) -> Batcher:
    plan = bits.Plan(sizes=(1, 2), shapes=((3,),), together=4, seconds=0.0001)
    loop = asyncio.get_running_loop()
    return Batcher(model, plan, Telemetry(), loop, num_threads=1, max_queue=max_queue, max_delay=0, is_alone=is_alone)


def _job(read: Callable[[], bodies.Question]) -> Job:
    future = asyncio.get_running_loop().create_future()
    return Job(read, time.monotonic(), time.monotonic() + PATIENCE, future, is_small=True)


def _asked(model: models.Model, counts: list[int], *, is_alone: Callable[[], bool] | None = None) -> list[str]:
    """Return the names of the threads that computed small requests of so many samples, which came together."""
    seen = []

    def run(outputs: Any, inputs: Any) -> Any:
        seen.append(threading.current_thread().name)
        return model.session.run(outputs, inputs)

    def read(count: int) -> Callable[[], bodies.Question]:
        return lambda: bodies.read(json.dumps({"instances": [[1, 2, 3]] * count}).encode(), model)

    async def asked() -> None:
        batcher = _batcher(dataclasses.replace(model, session=SimpleNamespace(run=run)), is_alone=is_alone)
        jobs = [_job(read(count)) for count in counts]
        for job in jobs:
            batcher.submit(job)
        answers = await asyncio.wait_for(asyncio.gather(*(job.future for job in jobs)), PATIENCE)
        batcher.close(timeout=PATIENCE)
        assert [answer.status for answer in answers] == [200] * len(counts)
        assert [len(json.loads(answer.body)["predictions"]) for answer in answers] == counts

    asyncio.run(asked())
    return seen


def test_the_event_loop_answers_what_is_short_and_leaves_to_a_thread_what_is_not(model: models.Model) -> None:
    assert _asked(model, [1], is_alone=lambda: True) == [HERE]
    assert _asked(model, [1, 1, 1], is_alone=lambda: False) == [HERE, HERE]  # two together, one alone
    assert set(_asked(model, [11], is_alone=lambda: True)) == {THREAD}
    assert sorted(_asked(model, [1, 11, 1], is_alone=lambda: False)) == [HERE] + [THREAD] * 6
    assert set(_asked(model, [1, 11])) == {THREAD}


def test_one_too_many_small_requests_in_one_turn_of_the_event_loop_are_not_taken(model: models.Model) -> None:
    async def asked() -> None:
        batcher = _batcher(model, max_queue=2, is_alone=lambda: False)
        jobs = [_job(lambda: bodies.read(ONE, model)) for _ in range(3)]
        for job in jobs[:2]:
            batcher.submit(job)
        with pytest.raises(Full):
            batcher.submit(jobs[2])
        await asyncio.wait_for(asyncio.gather(*(job.future for job in jobs[:2])), PATIENCE)
        batcher.submit(jobs[2])
        await asyncio.wait_for(jobs[2].future, PATIENCE)
        batcher.close(timeout=PATIENCE)

    asyncio.run(asked())


@pytest.mark.parametrize("is_alone", [None, lambda: True], ids=["a thread", "the event loop"])
def test_our_own_mistake_is_a_500_without_its_words_and_the_next_request_is_answered(
    model: models.Model, is_alone: Callable[[], bool] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> bodies.Question:
        raise KeyError("a secret")

    async def asked() -> list[Answer]:
        batcher = _batcher(model, is_alone=is_alone)
        found = []
        for read in (broken, lambda: bodies.read(ONE, model)):
            job = _job(read)
            batcher.submit(job)
            found.append(await asyncio.wait_for(job.future, PATIENCE))
        batcher.close(timeout=PATIENCE)
        assert not any(thread.is_alive() for thread in batcher.threads)
        return found

    wrong, right = asyncio.run(asked())
    assert wrong.status == 500 and isinstance(wrong.body, str) and "secret" not in wrong.body
    assert right.status == 200
    assert "KeyError: 'a secret'" in capsys.readouterr().err


def test_a_mistake_before_the_queue_is_a_500_without_its_words_too(
    model: models.Model, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a secret")

    monkeypatch.setattr(Batcher, "submit", broken)
    service = Service(
        model, Telemetry(), Limits(max_body=1000, timeout=PATIENCE, max_reading=9), name="model", version="1", server=""
    )
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": ONE, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    async def asked() -> None:
        service.batcher = _batcher(model)
        await service.app()({"type": "http", "method": "POST", "path": "/predict", "headers": []}, receive, send)
        service.batcher.close(timeout=PATIENCE)

    asyncio.run(asked())
    start, body = sent
    assert start["status"] == 500 and set(json.loads(body["body"])) == {"error"} and b"secret" not in body["body"]
    assert "KeyError: 'a secret'" in capsys.readouterr().err
    assert service.telemetry.requests["/predict", 500] == 1 and not service.num_inside
