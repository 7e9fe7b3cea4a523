"""Whoever reads a command's words may leave, or never have been there: the work goes on, and the run's log has them all."""

from __future__ import annotations

import fcntl
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline import manifest
from pipeline.cli import main
from pipeline.run import Run

TRAIN = ["--model", "mlp", "--epochs", "3", "--output_dir", "run", "--cache_dir"]
PIPELINE = [sys.executable, "-m", "pipeline"]
CLOSED = 'exec "$@" >&- 2>&- <&-'  # of a shell: all three streams are closed from the start


def _assert_whole(folder: Path = Path("run")) -> list[str]:
    """Check that a training has come to its end, and return the lines of its log."""
    run = Run.open(folder)
    assert MlflowClient().get_run(run.mlflow_run_id).info.status == "FINISHED"
    lines = (folder / manifest.LOG).read_text().splitlines()
    assert any(line.startswith("epoch 3/3  loss ") for line in lines)
    assert lines[-1].startswith("next: ")
    return lines


def _start(*words: object, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*PIPELINE, *map(str, words)], **options)


@pytest.mark.parametrize("nproc", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_training_whose_reader_leaves_goes_on(cache_dir: Path, nproc: int) -> None:
    """As `train ... | head -1` does."""
    words = ["train", *TRAIN, cache_dir, "--nproc", nproc]
    process = _start(*words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout and process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=100) == 0
    _assert_whole()


def test_a_training_whose_streams_are_closed_from_the_start_goes_on(cache_dir: Path) -> None:
    done = subprocess.run(["sh", "-c", CLOSED, "sh", *PIPELINE, "train", *TRAIN, cache_dir], timeout=100, check=False)
    assert done.returncode == 0
    _assert_whole()


@pytest.mark.parametrize(
    ("controlling", "nproc"),
    [pytest.param(controlling, nproc, marks=pytest.mark.slow) for controlling, nproc in ((True, 1), (False, 1), (True, 2))],
)
def test_a_training_on_a_terminal_that_dies_goes_on(cache_dir: Path, controlling: bool, nproc: int) -> None:
    """Writing to it fails with EIO; a controlling terminal, as that of an ssh connection, sends SIGHUP too."""
    main, child = pty.openpty()

    def take_it() -> None:
        fcntl.ioctl(child, termios.TIOCSCTTY, 0)

    process = _start(
        "train", *TRAIN, cache_dir, "--nproc", nproc, stdin=child, stdout=child, stderr=child, start_new_session=True,
        preexec_fn=take_it if controlling else None, env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
    )  # fmt: skip
    os.close(child)
    try:
        assert os.read(main, 1)
        os.close(main)
        assert process.wait(timeout=100) == 0
    finally:
        process.kill()
    lines = _assert_whole()
    assert not [line for line in lines if "\x1b" in line]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["evaluate", "export", "verify", "run"])
@pytest.mark.parametrize("kind", ["pipe", "closed"])
def test_the_other_commands_go_on_too(trained: Callable[[str], Run], cache_dir: Path, command: str, kind: str) -> None:
    folder = trained("mlp").folder
    words = [command, "--run", str(folder), *([] if command == "export" else ["--cache_dir", str(cache_dir)])]
    if command == "run":
        words, folder = [command, *TRAIN, str(cache_dir)], Path("run")
    elif command == "verify":
        assert subprocess.run([*PIPELINE, "export", "--run", folder], timeout=100, check=False).returncode == 0
    before = (folder / manifest.LOG).stat().st_size if (folder / manifest.LOG).exists() else 0
    if kind == "pipe":
        reader, writer = os.pipe()
        os.close(reader)
        process = _start(*words, stdout=writer, stderr=writer)
        os.close(writer)
        assert process.wait(timeout=100) == 0
    else:
        assert subprocess.run(["sh", "-c", CLOSED, "sh", *PIPELINE, *words], timeout=100, check=False).returncode == 0
    Run.open(folder)
    assert (folder / manifest.LOG).stat().st_size > before


@pytest.mark.parametrize("words", ["--help", "train --help", "--version", "train --lr x"])
@pytest.mark.parametrize("way", ["closed", "full"])
def test_words_that_nobody_hears_change_no_exit_status(words: str, way: str) -> None:
    script = CLOSED if way == "closed" else 'exec "$@" >/dev/full 2>/dev/full'
    done = subprocess.run(["sh", "-c", script, "sh", *PIPELINE, *words.split()], timeout=60, check=False)
    assert done.returncode == (2 if "--lr" in words else 0)


def test_a_reader_who_stops_reading_is_waited_for_once() -> None:
    """As `less` does, or a terminal after Ctrl-S: what does not fit into the pipe is lost, and the work goes on."""
    script = (
        "from pipeline import output\n"
        "output._PATIENCE = 0.1\n"
        "output.install()\n"
        "for number in range(5000): output.say(f'line {number} ' + 100 * '.')\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert process.wait(timeout=60) == 0
        assert process.stdout and process.stdout.read().startswith(b"line 0 ")
    finally:
        process.kill()


def test_a_terminal_that_knows_only_ascii_gets_every_word() -> None:
    done = subprocess.run(
        [*PIPELINE, "train", "--lr", "\u2603"], capture_output=True, timeout=60, check=False,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith(b"lr=\\u2603 is not a number")


def test_a_failure_and_its_reason_are_in_the_log(cache_dir: Path) -> None:
    words = ["--model", "polynomial", "--loss", "sse", "--lr", "1", "--output_dir", "run", "--cache_dir", str(cache_dir)]
    assert main(["train", *words]) == 1
    assert "the training diverged" in (Path("run") / manifest.LOG).read_text()
