"""Arrays on disk: gone on with after a kill, refused by a full disk in a sentence, and measured as numpy does."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.cli import main
from pipeline.config import RunConfig
from pipeline.data import tensors
from pipeline.data.prepare import RAW, is_intact, prepare, read_manifest
from pipeline.files import sha256
from pipeline.resolve import resolve

Make = Callable[..., RunConfig]
BLOCK = 8


class Noise:
    """Images that are made where they are wanted, and count how often; at the call number `dies_at` the process is killed."""

    def __init__(self, count: int, *, dies_at: int = 0) -> None:
        self.shape, self.names, self.calls, self.dies_at = (count, 3, 4, 5), [str(k) for k in range(count)], 0, dies_at
        self.filled: list[int] = []

    def __len__(self) -> int:
        return self.shape[0]

    def fill(self, out: np.ndarray, rows: np.ndarray) -> None:
        self.calls += 1
        for place, row in enumerate(rows):
            if self.calls == self.dies_at and place == len(rows) // 2:
                os.kill(os.getpid(), signal.SIGKILL)
            out[place] = np.random.default_rng(int(row)).integers(0, 256, self.shape[1:], dtype=np.uint8)
            self.filled.append(int(row))


def expected(rows: np.ndarray) -> np.ndarray:
    out = np.zeros((len(rows), 3, 4, 5), np.uint8)
    Noise(100).fill(out, rows)
    return out


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "_BLOCK", BLOCK)


def in_a_child(action: Callable[[], object]) -> int:
    """Run `action` in a forked child and return how it ended."""
    child = os.fork()
    if not child:
        try:
            action()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("dies_at", range(1, 7))
def test_what_was_killed_is_gone_on_with_to_the_same_bytes(tmp_path: Path, dies_at: int) -> None:
    rows = np.random.default_rng(0).permutation(60)[:45]
    path = tmp_path / "train_x.npy"
    status = in_a_child(lambda: tensors.decode(path, Noise(60, dies_at=dies_at), rows))
    done = int((tmp_path / "train_x.mark").read_text())
    last = BLOCK * (dies_at - 1)
    assert status == -signal.SIGKILL and done in (last, max(0, last - BLOCK)), "a block is marked while the next is decoded"
    again = Noise(60)
    entry = tensors.decode(path, again, rows)
    assert again.filled == rows[done:].tolist(), "blocks that were done are done once"
    np.save(tmp_path / "numpy.npy", expected(rows))
    assert path.read_bytes() == (tmp_path / "numpy.npy").read_bytes()
    assert entry == {"file": "train_x.npy", "dtype": "uint8", "shape": [45, 3, 4, 5], "sha256": sha256(path)}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["numpy.npy", "train_x.npy"]


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("call", range(1, 9))
def test_a_kill_while_the_mark_is_written_loses_a_block_at_most(
    tmp_path: Path, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`write_text` first empties a file: what is killed in between must not leave a mark of nothing."""
    rows = np.arange(45)

    def die_within() -> None:
        left, inner = [call], Path.write_text

        def write(path: Path, text: str) -> int:
            left[0] -= 1
            if not left[0]:
                path.open("w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            return inner(path, text)

        monkeypatch.setattr(Path, "write_text", write)
        tensors.decode(tmp_path / "x.npy", Noise(60), rows)

    status = in_a_child(die_within)
    assert status == (-signal.SIGKILL if call <= 7 else 0)
    again = Noise(60)
    tensors.decode(tmp_path / "x.npy", again, rows)
    assert np.array_equal(np.load(tmp_path / "x.npy"), expected(rows)) and [p.name for p in tmp_path.iterdir()] == ["x.npy"]
    assert len(again.filled) <= 45 - max(0, call - 2) * BLOCK or call == 8


def test_no_rows_are_an_array_of_none(tmp_path: Path) -> None:
    entry = tensors.decode(tmp_path / "x.npy", Noise(60), np.arange(0))
    assert entry["shape"] == [0, 3, 4, 5] and np.load(tmp_path / "x.npy").shape == (0, 3, 4, 5)


def pictures(root: Path, count: int = 40, side: int = 12) -> Path:
    for k in range(count):
        pixels = np.random.default_rng(k).integers(0, 256, (side, side, 3), dtype=np.uint8)
        path = root / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


PREPARE = """
import sys, threading
from pipeline.data import images, prepare, tensors
from pipeline.resolve import resolve
tensors._BLOCK = 4
config = resolve({"model": "cnn", "dataset": sys.argv[1], "image_size": "28", "cache_dir": sys.argv[2]})
if sys.argv[3] == "hang":
    inner, lock, left = images.decode_into, threading.Lock(), [14]
    def decode_into(out, file):
        with lock:
            left[0] -= 1
            hangs = left[0] < 0
        if hangs:
            open(sys.argv[2] + "/hangs", "w").close()
            threading.Event().wait()
        inner(out, file)
    images.decode_into = decode_into
print(prepare.prepare(config))
"""


def test_a_preparation_killed_while_it_decodes_is_gone_on_with_by_the_next(tmp_path: Path) -> None:
    root, cache = pictures(tmp_path / "own"), tmp_path / "cache"
    whole = prepare(resolve({"model": "cnn", "dataset": str(root), "image_size": "28", "cache_dir": str(tmp_path / "other")}))
    cache.mkdir()
    process = subprocess.Popen([sys.executable, "-c", PREPARE, str(root), str(cache), "hang"], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 90
    while not ((cache / "hangs").exists() and next(cache.glob("*.part/*.mark"), None)):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    (mark,) = cache.glob("*.part/*.mark")
    assert int(mark.read_text()) in (8, 12), "14 images were decoded, in blocks of 4"
    before = mark.with_suffix(".npy").stat().st_ino
    done = subprocess.run(
        [sys.executable, "-c", PREPARE, str(root), str(cache), "on"], capture_output=True, text=True, timeout=90, check=True
    )
    folder = Path(done.stdout.splitlines()[-1])
    assert (folder / "train_x.npy").stat().st_ino == before, "it has begun anew"
    assert {p.name: sha256(p) for p in folder.glob("*.npy")} == {p.name: sha256(p) for p in whole.glob("*.npy")}
    assert read_manifest(folder) == read_manifest(whole) and is_intact(folder)
    assert not list(cache.glob("*.part")) and not list(folder.glob("*.mark"))


@pytest.mark.parametrize("allowed", [200, 30_000])
@pytest.mark.parametrize("kind", ["images", "npz"])
def test_a_disk_that_is_full_is_told_in_a_sentence_and_leaves_nothing(tmp_path: Path, kind: str, allowed: int) -> None:
    """A limit of the process on the size of a file stands for the disk: the same calls fail, at the same places."""
    own = pictures(tmp_path / "own")
    if kind == "npz":
        own = tmp_path / "own.npz"
        np.savez(own, x=np.zeros((40, 3, 28, 28), np.uint8), y=np.arange(40) % 2)
    said = tmp_path / "said"

    def attempt() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with said.open("wb", buffering=0) as file:
            os.dup2(file.fileno(), 2)
            sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
            resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, resource.RLIM_INFINITY))
            os._exit(main(["prepare", "--model", "cnn", "--dataset", str(own), "--cache_dir", str(tmp_path / "cache")]))

    assert in_a_child(attempt) == 2
    (line,) = said.read_text().splitlines()
    assert line.startswith(f"cache_dir={tmp_path}/cache cannot be used (File too large). Make room")
    assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]


