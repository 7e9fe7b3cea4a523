"""Requests that wait, and who answers them: threads, so that the server stays free, or the event loop where that is quicker.

A queue of bounded length; a thread takes what waits, at most as much as one batch, and computes together only what keeps the
bits of each sample (`bits.Plan`). Whose time is over is not computed any more. To hand a request to a thread, and its answer
back, takes longer than a quick model does: there a small body is read, computed and written by the event loop itself.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
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
    """A request that waits: what reads it, when it came and when its time is over (seconds of `time.monotonic`).

    `is_small` says that it is read in no time; how many samples it has is known then.
    """

    read: Callable[[], Question]
    arrived: float
    deadline: float
    future: asyncio.Future[Answer]
    is_small: bool = False


class Batcher:
    """The queue and its threads. `submit` belongs to the thread of the event loop `loop`.

    With `is_alone` small jobs are answered by the event loop: at once, if it says that no other request is being taken, and
    otherwise together with what is there by the next turn.
    """

    def __init__(
        self, model: Model, plan: Plan, telemetry: Telemetry, loop: asyncio.AbstractEventLoop,
        *, num_threads: int, max_queue: int, max_delay: float, is_alone: Callable[[], bool] | None = None,
    ) -> None:  # fmt: skip
        self.model, self.plan, self.telemetry, self.loop = model, plan, telemetry, loop
        self.max_queue, self.max_delay = max_queue, max_delay
        self.is_alone = is_alone
        self.small, self.waiting = deque[Job](), deque[Job]()
        self.changed, self.num_idle, self.is_closing = threading.Condition(), 0, False
        self.threads = [threading.Thread(target=self._work, name="answering", daemon=True) for _ in range(num_threads)]
        for thread in self.threads:
            thread.start()

    def submit(self, job: Job) -> None:
        """Have a job answered. Raises Full."""
        if len(self.waiting) + len(self.small) >= self.max_queue:
            raise Full
        if not (self.is_alone and job.is_small):
            self._wait(job)
            return
        self.small.append(job)
        if len(self.small) == 1:
            if self.is_alone():
                self._answer_small()
            else:
                self.loop.call_soon(self._answer_small)

    def _wait(self, job: Job) -> None:
        with self.changed:
            self.waiting.append(job)
            self.changed.notify()

    def _answer_small(self) -> None:
        jobs = [self.small.popleft() for _ in range(min(len(self.small), self.plan.together))]
        if self.small:
            self.loop.call_soon(self._answer_small)
        _deliver(_all_failed(jobs, lambda: list(self._answered(jobs, is_short=self.plan.is_short))))

    def hurry(self) -> None:
        """Let nothing wait for company any more."""
        with self.changed:
            self.max_delay = 0.0
            self.changed.notify_all()

    def close(self, *, timeout: float) -> None:
        """Have all that waits answered, and wait so many seconds for the threads to end."""
        self.hurry()
        with self.changed:
            self.is_closing = True
            self.changed.notify_all()
        end = time.monotonic() + timeout
        for thread in self.threads:
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
                if left <= 0 or len(self.waiting) >= self.plan.together:
                    break
                self.changed.wait(left)
            share = len(self.waiting) if self.max_delay else math.ceil(len(self.waiting) / (1 + self.num_idle))
            jobs = [self.waiting.popleft() for _ in range(min(share, self.plan.together))]
            if self.waiting:
                self.changed.notify()
            return jobs

    def _answered(
        self, jobs: Sequence[Job], *, is_short: Callable[[int], bool] = lambda _: True
    ) -> Iterator[tuple[Job, Answer]]:
        groups: dict[object, list[tuple[Job, Question]]] = defaultdict(list)
        for job in jobs:
            if job.deadline <= time.monotonic():  # its client has been told
                continue
            try:
                question = job.read()
            except Exception as error:
                yield job, told(error)
                continue
            if not is_short(len(question.inputs[0])):
                self._wait(replace(job, read=partial(Question._make, question)))  # it is read already
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
                        failed[batch[0][0]] = told(error)
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
                    yield job, told(error)

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


def told(error: Exception) -> Answer:
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
        answer = told(error)
        return [(job, answer) for job in jobs]


def _deliver(found: Sequence[tuple[Job, Answer]]) -> None:
    for job, answer in found:
        if not job.future.done():
            job.future.set_result(answer)
