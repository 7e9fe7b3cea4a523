"""A flag of several texts, and what the program is called."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.config import PredictConfig, convert
from pipeline.errors import UserError
from pipeline.flags import read_flags
from tests.conftest import ROOT


def _inputs(*words: str) -> object:
    values, problems = convert(PredictConfig, read_flags(words, PredictConfig))
    assert not problems
    return values["input"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--input a", ("a",)),
        ("--input a b c --top 3", ("a", "b", "c")),
        ("--top 3 --input a --input b c", ("a", "b", "c")),
        ("--input=a --input=b", ("a", "b")),
        ("--input a --onnx m b", None),
        ("--input=a b", None),
    ],
)
def test_a_flag_of_several_texts_takes_all_up_to_the_next_and_is_repeated(words: str, expected: object) -> None:
    if expected is None:
        with pytest.raises(UserError, match=r"^b is not a flag of this command"):
            read_flags(words.split(), PredictConfig)
    else:
        assert _inputs(*words.split()) == expected


@pytest.mark.parametrize("name", ['["a", "b"]', "a b", "[", "=", "ü", "-"])
def test_a_name_is_taken_as_it_is(name: str) -> None:
    assert _inputs("--input", name, "b") == (name, "b")


def test_a_hundred_thousand_names_are_read_at_once() -> None:
    names = [f"{k}.jpg" for k in range(100_000)]
    assert _inputs("--input", *names) == tuple(names)


def test_a_flag_without_a_name_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--input", "--top", "3"]) == 2
    assert "--input was given without a value" in capsys.readouterr().err


def test_the_installed_command_is_called_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, name = scripts["trainyard"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
    code = f"import sys; from {module} import {name}; sys.argv[0] = 'bin/trainyard'; {name}()"
    for words, usage in (["--help"], "trainyard COMMAND"), (["predict", "--help"], "trainyard predict"):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0 and done.stdout.startswith(f"usage: {usage} [--flag VALUE ...]")
    done = subprocess.run([sys.executable, "-c", code, "nothing"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "nothing is not a command" in done.stderr
    assert Path(sys.argv[0]).name != "trainyard"
