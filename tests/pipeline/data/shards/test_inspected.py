"""`inspect` of shards says what they hold, and proposes a training that can be had; `search` takes them as it takes tensors."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cli import main
from pipeline.data.shards.places import Place
from pipeline.data.shards.write import write
from pipeline.resolve import resolve
from tests import own_data
from tests.pipeline.search.searches import report
from tests.trainings import same_weights


def _write(kind: str, folder: Path) -> Path:
    folder.mkdir()
    if kind == "images":
        flags = {"dataset": str(own_data.photos(folder / "photos")), "model": "cnn"}
    elif kind == "table":
        rows = [f"{'abc'[k % 3]},{'' if k % 7 == 0 else k},{'yes' if k % 2 else 'no'}" for k in range(120)]
        (folder / "t.csv").write_text("letter,number,kind\n" + "\n".join(rows) + "\n")
        flags = {"dataset": str(folder / "t.csv"), "model": "mlp", "target": "kind"}
    else:
        rng = np.random.default_rng(0)
        np.savez(folder / "v.npz", x=rng.normal(size=(200, 4)).astype("f4"), y=rng.normal(size=(200, 2)).astype("f4"))
        flags = {"dataset": str(folder / "v.npz"), "model": "mlp"}
    place = folder / "shards"
    place.mkdir()
    write(resolve(flags), Place(str(place)), num_bytes=10_000 if kind == "images" else 1000)
    return place


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("images", [r"samples +72 of 3 x 28 x 28 uint8, prepared", r"train +\d+ .* as the data says", r"blue +24 +33\.3%"]),
        ("table", [r"letter +category +3 +[abc] ", r"columns, in \d+ samples of test", r"shards +4 of"]),
        ("vectors", [r"feature 3 +number", r"targets\n", r"in the \d+ samples of the first shard"]),
    ],
)
def test_what_shards_hold_is_said_and_the_training_proposed_is_one(
    kind: str, said: list[str], tmp_path: Path, capsys: Any
) -> None:
    place = _write(kind, tmp_path / "data")
    before = {path: path.read_bytes() for path in place.iterdir()}
    capsys.readouterr()
    assert main(["inspect", "--dataset", str(place)]) == 0
    text = capsys.readouterr().out
    assert all(re.search(each, text) for each in said), text
    assert {path: path.read_bytes() for path in place.iterdir()} == before
    (picture,) = Path("runs/plots").iterdir()
    assert picture.stat().st_size > 5000
    (line,) = re.findall(r"^  python -m pipeline run (.*)$", text, flags=re.MULTILINE)
    words = ["train", *shlex.split(line), "--epochs", "1", "--output_dir", "run", "--cache_dir", str(tmp_path / "cache")]
    assert main(words) == 0 and Path("run/weights.safetensors").is_file()


def test_a_shard_that_is_broken_is_told(tmp_path: Path, capsys: Any) -> None:
    place = _write("vectors", tmp_path / "data")
    path = place / "train-00000.arrow"
    path.write_bytes(path.read_bytes()[:-8] + b"12345678")
    assert main(["inspect", "--dataset", str(place)]) == 1
    assert "train-00000.arrow is not what was written" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_search_on_shards_is_the_one_on_tensors(tmp_path: Path) -> None:
    x, place = np.random.default_rng(0).normal(size=(200, 4)).astype("f4"), tmp_path / "shards"
    np.savez(tmp_path / "v.npz", x=x, y=(x[:, 0] > x[:, 1]).astype(int))
    assert main(["prepare", "--dataset", "v.npz", "--model", "mlp", "--shards", "1KB", "--output_dir", str(place)]) == 0
    found: dict[str, Any] = {}
    for name, dataset in (("tensors", tmp_path / "v.npz"), ("shards", place)):
        words = ["search", "--dataset", str(dataset), "--model", "mlp", "--space", "lr=1e-3..1e-1:log", "--trials", "4",
                 "--epochs", "4", "--precision", "fp32", "--output_dir", f"on {name}", "--cache_dir", "cache"]  # fmt: skip
        assert main(words) == 0
        found[name] = [(trial["values"], trial["value"]) for trial in report(Path(f"on {name}"))["trials"]]
        (parity,) = Path(f"on {name}").glob("winner-*/export/parity.json")
        found[f"weights of {name}"] = parity.parents[1] / "weights.safetensors"
    assert found["tensors"] == found["shards"]
    assert same_weights(found["weights of tensors"], found["weights of shards"])
