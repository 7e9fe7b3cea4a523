"""The README is true: its commands are ones that the command line takes, and its Python runs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipeline.cli import main
from pipeline.config import RunConfig
from pipeline.data import find
from pipeline.data.loader import open_split
from pipeline.data.prepare import prepare
from pipeline.flags import read_flags
from pipeline.handlers import COMMANDS
from pipeline.resolve import resolve
from pipeline.run import Run
from pipeline.values import convert
from tests.conftest import ROOT
from tests.docs_data import make

README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


LINES = [line for block in _blocks("bash") for line in block.strip().splitlines()]


def _words(line: str) -> tuple[str, list[str]]:
    """Return the sub-command and flags that a README line gives to the pipeline, directly or through MLproject."""
    words = shlex.split(line.rpartition("&&")[2])
    if "mlflow" in words and "run" in words[words.index("mlflow") :]:
        entry = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"][words[words.index("-e") + 1]]
        given = dict(w.split("=", 1) for w in (words[i + 1] for i, w in enumerate(words) if w == "-P"))
        return entry["command"].split()[3], [w for k, v in given.items() for w in (f"--{k}", v)]
    start = words.index("pipeline")
    return words[start + 1], words[start + 2 :]


@pytest.mark.parametrize("line", [line for line in LINES if "pipeline" in line or "mlflow run" in line])
def test_a_command_of_the_readme_is_one_that_the_command_line_takes(line: str, tmp_path: Path) -> None:
    if "photos" in line or "houses" in line:  # its own data and code: tests/test_docs.py runs these
        make(tmp_path)
    command, flags = _words(line)
    cls = COMMANDS[command][0]
    texts = read_flags(flags, cls)
    if Path(texts.get("config", "")).name == "config.json":  # a run's, which is only there once the one before was run
        texts.pop("config")
    if cls is RunConfig and "resume" not in texts:
        assert isinstance(resolve(texts), RunConfig)
    else:
        assert convert(cls, texts)[1] == {}


def test_the_readme_has_its_two_first_commands() -> None:
    assert LINES[0].startswith("python3 -m venv") and LINES[0].endswith(
        "uv run mlflow run . -e main -P model=cnn --env-manager local"
    )
    assert "uv run pytest" in LINES


def test_the_table_of_commands_is_complete() -> None:
    assert all(f"| `python -m pipeline {name}" in README for name in COMMANDS)


def test_the_example_of_a_mistake_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    given, said = re.findall(r"^\$ python -m pipeline (train .*)\n((?:.+\n)+)```", README, flags=re.MULTILINE)[0]
    assert main(shlex.split(given)) == 2
    assert capsys.readouterr().err == said


@pytest.fixture
def mine(trained: Callable[[str], Run], tmp_path: Path) -> Run:
    """Return the run that README's reader has in runs/mine, exported, in an empty folder."""
    run = trained("cnn")
    if not (run.folder / "export").is_dir():
        assert main(["export", "--run", str(run.folder)]) == 0
    (tmp_path / "runs").mkdir()
    shutil.copytree(run.folder, tmp_path / "runs" / "mine")
    return run


def test_the_onnx_example_answers_as_shown_without_this_project_and_without_torch(mine: Run, tmp_path: Path) -> None:
    code = _blocks("python")[1]
    shown = README.partition(f"{code}```\n\n```\n")[2].partition("```")[0]
    blocked = (
        "import sys\nclass Blocker:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'models', 'pipeline', 'export'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", blocked + code], capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = re.compile(r"^(\d) with probability [01]\.\d{3}, and it is (\d)$", flags=re.MULTILINE)
    said, expected = answer.findall(done.stdout), answer.findall(shown)
    assert said == expected and len(said) == 3 and all(guess == label for guess, label in said)
    assert len([line for line in code.splitlines() if line.strip()]) <= 16


def test_the_digits_of_the_onnx_example_were_held_out_and_are_resized_as_in_training(mine: Run) -> None:
    first, last = map(int, re.findall(r"digits\.images\[(\d+):(\d+)\]", README)[0])
    pixels = find("digits").load(Path("data"), 0).x[first:last]
    test = open_split(prepare(mine.config), "test").x.numpy().astype(int)
    for image in pixels[:, 0]:
        resized = np.asarray(Image.fromarray(image).resize((28, 28), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(test[:, 0] - resized).max(axis=(1, 2)).min() <= 1, "it is in no test sample"


def test_breaking_a_weight_as_the_readme_does_is_found_out(
    mine: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(compile(_blocks("python")[0], "README.md", "exec"), {})
    command = re.findall(r"^\$ python -m pipeline (verify .*)$", README, flags=re.MULTILINE)[0]
    flags = [*shlex.split(command), "--cache_dir", str(mine.config.cache_dir)]
    assert main(flags) == 1
    said = capsys.readouterr().err
    assert "network.conv1.weight in 1 of 400 values by up to 0.05" in said and "See runs/mine/export/parity-nudged.md" in said
    at = flags.index("--onnx")
    assert main(flags[:at] + flags[at + 2 :]) == 0  # the run's own files are as good as before


def test_what_the_readme_has_its_reader_write_is_ignored_by_git(mine: Run, tmp_path: Path) -> None:
    """A clone in which its own README was followed is not dirty: a run's tag `git_dirty` says so of changed sources only."""
    exec(compile(_blocks("python")[0], "README.md", "exec"), {})
    pictures = [_words(line) for line in LINES if "pipeline plot" in line]
    for command, flags in pictures:
        assert main([command, *flags]) == 0
    given = re.findall(r"--(?:output_dir|data_dir) (\S+)", "\n".join(LINES))
    for folder in given:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "file").touch()
    shutil.copy(ROOT / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    listed = subprocess.run(["git", "status", "--porcelain", "-uall"], capture_output=True, text=True, check=True).stdout
    assert pictures and listed == "?? .gitignore\n"


def test_models_and_data_sets_are_all_listed() -> None:
    from models import MODELS
    from pipeline.data import matching

    assert all(f"| `{name}` |" in README for name in [*MODELS, *matching()])
