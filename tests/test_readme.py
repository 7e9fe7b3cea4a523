"""The README is true: its commands are ones that the command line takes, and its Python runs."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline import cli
from pipeline.cli import COMMANDS, main
from pipeline.config import RunConfig, convert, resolve
from pipeline.store import Run
from tests.conftest import ROOT

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
def test_a_command_of_the_readme_is_one_that_the_command_line_takes(line: str) -> None:
    command, flags = _words(line)
    cls = COMMANDS[command][0]
    texts = cli._read_flags(flags, cls)
    if cls is RunConfig and "resume" not in texts:
        assert isinstance(resolve(texts), RunConfig)
    else:
        assert convert(cls, texts)[1] == {}


def test_the_readme_has_its_two_first_commands() -> None:
    assert LINES[0].startswith("python3 -m venv") and LINES[0].endswith(
        "uv run mlflow run . -e main -P model=cnn --env-manager local"
    )
    assert LINES[1] == "uv run pytest"


def test_the_table_of_commands_is_complete() -> None:
    assert all(f"| `python -m pipeline {name}" in README for name in COMMANDS)


def test_the_example_of_a_mistake_is_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    given, said = re.findall(r"^\$ python -m pipeline (train .*)\n((?:.+\n)+)```", README, flags=re.MULTILINE)[0]
    assert main(shlex.split(given)) == 2
    assert capsys.readouterr().err == said


def test_the_onnx_example_runs_without_this_project_and_without_torch(trained: Callable[[str], Run], tmp_path: Path) -> None:
    run = trained("cnn")
    if not (run.folder / "export").is_dir():
        assert main(["export", "--run", str(run.folder)]) == 0
    shutil.copy(run.folder / "export" / "model.onnx", tmp_path / "model.onnx")
    code = _blocks("python")[1]
    blocked = "import sys; sys.modules.update(dict.fromkeys(('torch', 'models', 'pipeline', 'export')))\n"
    done = subprocess.run(
        [sys.executable, "-I", "-c", blocked + code], capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^\d 0\.\d+$", done.stdout, flags=re.MULTILINE)) == 3
    assert len([line for line in code.splitlines() if line.strip()]) <= 10


def test_breaking_a_weight_as_the_readme_does_is_found_out(
    trained: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained("cnn")
    if not (run.folder / "export").is_dir():
        assert main(["export", "--run", str(run.folder)]) == 0
    (tmp_path / "runs").mkdir()
    shutil.copytree(run.folder, tmp_path / "runs" / "mine")
    exec(compile(_blocks("python")[0], "README.md", "exec"), {})
    flags = ["--run", "runs/mine", "--onnx", "nudged.onnx", "--cache_dir", str(run.config.cache_dir)]
    assert main(["verify", *flags]) == 1
    said = capsys.readouterr().err
    assert "network.conv1.weight in 1 of 400 values by up to 0.05" in said and "See runs/mine/export/parity-nudged.md" in said
    assert main(["verify", *flags[:2], *flags[4:]]) == 0  # the run's own files are as good as before


def test_models_and_data_sets_are_all_listed() -> None:
    from models import MODELS
    from pipeline.data.catalog import DATASETS

    assert all(f"| `{name}` |" in README for name in [*MODELS, *DATASETS])
