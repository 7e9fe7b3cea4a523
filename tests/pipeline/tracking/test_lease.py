"""The lock of an alias: one holder at a time, numbers that come once, and holders that were killed or are slow."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.errors import Failure
from pipeline.tracking import lease

NAME = "leased"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """A registered model, and waits of no length."""
    client = MlflowClient()
    for each in client.search_registered_models():
        if each.name.startswith(NAME):
            client.delete_registered_model(each.name)
    client.create_registered_model(NAME)
    monkeypatch.setattr(lease, "_PAUSES", (0.01, 0.02))
    return client


def _locks(client: MlflowClient) -> list[str]:
    return sorted(each.name for each in client.search_registered_models() if each.name.startswith(f"{NAME}."))


def _killed(number: int, token: str = "another") -> None:
    MlflowClient().create_registered_model(f"{NAME}.champion.lock-{number}", tags={"token": token, "host": "far", "pid": "7"})


def test_a_lock_is_there_while_it_is_held_and_its_numbers_rise(registry: MlflowClient) -> None:
    numbers = []
    for _ in range(3):
        with lease.held(NAME, "champion") as held:
            held.check()
            assert _locks(registry) == [f"{NAME}.champion.lock-{held.number}"]
            numbers.append(held.number)
    assert numbers == [1, 2, 3] and _locks(registry) == []
    with lease.held(NAME, "champion"), lease.held(NAME, "staging") as other:
        assert other.number == 1, "another alias has a lock of its own"


def test_an_error_gives_the_lock_back(registry: MlflowClient) -> None:
    with pytest.raises(KeyError), lease.held(NAME, "champion"):
        raise KeyError
    assert _locks(registry) == []


def test_of_many_one_is_in_at_a_time(registry: MlflowClient) -> None:
    inside, together, order = 0, [], []
    start = threading.Barrier(6)

    def work() -> None:
        nonlocal inside
        start.wait(30)
        with lease.held(NAME, "champion") as held:
            inside += 1
            together.append(inside)
            order.append(held.number)
            held.check()
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert together == [1] * 6 and order == [1, 2, 3, 4, 5, 6] and _locks(registry) == []


def test_a_holder_that_was_killed_is_passed_over_after_its_time(
    registry: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    _killed(1)
    monkeypatch.setattr(lease, "LEASE", 0.3)
    lock = lease._acquire(NAME, "champion")
    assert (lock.number, lock.overtaken) == (2, (1,))
    lease._release(lock)
    assert _locks(registry) == [] and lease._noted(lock) == 2


def test_a_holder_that_lives_is_waited_for_and_not_for_ever(registry: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    _killed(1)
    monkeypatch.setattr(lease, "_WAIT", 0.1)
    with (
        pytest.raises(Failure, match=r"leased@champion is being moved by others \(far, process 7\)"),
        lease.held(NAME, "champion"),
    ):
        pass
    assert _locks(registry) == [f"{NAME}.champion.lock-1"], "which is not ours to remove"


def test_who_was_overtaken_writes_no_more_and_leaves_the_numbers_alone(registry: MlflowClient) -> None:
    with lease.held(NAME, "champion") as held:
        held.check()
        _killed(held.number + 1)
        with pytest.raises(Failure, match="another promotion may have gone on without it"):
            held.check()


def test_a_lock_whose_time_is_over_is_left_to_the_next(registry: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LEASE", 0.0)
    with lease.held(NAME, "champion") as held, pytest.raises(Failure):
        held.check()
    assert _locks(registry) == [f"{NAME}.champion.lock-1"] and lease._noted(held) == 0
    monkeypatch.setattr(lease, "LEASE", 0.3)
    with lease.held(NAME, "champion") as held:
        assert held.number == 2
    assert _locks(registry) == []


def test_a_number_that_was_used_meanwhile_is_given_up(registry: MlflowClient) -> None:
    late = lease.Lease(NAME, "champion", 1, 1e9)
    registry.set_registered_model_tag(NAME, "lock.champion", "1")  # its holder has come and gone since we looked
    assert lease._create(late, "late") is False and _locks(registry) == []


def test_an_answer_that_was_lost_does_not_lose_the_lock(registry: MlflowClient) -> None:
    _killed(1, token="mine")
    lock = lease.Lease(NAME, "champion", 1, 1e9)
    assert lease._create(lock, "mine") is True and lease._create(lock, "theirs") is False
