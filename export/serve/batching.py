"""Requests that wait, and the threads that answer them: read, computed and written there, so that the server stays free.

A queue of bounded length; a thread takes what waits, at most as much as one batch, and computes together only what keeps the
bits of each sample (`bits.Plan`). Whose time is over is not computed any more.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from export.serve.bits import Plan
from export.serve.bodies import BadRequest, NotFinite, Question
from export.serve.model import Array, Model, Unanswered
from export.serve.telemetry import Telemetry
from pipeline.output import say


class Full(RuntimeError):
    """As many requests wait as may."""


class Answer(NamedTuple):
    """The status and the body of an answer; a body that is a sentence stands for an error."""

    status: int
    body: bytes | str


@dataclass(frozen=True, eq=False)
class Job:
    """A request that waits: what reads it, when it came and when its time is over (seconds of `time.monotonic`)."""

    read: Callable[[], Question]
    arrived: float
    deadline: float
    future: asyncio.Future[Answer]


class Batcher:
    """The queue and its threads. `submit` belongs to the thread of the event loop `loop`."""

    def __init__(
        self, model: Model, plan: Plan, telemetry: Telemetry, loop: asyncio.AbstractEventLoop,
        *, num_threads: int, max_queue: int, max_delay: float,
    ) -> None:  # fmt: skip
        self.model, self.plan, self.telemetry, self.loop = model, plan, telemetry, loop
        self.max_queue, self.max_delay = max_queue, max_delay
        self.waiting: deque[Job] = deque()
        self.changed, self.num_idle, self.is_closing = threading.Condition(), 0, False
        self.threads = [threading.Thread(target=self._work, name="answering", daemon=True) for _ in range(num_threads)]
        for thread in self.threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Have a job answered. Raises Full."""
        with self.changed:
            if len(self.waiting) >= self.max_queue:
                raise Full
            self.waiting.append(job)
            self.changed.notify()

    def close(self, *, timeout: float = 0) -> None:
        """Let nothing wait for company any more, have all that waits answered, and wait so many seconds for the threads."""
        with self.changed:
            self.is_closing = True
            self.changed.notify_all()
        end = time.monotonic() + timeout
        for thread in self.threads if timeout else ():
            thread.join(max(0.0, end - time.monotonic()))

    def _work(self) -> None:
        while jobs := self._taken():
            found = _all_failed(jobs, lambda: list(self._answered(jobs)))
            try:
                self.loop.call_soon_threadsafe(_deliver, found)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return

    def _taken(self) -> list[Job]:
        """Wait for jobs and return some, or none when all is over."""
        with self.changed:
            while True:
                while not self.waiting:
                    if self.is_closing:
                        return []
                    self.num_idle += 1
                    self.changed.wait()
                    self.num_idle -= 1
                left = self.waiting[0].arrived + self.max_delay - time.monotonic()
                if left <= 0 or self.is_closing or len(self.waiting) >= self.plan.together:
                    break
                self.changed.wait(left)
            share = len(self.waiting) if self.max_delay else math.ceil(len(self.waiting) / (1 + self.num_idle))
            jobs = [self.waiting.popleft() for _ in range(min(share, self.plan.together))]
            if self.waiting:
                self.changed.notify()
            return jobs

    def _answered(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Answer]]:
        groups: dict[object, list[tuple[Job, Question]]] = defaultdict(list)
        for job in jobs:
            if job.deadline <= time.monotonic():  # its client has been told
                continue
            try:
                question = job.read()
            except Exception as error:
                yield job, _failed(error)
                continue
            kinds = tuple((array.shape[1:], array.dtype.str) for array in question.inputs)
            groups[question.outputs, kinds].append((job, question))
        for group in groups.values():
            yield from self._computed(group)

    def _computed(self, group: Sequence[tuple[Job, Question]]) -> Iterator[tuple[Job, Answer]]:
        """Compute the samples of questions of one kind, and yield the answers."""
        sizes, outputs = self.plan.sizes_for(group[0][1].inputs), group[0][1].outputs
        parts: dict[Job, list[list[Array]]] = defaultdict(list)
        failed: dict[Job, Answer] = {}
        left = deque((job, question, k) for job, question in group for k in range(len(question.inputs[0])))
        while left:
            now = time.monotonic()
            size = max(size for size in sizes if size <= len(left))
            taken = [each for each in (left.popleft() for _ in range(size)) if each[0].deadline > now and each[0] not in failed]
            for batch in [taken] if len(taken) == size else [[each] for each in taken]:
                try:
                    found = self._run(outputs, [[a[k : k + 1] for a in question.inputs] for _, question, k in batch])
                except Exception as error:
                    if len(batch) > 1:  # one of them is not taken: which?
                        sizes = (1,)
                        left.extendleft(reversed(batch))
                    else:
                        failed[batch[0][0]] = _failed(error)
                    continue
                for (job, _, _), row in zip(batch, found, strict=True):
                    parts[job].append(row)
        for job, question in group:
            if job in failed:
                yield job, failed[job]
            elif len(parts[job]) == len(question.inputs[0]):
                try:
                    yield job, Answer(200, question.answer([np.concatenate(rows) for rows in zip(*parts[job], strict=True)]))
                except Exception as error:
                    yield job, _failed(error)

    def _run(self, outputs: Sequence[str], samples: Sequence[Sequence[Array]]) -> list[list[Array]]:
        """Return the outputs of each sample, (1, ...) each, all computed by one call of the model."""
        single = len(samples) == 1
        inputs = list(samples[0]) if single else [np.concatenate(arrays) for arrays in zip(*samples, strict=True)]
        start = time.perf_counter()
        found = self.model.run(outputs, inputs)
        self.telemetry.batch(len(samples), time.perf_counter() - start)
        for name, values in zip(outputs, found, strict=True):
            if not values.ndim or len(values) != len(samples):
                raise Unanswered(f"its output {name} has the shape {values.shape} for {len(samples)} samples")
        return [found] if single else [[values[k : k + 1] for values in found] for k in range(len(samples))]


def _failed(error: Exception) -> Answer:
    """Return what a client is told of an error; what is our own mistake is told on the terminal instead."""
    if isinstance(error, BadRequest):
        return Answer(400, str(error))
    if isinstance(error, Unanswered):
        return Answer(400, f"the model does not take this: {error}.")
    if isinstance(error, NotFinite):
        return Answer(500, str(error))
    say("".join(traceback.format_exception(error)).rstrip(), error=True)
    return Answer(500, "the server failed at this request; its own log says why.")


def _all_failed(jobs: Sequence[Job], work: Callable[[], list[tuple[Job, Answer]]]) -> list[tuple[Job, Answer]]:
    """Return what `work` does, or an answer for each job if it raises: a thread must not end."""
    try:
        return work()
    except Exception as error:
        answer = _failed(error)
        return [(job, answer) for job in jobs]


def _deliver(found: Sequence[tuple[Job, Answer]]) -> None:
    for job, answer in found:
        if not job.future.done():
            job.future.set_result(answer)
