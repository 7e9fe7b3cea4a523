from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from pipeline import signals
from pipeline.signals import Interrupted


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(signals, "_received", 0)
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signals.ORPHANED)}
    signals.install()
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_obeyed_at_once_where_nothing_trains(signum: int, status: int) -> None:
    with pytest.raises(Interrupted) as stopped:
        signal.raise_signal(signum)
    assert stopped.value.code == status


def test_while_a_model_trains_a_first_signal_is_noted_and_a_second_obeyed() -> None:
    with pytest.raises(Interrupted) as stopped, signals.defer_signals():
        signal.raise_signal(signal.SIGINT)
        assert signals.pending_signal() == signal.SIGINT
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.code == 143


def test_a_launcher_that_dies_is_one_request_however_often_the_system_tells_it() -> None:
    """Linux signals the ranks of a killed launcher with many threads two to six times."""
    saved = []
    with pytest.raises(Interrupted) as stopped, signals.defer_signals():
        signal.raise_signal(signals.ORPHANED)
        assert signals.pending_signal() == signal.SIGTERM
        signal.raise_signal(signals.ORPHANED)
        saved.append("the checkpoint")
    assert stopped.value.code == 143 and saved == ["the checkpoint"]


def test_closing_what_has_failed_is_not_cut_off_by_a_first_signal_but_by_a_second() -> None:
    closed = []
    with pytest.raises(Interrupted), signals.ignore_first_signal():
        signal.raise_signal(signal.SIGTERM)  # a launcher sends it to the ranks that are left
        closed.append("the run in MLflow")
        signal.raise_signal(signal.SIGTERM)
        closed.append("never reached")
    assert closed == ["the run in MLflow"]
