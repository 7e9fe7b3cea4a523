"""Trials are given out once each, as many as are wanted, and come back from whoever is gone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import optuna
import pytest
from optuna.trial import TrialState

from pipeline.search import queue as queues
from pipeline.search.queue import SURPLUS, Queue
from pipeline.search.storage import Lock, open_storage

Open = Callable[..., Queue]


@pytest.fixture(params=["journal", pytest.param("sqlite", marks=pytest.mark.slow)])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Return a function that opens the same study anew, as another process would."""
    storage = f"sqlite:///{tmp_path}/study.db" if request.param == "sqlite" else str(tmp_path / "journal.log")
    return lambda **more: Queue(open_storage(storage), "here", **more)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Stand for the clock of the leases: its one value is the time."""
    now = [0.0]
    monkeypatch.setattr("pipeline.search.queue.time.monotonic", lambda: now[0])
    return now


def _gone() -> dict[str, str]:
    """Return the lease of a process of this host that has ended."""
    script = "from pipeline.tracking.runs import owner; import json; print(json.dumps(owner()))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def test_as_many_trials_are_given_out_as_are_wanted(opened: Open) -> None:
    one, other = opened(), opened()
    taken = [(one, other)[k % 2].take(3) for k in range(5)]
    assert [trial.number if trial else None for trial in taken] == [0, 1, 2, None, None]
    assert one.others_work() and other.others_work()
    assert opened().take(4)


def test_who_was_slower_leaves_a_trial_that_counts_for_nothing(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = opened(), opened()
    ask = other.study.ask

    def late() -> optuna.Trial:
        one.take(1)  # between the other's look and its ask
        return ask()

    monkeypatch.setattr(other.study, "ask", late)
    assert other.take(1) is None
    assert [SURPLUS in trial.user_attrs for trial in one.study.get_trials()] == [False, True]
    assert [trial.number for trial in one.trials()] == [0]
    larger = opened().take(2)
    assert larger and larger.number == 2, "a larger budget has a place for one more"


def test_a_trial_of_a_process_that_is_gone_waits_again_and_stays_itself(opened: Open) -> None:
    one = opened()
    trial = one.take(1)
    assert trial
    lr = trial.suggest_float("lr", 0, 1)
    trial.report(0.5, 1)
    trial.set_user_attr("lease", _gone() | {"token": "x", "beat": 3})
    again = opened().take(1)
    assert again and again.number == 0 and again.suggest_float("lr", 0, 1) == lr
    (frozen,) = one.trials()
    assert frozen.state == TrialState.RUNNING and frozen.intermediate_values == {1: 0.5}


def test_the_trial_of_another_host_is_taken_once_its_lease_is_over_by_our_own_clock(opened: Open, clock: list[float]) -> None:
    one, other = opened(), opened()
    trial = one.take(1)
    assert trial
    trial.set_user_attr("lease", {"host": "elsewhere", "pid": "1", "process_started": "0", "token": "x", "beat": 0})
    assert other.take(1) is None
    clock[0] += queues.LEASE - 1
    trial.set_user_attr("lease", {"host": "elsewhere", "pid": "1", "process_started": "0", "token": "x", "beat": 1})
    assert other.take(1) is None, "renewed just in time"
    clock[0] += queues.LEASE - 1
    assert other.take(1) is None
    clock[0] += 2
    assert other.take(1)


def test_a_trial_that_nobody_has_signed_is_taken_once_a_lease_is_over(opened: Open, clock: list[float]) -> None:
    """Its worker was killed between the two writes."""
    opened().study.ask()
    other = opened()
    assert other.take(1) is None
    clock[0] += queues.LEASE + 1
    assert other.take(1)


def test_a_run_folder_that_a_process_holds_is_never_taken(opened: Open, tmp_path: Path, clock: list[float]) -> None:
    folder = tmp_path / "trial"
    folder.mkdir()
    one, other = opened(), opened(folder=lambda number: folder)
    trial = one.take(1)
    assert trial
    trial.set_user_attr("lease", _gone() | {"token": "x", "beat": 3})
    script = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", script, folder / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout and holder.stdout.readline()
    clock[0] += 10 * queues.LEASE
    assert other.take(1) is None
    holder.kill()
    holder.communicate()
    assert other.take(1)


def test_a_lease_that_another_one_has_is_lost_and_not_taken_back(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "BEAT", 0.01)
    one = opened()
    trial = one.take(1)
    assert trial
    lease = one.lease(trial)
    assert lease.beat(1) and not lease.is_lost
    trial.set_user_attr("lease", {"token": "another", "beat": 0})
    thread = Thread(target=lease.keep)
    thread.start()
    thread.join(30)
    assert lease.is_lost and one.trials()[0].user_attrs["lease"]["token"] == "another"
    assert one.others_work()


def test_what_is_drawn_hangs_on_the_seed_and_the_number_alone() -> None:
    def drawn(queue: Queue, most: int) -> list[float]:
        found = []
        while trial := queue.take(most):
            found.append(trial.suggest_float("lr", 0, 1))
        return found

    def memory() -> optuna.storages.InMemoryStorage:
        return optuna.storages.InMemoryStorage()

    whole = drawn(Queue(memory(), "there", seed=5), 3)
    cut = memory()
    assert drawn(Queue(cut, "there", seed=5), 1) + drawn(Queue(cut, "there", seed=5), 3) == whole and len(set(whole)) == 3
    assert drawn(Queue(memory(), "there", seed=6), 1) != whole[:1]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")  # open_storage silences it
def test_the_first_trial_has_the_values_that_it_is_given_and_the_others_are_drawn_as_without() -> None:
    def drawn(first: dict[str, object] | None) -> list[tuple[float, str]]:
        queue, found = Queue(optuna.storages.InMemoryStorage(), "there", seed=5, first=first), []
        while trial := queue.take(3):
            found.append((trial.suggest_float("lr", 0, 1), trial.suggest_categorical("optimizer", ["adam", "sgd"])))
        return found

    given, plain = drawn({"lr": 0.25, "optimizer": "sgd"}), drawn(None)
    assert given[0] == (0.25, "sgd") != plain[0] and given[1:] == plain[1:]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")  # open_storage silences it
@pytest.mark.parametrize("first", [{}, {"lr": 0.25}])
def test_a_first_trial_whose_values_are_given_is_never_ended_early(first: dict[str, object]) -> None:
    pruner = optuna.pruners.ThresholdPruner(upper=0)
    queue = Queue(optuna.storages.InMemoryStorage(), "there", pruner=pruner, first=first)
    ends = []
    for _ in range(2):
        trial = queue.take(2)
        assert trial
        trial.report(trial.suggest_float("lr", 0.1, 1), 1)
        ends.append(queue.is_to_end(trial))
    assert ends == [not first, True]


def test_half_a_line_at_the_end_of_a_journal_costs_nothing_but_itself(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    Queue(open_storage(str(path)), "here").take(2)
    with path.open("ab") as file:
        file.write(b'{"op_code": 4, "wor')
    taken = Queue(open_storage(str(path)), "here").take(2)
    assert taken and taken.number == 1
    assert [trial.number for trial in Queue(open_storage(str(path)), "here").trials()] == [0, 1]


def test_the_lock_of_a_journal_waits_for_an_end_and_keeps_threads_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert first.acquire()
    monkeypatch.setattr("pipeline.search.storage._BUSY", 0)
    with pytest.raises(TimeoutError, match="is held by another process"):
        second.acquire()
    first.release()
    assert second.acquire()
    second.release()
