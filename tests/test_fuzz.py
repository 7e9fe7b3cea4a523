"""Generated command lines over all commands: each is right, or gets a sentence, exit status 2, and leaves nothing behind.

A list that happens to be right stops at the door behind which the work would begin.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from mlflow import MlflowClient

from models import MODELS
from pipeline import environment
from pipeline.cli import main
from pipeline.handlers import COMMANDS
from pipeline.run import Run

SEED = 20_261_126
JOB = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT")
LAYERS = sorted({layer for spec in MODELS.values() for layer in spec.layers})
PLACES = [
    "new", "a/b/c", "folder", "file", "file/x", "link", "loop", "~", "~/x", "~nobody-here/x", "./~x", "/dev/null", "..",
    "/proc/nowhere/x", "", ".", "n" * 256, "n/" * 3000, "x\udcff", "x\0y", "a\nb", "\x1b[31m", "\u2603", "https://x/y",
]  # fmt: skip
NUMBERS = [
    "0", "1", "2", "-1", "3.5", "1e-3", "1e38", "1e39", "1e-400", "nan", "inf", "-inf", "0x10", "1_000", " 7 ", "\u0663",
    "2147483648", "4294967295", "4294967296", "9223372036854775808", "9" * 400, "9" * 5000, "true",
]  # fmt: skip
OTHERS = [
    "", "-", "--", "---", "=", "==", "--=", "-h", "none", "null", "auto", "true", "True", "[]", "{}", "%s", "%(x)s",
    "$HOME", "`id`", "; ls", "'", '"', "\\", "*", "\ud800", "\udcff", "\0", "\n", "\t", "\u2603", "\U0001f600", "a" * 5000,
    "[" * 100_000,
]  # fmt: skip
ARGS = [
    "hidden=3", "dropout=0.1", "dropout=7", "noise=0.2", "noise=nan", '{"hidden": 3}', "{", "hidden=x", "hidden=-1", "a=[1]",
    "gradient=manual", "gradient=none", "x" * 5000, "hidden=1e9", '{"a": {"b": [1, null]}}', '{"a": NaN}', "=", "input_shape=3",
]  # fmt: skip
LISTS = [
    "fc2=0.1", "conv1=0,conv2=0,fc1=0,fc2=0", "a=0,b=0,c=0,d=0", "linear=1", "fc2=", "=1", ",", ",,", "fc2=1e300",
    "fc2=nan", "hidden=-1", "fc2=0.1,fc2=0.2", "fc2=0.1,", "fc2=1=2", "output=0,hidden=0",
]  # fmt: skip
SPACES = [
    "lr=1e-4..1e-1:log", "lr=0.1", "lr=a..b", "lr=1..0", "optimizer=adamw,sgd", "optimizer=x,y", "momentum=0..0.9", "seed=1..9",
    "batch_size=16..64", "batch_size=1e1..3", "model_args.hidden=3,5", "model_args=3", "lr=0..1:log", "lr=1..2 lr=1..2",
    "..", "weight_decay=0..0.1 label_smoothing=0,0.1",
]  # fmt: skip


class Opened(BaseException):
    """A command line was right: the work would begin now."""


def _value(source: random.Random, field: dataclasses.Field[Any], folder: Path) -> str:
    """Return a value for a field: a good one half of the time, or one of its own kind, or anything."""
    kind = source.random()
    if kind < 0.15:
        return source.choice(OTHERS)
    if kind < 0.3:
        return source.choice(NUMBERS + PLACES + LISTS)
    if field.name == "runs":
        return f"{folder},{source.choice([str(folder), '0' * 32, *PLACES])}"
    if field.name == "run" or (field.name == "output_dir" and kind < 0.5):
        return str(folder) if kind < 0.6 else source.choice([str(folder), "0" * 32, "x" * 32, *PLACES])
    if field.name.startswith("layer_"):
        return f"{source.choice(LAYERS)}={source.choice(NUMBERS)}" if kind < 0.6 else source.choice(LISTS)
    if choices := field.metadata["choices"]:
        return str(source.choice(choices))
    if field.type == "Args":
        return source.choice([*LISTS, *ARGS])
    if field.type == "tuple[int, ...]":
        return source.choice([*LISTS, *NUMBERS, "1,32", "1,1", "1,,2", "1,x", "1,-1"])
    if field.name == "space":
        return source.choice([*SPACES, *LISTS, *NUMBERS])
    if field.type in ("Path", "str", "tuple[str, ...]"):
        return source.choice([*PLACES, str(field.default), "epoch", "500", "10m", "9" * 999 + "m"])
    if field.type == "bool":
        return source.choice(["true", "false", "true", "false", "yes", "1"])
    return str(field.default) if kind < 0.6 else source.choice(NUMBERS)


def _words(source: random.Random, folder: Path) -> list[str]:
    """Return the words behind `python -m pipeline`."""
    if source.random() < 0.02:
        return [source.choice([*OTHERS, *NUMBERS, "--model", "help", "trian"]), *source.sample(OTHERS, source.randint(0, 3))]
    command = source.choice([*COMMANDS, "main"])
    fields = dataclasses.fields(COMMANDS[command if command in COMMANDS else "run"][0])
    words = [command]
    if command == "search" and source.random() < 0.7:
        words += ["--space", source.choice(SPACES)]
    for _ in range(source.choice([0, 1, 1, 2, 2, 3, 4, 6])):
        field = source.choice(fields)
        flag, value = f"--{field.name}", _value(source, field, folder)
        form = source.random()
        if form < 0.45:
            words += [flag, value]
        elif form < 0.9:
            words.append(f"{flag}={value}")
        elif form < 0.94:
            words.append(flag)
        elif form < 0.97:
            words.append(value)
        else:
            words += [source.choice([flag[1:], flag.replace("_", "-"), flag.upper(), flag + "x", "-" + flag]), value]
    if source.random() < 0.01:
        words.insert(source.randint(0, len(words)), source.choice(["-h", "--help", "--version"]))
    return words


def _variables(source: random.Random) -> dict[str, str]:
    """Return what torchrun would set, whole, in part, or wrong; most of the time nothing."""
    if source.random() < 0.75:
        return {}
    good = dict(zip(JOB, ("0", "1", "0", "1", "0", "127.0.0.1", "29500"), strict=True))
    if source.random() < 0.5:
        good |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": source.choice("01"), "LOCAL_RANK": source.choice("01")}
    for name in source.sample(JOB, source.choice([0, 0, 1, 1, 2, 5])):
        if source.random() < 0.5:
            del good[name]
        else:
            good[name] = source.choice([n for n in [*NUMBERS, "", "abc", "-"] if len(n) < 1000])
    return good


@pytest.fixture
def place(tmp_path: Path, trained: Callable[[str], Run], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of a run beside a working folder with a home, a file, a folder and two links; all of it is watched."""
    shutil.copytree(trained("mlp").folder, tmp_path / "run")
    (tmp_path / "work" / "folder").mkdir(parents=True)
    (tmp_path / "work" / "file").write_text("a file")
    (tmp_path / "work" / "link").symlink_to("nowhere")
    (tmp_path / "work" / "loop").symlink_to("loop")
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "run"


