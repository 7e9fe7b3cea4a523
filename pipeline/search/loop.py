"""What one worker does with a study: take a trial, have it done on all ranks, tell how it ended, until none is left.

Rank 0 alone speaks with the study; what it decides is broadcast, so that all ranks take the same trial and leave it at the same
step. A worker that finds nothing to take waits for the others: one of them may be killed, and its trial be given back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline import distributed, signals
from pipeline.distributed import Ranks
from pipeline.errors import Diverged, UserError
from pipeline.search.queue import PROBLEM, Lease, Queue
from pipeline.search.storage import asking
from pipeline.train import Validated, Watch

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

POLL = 1.0  # s between two looks for a trial, where all are in other hands
PRUNED = "pruned"
WAIT = "wait"


@dataclass(frozen=True)
class Job:
    """A trial as all ranks need it."""

    number: int
    flags: Mapping[str, str]
    ended: str = ""  # how it ended, where only that was left to tell


Perform = Callable[[Job, Watch], str]  # does a trial on this rank; returns "" or PRUNED
Values = Callable[["optuna.Trial"], Mapping[str, str]]  # of a trial that was taken: its flags. Raises UserError for no training


@dataclass(kw_only=True)
class Worker:
    """One worker of a study. `queue` is rank 0's; `most` trials are wanted in all."""

    queue: Queue | None
    ranks: Ranks
    storage: str
    most: int
    values: Values
    perform: Perform
    metric: str = ""
    began: Callable[[int], None] = lambda number: None  # these three on rank 0 alone
    ended: Callable[[FrozenTrial], None] = lambda trial: None
    waits: Callable[[], None] = lambda: None
    _trial: Any = None  # optuna's, while one is worked on
    _lease: Lease | None = None
    _waits: bool = False
    _value: float | None = None  # of the weights that would be kept if it ended now

    def work(self) -> None:
        """Work until nothing is left that could be taken. Raises whatever a trial raises; its trial then waits again."""
        try:
            while found := self._together(self._next):
                if found != WAIT:
                    self._do(found)
        finally:
            self._give_back()

    def _do(self, job: Job) -> None:
        with self._lease.kept() if self._lease else nullcontext():
            try:
                how, problem = job.ended or self.perform(job, self._watch), ""
            except Diverged as error:
                how, problem = PRUNED, str(error)
            self._together(lambda: self._tell(how, problem))

    def _together(self, action: Callable[[], Any]) -> Any:
        """Return on all ranks what `action` returns on rank 0."""

        def guarded() -> Any:
            with asking(self.storage):
                return action()

        return distributed.broadcast(distributed.run_on_main(guarded, on=self.ranks.is_main))

    def _next(self) -> Job | str | None:
        """Return the next trial; or WAIT, after a moment, while the last ones are in other hands; or nothing."""
        assert self.queue
        with signals.defer_signals():  # a trial is taken as a whole, or not at all
            self._trial = self.queue.take(self.most)
            if self._trial:
                return self._job(self._trial) or WAIT
        if not self.queue.others_work():
            return None
        if not self._waits:
            self.waits()
        self._waits = True
        time.sleep(POLL)
        return WAIT

    def _job(self, trial: optuna.Trial) -> Job | None:
        """Return a trial that was taken; nothing for values that make no training, which is told to the study."""
        from optuna.trial import TrialState

        assert self.queue
        self._lease = self.queue.lease(trial)
        known = self._reported()
        self._value = known[max(known)] if known else None
        try:
            flags = self.values(trial)
        except UserError as error:
            trial.set_user_attr(PROBLEM, str(error)[:1000])
            self.queue.study.tell(trial, state=TrialState.FAIL)
            self._trial = None
            self.ended(self._frozen(trial.number))
            return None
        self.began(trial.number)
        return Job(trial.number, flags, trial.user_attrs.get("ended", ""))

    def _watch(self, found: Validated) -> bool:
        """Tell the study what validation found; return on all ranks whether the trial is to end."""
        return bool(self._together(lambda: self._judge(found)))

    def _judge(self, found: Validated) -> bool:
        from optuna.exceptions import UpdateFinishedTrialError

        assert self.queue and self._lease
        if found.is_best:
            self._value = metric_of(found.metrics, self.metric)
        if self._lease.is_lost:
            return True
        try:
            if self._value is not None and found.epoch not in self._reported():  # or of steps that are done again after a kill
                self._trial.report(self._value, found.epoch)
            if found.is_last or not self.queue.is_to_end(self._trial):
                return False
            self._trial.set_user_attr("ended", PRUNED)  # before the checkpoint, after which it would go on
        except UpdateFinishedTrialError:  # somebody else has ended it
            self._lease.is_lost = True
        return True

    def _tell(self, how: str, problem: str) -> None:
        from optuna.trial import TrialState

        assert self.queue and self._lease
        with signals.defer_signals():
            trial, self._trial = self._trial, None
            if self._lease.is_lost:
                return
            if problem:
                trial.set_user_attr(PROBLEM, problem[:1000])
            if how == PRUNED:
                self.queue.study.tell(trial, state=TrialState.PRUNED, skip_if_finished=True)
            else:
                self.queue.study.tell(trial, self._value if self._value is not None else 0.0, skip_if_finished=True)
            self.ended(self._frozen(trial.number))

    def _give_back(self) -> None:
        """Have the trial that was cut off wait again."""
        if self._trial and self.queue and self._lease and not self._lease.is_lost:
            with signals.ignore_first_signal(), asking(self.storage):
                self.queue.give_back(self._trial.number)
        self._trial = None

    def _reported(self) -> Mapping[int, float]:
        values: Mapping[int, float] = self._frozen(self._trial.number).intermediate_values
        return values

    def _frozen(self, number: int) -> FrozenTrial:
        assert self.queue
        return next(trial for trial in self.queue.trials() if trial.number == number)


def metric_of(metrics: Mapping[str, float], name: str) -> float:
    """Return a metric of the weights that are kept: of their moving average, where there is one."""
    split, _, rest = name.partition("/")
    return metrics.get(f"{split}/ema/{rest}", metrics[name])