def test_images_that_cannot_fit_on_the_disk_are_told_before_any_is_decoded(
    tmp_path: Path, make_config: Make, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    class Usage:
        free = 50_000

    root = pictures(tmp_path / "own")
    monkeypatch.setattr("pipeline.data.prepare.shutil.disk_usage", lambda folder: Usage)
    monkeypatch.setattr("pipeline.data.images.decode_into", lambda out, file: 1 / 0)
    assert main(["prepare", "--model", "cnn", "--dataset", str(root), "--cache_dir", str(tmp_path / "cache")]) == 2
    said = capsys.readouterr().err
    assert f"cache_dir={tmp_path}/cache: its disk has 0 MB left, and 40 samples of 3 x 28 x 28 need 0 MB" in said
    assert not list((tmp_path / "cache").glob("*-*/"))


@pytest.mark.parametrize("shape", [(5000, 3, 7, 9), (37, 1, 28, 28), (1, 3, 2, 2)], ids=str)
def test_statistics_of_images_are_numpys(shape: tuple[int, ...]) -> None:
    source = np.random.default_rng(0)
    x = (source.beta(2, 5, shape) * 255).astype(np.uint8)
    x[:, 0] //= 3
    mean, std = tensors.statistics(x, is_image=True)
    np.testing.assert_allclose(mean, x.mean((0, 2, 3), dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(std, x.std((0, 2, 3), dtype=np.float64), rtol=1e-12)


def test_statistics_of_one_colour_are_its_value_and_nothing() -> None:
    x = np.full((10, 3, 4, 4), 7, np.uint8)
    assert tensors.statistics(x, is_image=True) == ([7.0] * 3, [0.0] * 3)


def test_statistics_of_vectors_are_numpys_in_float64() -> None:
    x = (np.random.default_rng(0).normal(size=(4001, 3)) * [1, 1e4, 1e-6] + [0, 1e7, 1]).astype(np.float32)
    mean, std = tensors.statistics(x, is_image=False)
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, x.astype(np.float64).std(0), rtol=1e-9)


@pytest.mark.parametrize("width", [1, 2, 3, 17, 169, 5000])
@pytest.mark.parametrize("count", [1, 2, 401, 5003])
def test_statistics_of_vectors_have_the_bits_that_numpy_gives_all_at_once(count: int, width: int) -> None:
    source = np.random.default_rng(count + width)
    x = source.normal(3, 2, (count, width)).astype(np.float32)
    x[:, ::3] = source.random((count, 1)) < 0.3
    x[:, -1] = -0.0
    assert tensors.statistics(x, is_image=False) == (x.mean(0, dtype=np.float64).tolist(), x.std(0, dtype=np.float64).tolist())


@pytest.mark.parametrize("sizes", [[], [3], [4, 4, 2]], ids=str)
def test_an_array_written_in_parts_is_the_file_and_the_entry_of_one_written_at_once(tmp_path: Path, sizes: list[int]) -> None:
    x = np.arange(5 * sum(sizes), dtype=np.float32).reshape(-1, 5)
    room = np.empty((2, 4, 5), np.float32)  # which holds the last two parts only

    def parts() -> Iterator[np.ndarray]:
        for number, end in enumerate(np.cumsum(sizes)):
            part = room[number % 2, : sizes[number]]
            part[:] = x[end - sizes[number] : end]
            yield part

    once, in_parts = tmp_path / "once" / "x.npy", tmp_path / "parts" / "x.npy"
    for path in (once, in_parts):
        path.parent.mkdir()
    assert tensors.save(once, x) == tensors.save_parts(in_parts, x.shape, "float32", parts())
    assert once.read_bytes() == in_parts.read_bytes()


def test_a_table_whose_raw_columns_were_damaged_is_prepared_anew(tmp_path: Path, make_config: Make) -> None:
    """The proof of a table is from them."""
    rows = [f"{k},{'ab'[k % 2]},{k % 3}" for k in range(90)]
    (tmp_path / "own.csv").write_text("\n".join(["number,letter,label", *rows]) + "\n")
    config = make_config(model="mlp", dataset=tmp_path / "own.csv", target="label", cache_dir=tmp_path / "cache")
    folder = prepare(config)
    digest = sha256(folder / RAW)
    for damage in (lambda path: path.write_bytes(path.read_bytes()[:-9]), lambda path: path.unlink()):
        damage(folder / RAW)
        assert not is_intact(folder)
        assert prepare(config) == folder and sha256(folder / RAW) == digest