@pytest.fixture
def doors(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every piece of work raise Opened instead, once the run of `place` is trained."""
    from export import triton
    from export.serve import predict, server
    from export.web import build
    from pipeline import benchmark, cache, commands, distributed, reporting
    from pipeline.data import prepare
    from pipeline.data.shards import write
    from pipeline.distributed import Ranks, single_process
    from pipeline.inspection import command
    from pipeline.pages import comparison
    from pipeline.plots import standalone
    from pipeline.search import study
    from pipeline.tracking import promotion, tracker

    def opened(*_: object, **__: object) -> NoReturn:
        raise Opened

    @contextmanager
    def alone(device: str) -> Iterator[Ranks]:
        """Stand for a process group whose other ranks have come."""
        worker = environment.worker()
        if worker.rank:
            raise Opened  # it waits for what rank 0 decides
        yield Ranks(worker.rank, worker.local_rank, worker.world_size, single_process().device)

    for module, name in (
        *((commands, name) for name in ("train", "evaluate", "export", "verify")),
        (prepare, "prepare"), (distributed, "launch"), (tracker, "send"), (predict, "predict"), (command, "inspect"),
        (server, "serve"), (promotion, "promote"), (promotion, "rollback"), (build, "web"), (benchmark, "benchmark"),
        (triton, "add"), (study, "search_on_this_rank"),
        (comparison, "compare"), (reporting, "report"), (cache, "main"), (write, "write"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, opened)
    monkeypatch.setattr(distributed, "process_group", alone)
    monkeypatch.setattr(standalone, "PICTURES", dict.fromkeys(standalone.PICTURES, ("", opened)))


def _tree(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)


def _lists(source: random.Random, folder: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
    while True:
        yield _words(source, folder), _variables(source)


def _outcome(words: list[str], variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> int | str:
    """Run a command line in this process up to the door; return its exit status or `right`."""
    with monkeypatch.context() as patch:
        for name in JOB:
            patch.delenv(name, raising=False)
        for name, value in variables.items():
            patch.setenv(name, value)
        try:
            return main(words)
        except Opened:
            return "right"


def _in_process(count: int, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Counter[Any]:
    before, runs = _tree(place.parent), len(MlflowClient().search_runs(["0"], max_results=5000))
    outcomes: Counter[Any] = Counter()
    source = random.Random(SEED)
    for (words, variables), _ in zip(_lists(source, place), range(count), strict=False):
        shown = f"{[word[:200] for word in words]} {variables}"
        try:
            outcome = _outcome(words, variables, monkeypatch)
        except Exception as error:
            raise AssertionError(f"{shown} ends in {type(error).__name__}: {str(error)[:300]}") from error
        told = capsys.readouterr()
        assert outcome in (0, 2, "right"), shown
        if outcome == 2:
            mute = variables.get("LOCAL_RANK", "0") != "0"  # what is wrong with a job is told by the first rank of a host
            assert told.err.strip() or mute, shown
            assert "Traceback" not in told.out + told.err, shown
            assert all(len(line) > 15 for line in told.err.splitlines()), told.err
        assert _tree(place.parent) == before, shown
        outcomes[outcome, words[0] if words[0] in COMMANDS else "other"] += 1
    assert len(MlflowClient().search_runs(["0"], max_results=5000)) == runs
    return outcomes


def _report(outcomes: Counter[Any], what: str) -> str:
    total = Counter({key: sum(n for (k, _), n in outcomes.items() if k == key) for key in (0, 2, "right")})
    return (
        f"{what}: seed {SEED}, {total['right']} were right, {total[2]} got a sentence, {total[0]} were answered, 0 tracebacks"
    )


@pytest.mark.usefixtures("doors")
def test_500_command_lines_are_right_or_get_a_sentence_and_leave_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = _in_process(500, place, monkeypatch, capsys)
    assert {command for outcome, command in outcomes if outcome == 2} >= set(COMMANDS)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("doors")
def test_6000_command_lines_are_right_or_get_a_sentence_and_leave_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = _in_process(6000, place, monkeypatch, capsys)
    with capsys.disabled():
        print(f"\n{_report(outcomes, '6000 command lines in process')}")
    assert {command for outcome, command in outcomes if outcome == "right"} >= set(COMMANDS)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.usefixtures("doors")
def test_240_real_processes_end_as_they_did_in_process(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the lines that are right, a few: these do their work, short, and alone."""
    outcomes: Counter[Any] = Counter()
    source = random.Random(SEED + 1)
    wanted = {"right": 20, 2: 210, 0: 10}
    for words, variables in _lists(source, place):
        if not any(wanted.values()):
            break
        if any("\0" in word or "\ud800" in word for word in [*words, *variables.values()]):
            continue
        outcome = _outcome(words, variables, monkeypatch)
        capsys.readouterr()
        if not wanted[outcome] or (outcome == "right" and variables):
            continue
        wanted[outcome] -= 1
        if outcome == "right" and words[0] in ("run", "main", "train", "search"):
            words = [*words, "--epochs=1", "--max_steps=1", "--nproc=1", "--num_workers=0", "--compile=false"]
            words += ["--trials=1"] if words[0] == "search" else []
        before = _tree(place.parent)
        environ = {k: v for k, v in os.environ.items() if k not in JOB} | variables
        done = subprocess.run(
            [sys.executable, "-m", "pipeline", *words], capture_output=True, timeout=300, env=environ, check=False
        )
        shown = f"{[word[:200] for word in words]} {variables}: {done.stderr.decode(errors='replace')[-2000:]}"
        assert b"Traceback" not in done.stderr and done.returncode in (0, 1, 2), shown
        if outcome != "right":
            assert done.returncode == outcome and _tree(place.parent) == before, shown
        outcomes[outcome, words[0]] += 1
    with capsys.disabled():
        print(f"\n{_report(outcomes, f'{outcomes.total()} real processes')}")
