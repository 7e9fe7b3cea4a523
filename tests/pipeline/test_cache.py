"""`cache list` and `cache gc`: what lies in the cache, and room made there, of the oldest and of nothing that is in use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli import main
from pipeline.data.prepare import is_intact, lock_of

HOLD = """
import sys
from pipeline.data.prepare import prepare
from pipeline.resolve import resolve
prepare(resolve({"dataset": "moons", "model": "two_layer", "cache_dir": sys.argv[1]}))
print("holds", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache of two data sets, the first of which was used longer ago, and a folder of somebody else's."""
    folder = tmp_path / "cache"
    for name, model in (("moons", "two_layer"), ("sine", "polynomial")):
        assert main(["prepare", "--model", model, "--dataset", name, "--cache_dir", str(folder)]) == 0
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("all of it")
    for age, name in enumerate(("sine", "moons")):
        os.utime(next(folder.glob(f"{name}-*[0-9a-f]")), (1e9 - age, 1e9 - age))
    return folder


def _names(cache: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in cache.iterdir() if path.is_dir())


def test_what_lies_there_is_listed(cache: Path, capsys: Any) -> None:
    capsys.readouterr()
    assert main(["cache", "--cache_dir", str(cache)]) == 0
    text = capsys.readouterr().out
    assert "prepared moons" in text and "prepared sine" in text and "thesis" not in text and "mine" not in text
    assert text.index("prepared sine") < text.index("prepared moons") and "0 runs" in text
    assert main(["cache", "list", "--cache_dir", str(cache)]) == 0 and capsys.readouterr().out == text


@pytest.mark.parametrize(("most", "left"), [("1", ["mine", "moons", "sine"]), ("0", ["mine"])])
def test_room_is_made(most: str, left: list[str], cache: Path, capsys: Any) -> None:
    assert main(["cache", "gc", "--max_gb", most, "--cache_dir", str(cache)]) == 0
    assert _names(cache) == left and (cache / "mine" / "thesis.txt").exists()
    assert "0.000 GB left" in capsys.readouterr().out


def test_what_was_used_longest_ago_goes_first(cache: Path) -> None:
    sizes = {p.name: sum(f.stat().st_size for f in p.iterdir()) for p in cache.iterdir() if lock_of(p).exists()}
    (sine,) = [name for name in sizes if name.startswith("sine")]
    assert main(["cache", "gc", "--max_gb", f"{sizes[sine] / 1e9:.9f}", "--cache_dir", str(cache)]) == 0
    assert _names(cache) == ["mine", "sine"] and is_intact(cache / sine)


def test_what_a_process_reads_stays_to_its_end(cache: Path, capsys: Any) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(cache)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdin
        while b"holds" not in process.stdout.readline():
            pass
        assert main(["cache", "--cache_dir", str(cache)]) == 0 and "in use" in capsys.readouterr().out
        assert main(["cache", "gc", "--max_gb", "0", "--cache_dir", str(cache)]) == 1
        told = capsys.readouterr()
        assert "is in use, and stays" in told.out and "cannot be removed" in told.err and _names(cache) == ["mine", "moons"]
        process.stdin.close()
        process.wait(timeout=60)
    assert main(["cache", "gc", "--max_gb", "0", "--cache_dir", str(cache)]) == 0 and _names(cache) == ["mine"]


@pytest.mark.parametrize(
    ("words", "said"),
    [(["gc"], "max_gb: nothing was given"), (["list", "--max_gb", "1"], "has no effect on `cache list`"),
     (["clear"], "action=clear is not known"), (["gc", "--max_gb", "-1"], "max_gb=-1 is out of range")],
)  # fmt: skip
def test_a_mistake_gets_a_sentence(words: list[str], said: str, capsys: Any) -> None:
    assert main(["cache", *words]) == 2 and said in capsys.readouterr().err
