"""README's first page and docs/ are true: their commands are run, and each flag is there.

A line of a ```bash block that begins with `python -m pipeline` is run as it stands, one after the other, in a folder with
the data of tests/docs_data.py. Three rules: `--epochs 2` is added to a training that says nothing of epochs, a benchmark is a
short one, and of a line with `timm:` (an extra) or `--pretrained` (a download) only the flags are read. A line that begins with
`$` fails, and says what stands below it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.config import RunConfig
from pipeline.data.spec import DataOptions
from pipeline.flags import read_flags
from pipeline.handlers import COMMANDS
from pipeline.resolve import resolve
from pipeline.values import convert, flag_name
from tests.conftest import ROOT
from tests.docs_data import PAGES, make
from tests.test_layers import LAYERS

START = "python -m pipeline "
TEXTS = {page.name: page.read_text() for page in PAGES}
TEXTS["README.md"] = TEXTS["README.md"].partition("## Your own data and your own model")[2].partition("\n## ")[0]
LINES = {
    name: [
        line.removeprefix(START)
        for block in re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
        if line.startswith(START)
    ]
    for name, text in TEXTS.items()
}
MISTAKES = [each for text in TEXTS.values() for each in re.findall(rf"^\$ {START}(.+)\n((?:.+\n)+)```", text, re.MULTILINE)]
OUTCOMES = {  # what has to be there in the end
    "README.md": ["runs/photos/export/parity.json", "answers.csv", "runs/plots/inspect-photos.png"],
    "your-data.md": ["runs/photos/export/parity.json", "runs/houses/export/parity.json", "answers.csv", "answers.jsonl",
                     "answers.parquet", "prices.parquet", "runs/plots/inspect-houses.png"],
    "deploy.md": ["runs/small/export/parity.json", "runs/small/export/parity-model.fp16.md",
                  "runs/small/benchmark/benchmark.md", "models/cnn-photos/1/model.onnx", "models/small-fast/config.pbtxt",
                  "runs/site/index.html", "runs/one-page/index.html",
                  "runs/first/report.html", "comparison.html"],
    "search.md": ["runs/search-moons/search.json", "runs/search-houses/plots/importances.png", "study.db",
                  "runs/search-shared/plots/parallel_coordinates.png"],
    "your-model.md": ["runs/net/export/parity.json", "runs/net/code/mynets.py", "runs/resnet/weights.safetensors"],
    "team.md": ["runs/first/report.html"],
    "cache.md": ["mlflow.db"],
    "scale.md": ["shards/index.json", "shards/train-00000.arrow"],
}  # fmt: skip


def _needs_more_than_is_here(line: str) -> bool:
    return (
        "timm:" in line or "--pretrained" in line or line.startswith("serve ")
    )  # tests/export/serve/test_serving_page.py asks it


def _run(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(line)
    if words[0] in ("run", "train") and "--epochs" not in words:
        words += ["--epochs", "2"]
    if words[0] == "benchmark":
        words += ["--rounds", "2", "--seconds", "0.05", *([] if "--formats" in words else ["--formats", "torch,onnx"])]
    home = {"HOME": str(folder / "home"), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *words],
        capture_output=True, text=True, timeout=300, cwd=folder, env=os.environ | home, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_command_of_each_page_does_its_work(tmp_path: Path) -> None:
    with ThreadPoolExecutor(len(LINES)) as pool:  # a page waits for imports while another computes
        for page, problem in zip(LINES, pool.map(lambda page: _follow(page, tmp_path / page), LINES), strict=True):
            assert not problem, f"{page}: {problem}"


def _follow(page: str, folder: Path) -> str:
    """Do what a page says in a folder of its own; return what was not as it says, or nothing."""
    folder.mkdir()
    make(folder)
    for line in LINES[page]:
        if _needs_more_than_is_here(line):
            continue
        done = _run(line, folder)
        busy = done.returncode == 1 and line.startswith("benchmark ") and "\nnot stated:\n" in f"\n{done.stderr}"
        if done.returncode and not busy:  # pages are followed at the same time, and of that a benchmark may complain
            return f"{line}\n{done.stdout}\n{done.stderr}"
    for name in OUTCOMES[page]:
        path = folder / name
        if not path.is_file() or (path.name == "parity.json" and not json.loads(path.read_text())["passed"]):
            return f"{name} is missing, or did not pass"
    return ""


def test_a_mistake_that_a_page_shows_is_told_in_its_words(tmp_path: Path) -> None:
    make(tmp_path)
    for line, said in MISTAKES:
        done = _run(line, tmp_path)
        assert done.returncode == 2 and done.stderr == said, done.stdout + done.stderr
        assert not (tmp_path / "runs").exists()
    assert MISTAKES


@pytest.mark.parametrize("line", [line for lines in LINES.values() for line in lines])
def test_the_command_line_takes_each_command_of_a_page(line: str, tmp_path: Path) -> None:
    make(tmp_path)
    words = shlex.split(line)
    cls = COMMANDS[words[0]][0]
    texts = read_flags(words[1:], cls)
    if cls is RunConfig and "timm:" not in line and "--dataset shards " not in line:  # which the line before makes
        assert isinstance(resolve(texts), RunConfig)
    else:
        assert convert(cls, texts)[1] == {}


def test_each_flag_that_a_page_names_is_there() -> None:
    known = {flag_name(field.name) for cls, *_ in COMMANDS.values() for field in dataclasses.fields(cls)}
    known |= {"extra", "no-deps", "env-manager", "rm"}  # of uv, pip, mlflow and docker
    known |= {"nnodes", "nproc-per-node"}  # of torchrun
    known |= {"directory", "model-repository", "team", "pairs"}  # of http.server, tritonserver and our benchmarks
    for name, text in TEXTS.items():
        assert set(re.findall(r"(?<![\w-])--([a-z][\w-]*)", text)) <= known, name


def test_the_pages_speak_of_each_flag_of_own_data_and_own_models() -> None:
    named = {flag for text in TEXTS.values() for flag in re.findall(r"--(\w+)", text)}
    wanted = {field.name for field in dataclasses.fields(DataOptions)} - {"args"}
    wanted |= {"data_args", "model_args", "loss_args", "weights", "pretrained", "freeze", "head_lr", "layer_decay", "layer_lr"}
    wanted |= {"ema_decay", "mixup", "cutmix", "class_weights", "check_export", "trust_code", "label_smoothing", "preprocess"}
    wanted |= {field.name for field in dataclasses.fields(RunConfig) if field.name.startswith("augment_")}
    assert wanted <= named


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).is_file(), f"{page.name}: {target}"
    assert all(f"(docs/{page.name})" in TEXTS["README.md"] for page in PAGES[1:])


def test_own_data_stands_on_the_first_screen() -> None:
    before = (ROOT / "README.md").read_text().partition("python -m pipeline inspect --dataset photos/")[0]
    assert before.count("\n") < 30


def test_contributing_names_each_module_of_the_layers() -> None:
    """But those of export/, whose layer is its folder's: they are named beside it."""
    rows = dict(re.findall(r"^\| (\d) \| (.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE))
    for number, level in enumerate(LAYERS, start=1):
        named = {name.strip("/").rpartition("/")[2] for name in re.findall(r"`([\w/]+)`", rows[str(number)])}
        modules = {module.rpartition(".")[2] for module in level}
        exported = {path.stem for path in (ROOT / "export").iterdir() if path.stem[0] != "_"} if "export" in level else set()
        assert modules | exported == named | ({"pipeline"} if "pipeline" in modules else set()), number
