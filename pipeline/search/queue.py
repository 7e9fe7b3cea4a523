"""The trials of a study as work that is given out, each to one process at a time; who works on one keeps a lease on it.

Optuna's heartbeats exist for databases alone, and fail a trial whose worker is gone to add another one. Here a trial stays
itself, in a journal too: it waits again under its number, with its values, and goes on from its checkpoint. So a search with a
killed worker is the search without one.

A lease is an attribute of the trial that says who works on it and is renewed every `BEAT` seconds. It counts for nothing
once its process, on this host, is gone; or once another worker has seen it unchanged for `LEASE` seconds, by its own clock. A
run folder that a living process holds is never taken from it.
"""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline import run as run_folder
from pipeline.tracking import runs

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

LEASE = 60.0  # s that a lease counts without being renewed, from when this process has first seen it so
BEAT = 15.0  # s between two renewals
SURPLUS = "surplus"  # attribute of a trial that another worker was faster with: it stands for nothing
STARTUP = 5  # trials that are drawn at random, before what was seen is a guide
PROBLEM = "problem"  # attribute of a trial that has no result, and why


@dataclass
class Lease:
    """What this process holds of a trial; `is_lost` once somebody else has it."""

    beat: Callable[[int], bool]
    is_lost: bool = False
    _ended: threading.Event = field(default_factory=threading.Event)

    def keep(self) -> None:
        number = 0
        while not self._ended.wait(BEAT):
            number += 1
            try:
                self.is_lost = not self.beat(number)
            except Exception:  # a storage that does not answer now may do so at the next beat; the trial's end tells it
                continue
            if self.is_lost:
                return

    @contextmanager
    def kept(self) -> Iterator[Lease]:
        """Renew the lease in the background within the block."""
        thread = threading.Thread(target=self.keep, name="lease", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join(BEAT)


class Queue:
    """The trials of one study, as this process sees them. Every method may raise what its storage raises."""

    def __init__(
        self, storage: BaseStorage, name: str, *, direction: Literal["maximize", "minimize"] = "maximize",
        pruner: optuna.pruners.BasePruner | None = None, seed: int = 0, folder: Callable[[int], Path] | None = None,
        first: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """`folder` says which run folder belongs to a trial's number, if one does; `first` are the values of trial 0."""
        import optuna

        self.study = optuna.create_study(
            storage=storage, study_name=name, direction=direction, pruner=pruner or optuna.pruners.NopPruner(),
            load_if_exists=True,
        )  # fmt: skip
        self._storage, self._seed, self._folder, self._first = storage, seed, folder, dict(first or {})
        self._id = storage.get_study_id_from_name(name)
        self._me = runs.owner() | {"token": uuid.uuid4().hex}
        self._seen: dict[int, tuple[str, float]] = {}  # of each running trial: its lease, and since when it is that

    def trials(self) -> list[FrozenTrial]:
        """Return all trials that count, in the order of their numbers."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if SURPLUS not in trial.user_attrs]

    def take(self, most: int) -> optuna.Trial | None:
        """Return a trial to work on: one that waits, or a new one as long as there are fewer than `most`; or None.

        Its sampler draws from the seed and the trial's number alone; trial 0 has the values that were given for it.
        """
        from optuna.trial import TrialState

        self._return_abandoned()
        trials = self.trials()
        if len(trials) >= most and not any(trial.state == TrialState.WAITING for trial in trials):
            return None
        trial = self.study.ask()
        if sum(other.number < trial.number for other in self.trials()) >= most:  # others were faster
            trial.set_user_attr(SURPLUS, True)
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        trial.set_user_attr("lease", self._me | {"beat": 0})
        self.study.sampler = self._sampler(trial.number)
        return trial

    def _sampler(self, number: int) -> optuna.samplers.BaseSampler:
        from optuna.samplers import PartialFixedSampler, TPESampler

        drawn = TPESampler(seed=(self._seed + 1_000_003 * number) % 2**32, n_startup_trials=STARTUP)
        return PartialFixedSampler(self._first, drawn) if number == 0 and self._first else drawn

    def is_to_end(self, trial: optuna.Trial) -> bool:
        """Tell whether the pruner ends a trial here; never one whose values were given, to which the others are held."""
        return not (trial.number == 0 and self._first) and trial.should_prune()

    def lease(self, trial: optuna.Trial) -> Lease:
        """Return the lease of a trial that was taken, to be kept."""
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._id, trial.number)

        def beat(number: int) -> bool:
            from optuna.exceptions import UpdateFinishedTrialError

            with suppress(UpdateFinishedTrialError):
                held = self._storage.get_trial(trial_id).user_attrs.get("lease", {})
                if held.get("token") == self._me["token"]:
                    self._storage.set_trial_user_attr(trial_id, "lease", self._me | {"beat": number})
                    return True
            return False

        return Lease(beat)

    def give_back(self, number: int) -> None:
        """Have a trial wait for whoever comes next, unless it has ended."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        with suppress(UpdateFinishedTrialError):
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._id, number)
            self._storage.set_trial_state_values(trial_id, TrialState.WAITING)

    def others_work(self) -> bool:
        """Tell whether a trial is in other hands."""
        from optuna.trial import TrialState

        return any(t.state == TrialState.RUNNING and self._lease(t).get("token") != self._me["token"] for t in self.trials())

    def _return_abandoned(self) -> None:
        from optuna.trial import TrialState

        for trial in self.trials():
            if trial.state == TrialState.RUNNING and self._is_abandoned(trial):
                self.give_back(trial.number)

    def _is_abandoned(self, trial: FrozenTrial) -> bool:
        lease, now = self._lease(trial), time.monotonic()
        key = f"{lease.get('token')} {lease.get('beat')}"
        if self._seen.get(trial.number, ("", 0.0))[0] != key:
            self._seen[trial.number] = (key, now)
        is_gone = lease.get("host") == socket.gethostname() and runs.is_gone(lease)
        if not is_gone and now - self._seen[trial.number][1] < LEASE:
            return False
        folder = self._folder(trial.number) if self._folder else None
        return not (folder and run_folder.in_use(folder))

    @staticmethod
    def _lease(trial: FrozenTrial) -> dict[str, Any]:
        held = trial.user_attrs.get("lease")
        return held if isinstance(held, dict) else {}
