"""docs/deploy.md, `Our server`: the server that it starts is asked what it says, and each curl of it gets an answer."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.flags import read_flags
from pipeline.handlers import COMMANDS
from pipeline.values import convert
from tests.conftest import ROOT
from tests.export.serve.conftest import MakeOnnx
from tests.export.serve.serving import Server, served

SECTION = (ROOT / "docs" / "deploy.md").read_text().partition("## Our server\n")[2].partition("\n## ")[0]
LINES = [line for block in re.findall(r"^```bash\n(.*?)^```", SECTION, re.M | re.S) for line in block.splitlines()]
CURLS = [line for line in LINES if line.startswith("curl ")]


def _asked(server: Server, line: str) -> str:
    words = shlex.split(line.replace(":8000", f":{server.port}"))
    done = subprocess.run([*words, "-f"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, line + done.stderr
    return done.stdout


def test_the_command_line_takes_what_the_page_starts() -> None:
    (line,) = (line for line in LINES if not line.startswith("curl "))
    words = shlex.split(line)
    assert words[:4] == ["python", "-m", "pipeline", "serve"]
    cls = COMMANDS["serve"][0]
    assert convert(cls, read_flags(words[4:], cls))[1] == {}
    named = set(re.findall(r"`--(\w+)", SECTION))
    assert {"max_batch", "max_delay_ms", "max_body_mb", "max_queue", "timeout_ms", "num_threads", "host", "onnx"} <= named


def test_each_curl_about_arrays_and_of_the_protocol_is_answered(make_onnx: MakeOnnx) -> None:
    curls = [line for line in CURLS if "-T " not in line and '"rows"' not in line]
    with served(make_onnx(shape=(4,))) as server:
        answers = [_asked(server, line) for line in curls]
        pattern = re.escape(SECTION.partition("serving ")[2].partition("\n")[0]).replace("8000", r"\d+")
        assert re.fullmatch(f"serving {pattern}", server.said[-1])
        said = (
            "1 thread computes samples .*, which keeps the bits that each has alone; a request of few samples does not wait .*"
        )
        assert re.fullmatch(said, server.said[-2])
    assert len(curls) == 5 and json.loads(answers[0])["predictions"][0]["prediction"]
    assert [each["name"] for each in json.loads(answers[3])["outputs"]] == ["logits"]
    assert "trainyard_requests_total" in answers[4]


def test_the_curl_about_an_image_is_answered_in_the_words_of_the_page(make_onnx: MakeOnnx, working_folder: Path) -> None:
    (line,) = (line for line in CURLS if "-T " in line)
    (working_folder / "new-photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(working_folder / "new-photos" / "rose.jpg")
    with served(make_onnx(side=8, classes=["daisy", "rose", "tulip"])) as server:
        (answer,) = json.loads(_asked(server, line))["predictions"]
    shown = re.sub(r"\s+", " ", SECTION).partition('`{"predictions": ')[2].partition("}`")[0]
    (expected,) = json.loads(shown)
    assert list(answer) == list(expected) and list(answer["probabilities"]) == list(expected["probabilities"])


@pytest.mark.slow
def test_the_curl_about_a_row_is_answered_by_a_model_of_the_pages_table(
    working_folder: Path, cache_dir: Path, command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    from tests.docs_data import make

    make(working_folder)
    (line,) = (line for line in CURLS if '"rows"' in line)
    columns = json.loads(shlex.split(line)[3])["rows"][0]
    from pyarrow import csv

    table = csv.read_csv("houses.csv").select([*columns, "price"])
    csv.write_csv(table, "small.csv")
    words = ["--dataset", "small.csv", "--target", "price", "--model", "mlp", "--epochs", "1"]
    done = command("train", *words, "--output_dir", "runs/houses", "--cache_dir", cache_dir)
    assert done.returncode == 0, done.stderr
    assert command("export", "--run", "runs/houses").returncode == 0
    with served(working_folder / "runs" / "houses" / "export" / "model.onnx") as server:
        assert json.loads(_asked(server, line))["predictions"][0]["prediction"] > 0
