from __future__ import annotations

import re

import pytest

from pipeline.progress import show
from tests.terminal import written_on_a_terminal

ROW = {"train/epoch_loss": 0.5, "val/loss": 0.25, "val/accuracy": 0.5, "train/samples_per_second": 12345.6}
_SCRIPT = """
from pipeline.progress import show
with show(epochs=2, steps_per_epoch=3, first_step=0, is_main=True) as progress:
    for step in range(1, 7):
        progress.step(step, 1 / step)
        if step % 3 == 0:
            progress.epoch(step // 3, {"train/epoch_loss": 1 / step, "val/accuracy": 0.5, "train/samples_per_second": 100.0})
    progress.note("stopped: a reason")
"""


def _lines(capsys: pytest.CaptureFixture[str], epochs: int) -> list[str]:
    with show(epochs=epochs, steps_per_epoch=1, first_step=0, is_main=True) as progress:
        for epoch in range(1, epochs + 1):
            progress.step(epoch, 0.5)
            progress.epoch(epoch, ROW)
    return capsys.readouterr().out.splitlines()


def test_elsewhere_than_on_a_terminal_each_epoch_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    lines = _lines(capsys, 3)
    assert len(lines) == 3
    assert re.fullmatch(
        r"epoch 2/3  loss 0\.5000  val loss 0\.2500  val accuracy 0\.5000  12 346 samples/s  \d+ s left", lines[1]
    )


def test_thousands_of_epochs_have_about_twenty_lines_with_the_first_and_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    lines = _lines(capsys, 2000)
    assert 20 <= len(lines) <= 22 and lines[0].startswith("epoch 1/2000") and lines[-1].startswith("epoch 2000/2000")


def test_ranks_above_zero_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with show(epochs=1, steps_per_epoch=1, first_step=0, is_main=False) as progress:
        progress.step(1, 0.5)
        progress.epoch(1, ROW)
        progress.note("x")
    assert capsys.readouterr().out == ""


def test_a_terminal_gets_a_bar_with_loss_metric_speed_and_time_left() -> None:
    text = written_on_a_terminal(_SCRIPT)
    assert "epoch 2/2  loss 0.1667" in text and "val accuracy 0.5000" in text and "100 samples/s" in text
    assert "0:00:00" in text and "stopped: a reason" in text
