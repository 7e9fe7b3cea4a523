"""Fetched shards are whole or not there, whatever the other side does, and no more of them lie here than may."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.data.shards import places, table
from pipeline.data.shards import store as stores
from pipeline.data.shards.order import within_windows
from pipeline.data.shards.places import Place
from pipeline.data.shards.rows import ShardRows
from pipeline.data.shards.store import Store, fetch
from pipeline.errors import Failure

NUM, ROWS, SHAPE = 12, 40, (5,)
X = np.arange(NUM * ROWS * 5, dtype=np.float32).reshape(-1, 5)

Parts = Callable[[Place, str], Iterator[bytes]]


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[dict[str, Any]], Counter[str], dict[str, Parts]]:
    """Entries of shards in a folder that stands for a bucket, how often each was asked for, and what answers instead."""
    folder = tmp_path / "bucket"
    folder.mkdir()
    entries = []
    for k in range(NUM):
        rows = np.arange(k * ROWS, (k + 1) * ROWS)
        content = table.to_bytes(X[rows], rows, rows)
        (folder / f"train-{k:05d}.arrow").write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        entries.append({"file": f"train-{k:05d}.arrow", "num_samples": ROWS, "bytes": len(content), "sha256": digest})
    asked: Counter[str] = Counter()
    instead: dict[str, Parts] = {}

    def parts(place: Place, name: str) -> Iterator[bytes]:
        asked[name] += 1
        if name in instead:
            yield from instead[name](place, name)
        else:
            content = (folder / name).read_bytes()
            yield from (content[i : i + 300] for i in range(0, len(content), 300))

    monkeypatch.setattr(Place, "parts", parts)
    monkeypatch.setattr(places, "_PAUSE", 0.001)
    return entries, asked, instead


def _store(entries: list[dict[str, Any]], folder: Path, limit: int = 0) -> Store:
    made = Store(Place("s3://bucket/x"), entries, SHAPE, folder / "here")
    made.limit = limit
    return made


def _fails(times: int, how: Callable[[bytes], Iterator[bytes]], folder: Path) -> Parts:
    left = [times]

    def answer(place: Place, name: str) -> Iterator[bytes]:
        content = (folder / name).read_bytes()
        left[0] -= 1
        return how(content) if left[0] >= 0 else iter([content])

    return answer


def _breaks(content: bytes) -> Iterator[bytes]:
    yield content[: len(content) // 2]
    raise OSError(errno.ECONNRESET, "Connection reset by peer")


def _others(content: bytes) -> Iterator[bytes]:
    yield content[:-4] + b"\1\2\3\4"


def _half(content: bytes) -> Iterator[bytes]:
    yield content[: len(content) // 2]


@pytest.mark.parametrize("how", [_breaks, _others, _half])
def test_what_goes_wrong_a_few_times_is_tried_again(how: Any, bucket: Any, tmp_path: Path) -> None:
    entries, asked, instead = bucket
    instead[entries[3]["file"]] = _fails(4, how, tmp_path / "bucket")
    found = _store(entries, tmp_path).open(3)
    assert np.array_equal(found, X[3 * ROWS : 4 * ROWS]) and asked[entries[3]["file"]] == 5


@pytest.mark.parametrize(
    ("how", "said"), [(_breaks, "Connection reset"), (_others, "SHA-256 differs"), (_half, "SHA-256 differs")]
)
def test_what_goes_on_going_wrong_is_told_and_leaves_no_half(how: Any, said: str, bucket: Any, tmp_path: Path) -> None:
    entries, asked, instead = bucket
    instead[entries[3]["file"]] = _fails(1000, how, tmp_path / "bucket")
    with pytest.raises(Failure, match=said):
        _store(entries, tmp_path).open(3)
    assert not [p for p in (tmp_path / "here").iterdir() if not p.name.endswith(".lock")] and asked.total() < 10


def test_a_shard_that_is_not_there_is_told_at_once(bucket: Any, tmp_path: Path) -> None:
    entries, asked, _ = bucket
    (tmp_path / "bucket" / entries[5]["file"]).unlink()
    with pytest.raises(Failure, match="it is not there"):
        _store(entries, tmp_path).open(5)
    assert asked.total() == 1


def test_no_more_lies_here_than_may_and_each_is_fetched_once_an_epoch(bucket: Any, tmp_path: Path) -> None:
    entries, asked, _ = bucket
    size = entries[0]["bytes"]
    store = _store(entries, tmp_path, limit=5 * size)
    rows = ShardRows(store, "float32")
    for epoch in range(3):
        asked.clear()
        order = within_windows([ROWS] * NUM, ROWS, torch.Generator().manual_seed(epoch))
        rows.needs(order)
        for start in range(0, len(order), 16):
            batch = order[start : start + 16]
            assert torch.equal(rows.index_select(0, batch), torch.from_numpy(X)[batch.long()])
            assert len(list((tmp_path / "here").glob("train-*.arrow"))) <= 5
        assert max(asked.values()) == 1, "in an epoch"


def test_what_is_needed_next_is_fetched_before_it_is_asked_for(bucket: Any, tmp_path: Path) -> None:
    entries, asked, _ = bucket
    rows = ShardRows(store := _store(entries, tmp_path), "float32")
    rows.needs(torch.arange(NUM * ROWS))
    deadline = time.monotonic() + 60
    while len(list(store.folder.glob("train-*.arrow"))) < NUM:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert torch.equal(rows[:], torch.from_numpy(X)) and asked.total() == NUM


def test_a_full_disk_makes_room_and_then_says_so(bucket: Any, tmp_path: Path) -> None:
    entries, _, instead = bucket
    store = _store(entries, tmp_path)
    for k in range(6):
        store.open(k)

    def full(place: Place, name: str) -> Iterator[bytes]:
        if len(list(store.folder.glob("train-*.arrow"))) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        yield (tmp_path / "bucket" / name).read_bytes()

    instead[entries[8]["file"]] = full
    store.plan({8: 0, 9: 1}, {8: 0, 9: 1})
    assert np.array_equal(store.open(8), X[8 * ROWS : 9 * ROWS])

    def always(place: Place, name: str) -> Iterator[bytes]:
        raise OSError(errno.ENOSPC, "No space left on device")
        yield b""

    instead[entries[10]["file"]] = always
    with pytest.raises(Failure, match="has no room for train-00010"):
        store.open(10)


SLOW = """
import sys, time
from pathlib import Path
from pipeline.data.shards.places import Place
from pipeline.data.shards.store import fetch
bucket, folder, name, size, digest, pause = sys.argv[1:]
def parts(place, file):
    content = (Path(bucket) / file).read_bytes()
    print("began", flush=True)
    for i in range(0, len(content), 100):
        time.sleep(float(pause))
        yield content[i : i + 100]
Place.parts = parts
fetch(Place("s3://bucket/x"), {"file": name, "bytes": int(size), "sha256": digest}, Path(folder) / name)
print("done", flush=True)
"""


def _process(entry: dict[str, Any], tmp_path: Path, pause: float) -> subprocess.Popen[str]:
    given = [str(tmp_path / "bucket"), str(tmp_path / "here"), entry["file"], str(entry["bytes"]), entry["sha256"], str(pause)]
    return subprocess.Popen([sys.executable, "-c", SLOW, *given], stdout=subprocess.PIPE, text=True)


def test_a_process_that_is_killed_while_it_fetches_leaves_no_half(bucket: Any, tmp_path: Path) -> None:
    entries, _, _ = bucket
    process = _process(entries[2], tmp_path, 5.0)
    assert process.stdout and process.stdout.readline() == "began\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=30)
    assert not (tmp_path / "here" / entries[2]["file"]).exists()
    assert np.array_equal(_store(entries, tmp_path).open(2), X[2 * ROWS : 3 * ROWS])


def test_two_processes_fetch_a_shard_once(bucket: Any, tmp_path: Path) -> None:
    entries, _, _ = bucket
    both = [_process(entries[2], tmp_path, 0.05) for _ in range(2)]
    texts = [process.communicate(timeout=60)[0] for process in both]
    assert sorted(texts) == ["began\ndone\n", "done\n"]


def test_a_shard_that_another_process_takes_away_before_it_is_mapped_is_fetched_again(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries, asked, _ = bucket
    open_x, gone = table.open_x, []

    def late(path: Path, shape: tuple[int, ...]) -> Any:
        if len(gone) < 2:
            gone.append(path)
            path.unlink()
        return open_x(path, shape)

    monkeypatch.setattr(table, "open_x", late)
    assert np.array_equal(_store(entries, tmp_path).open(2), X[2 * ROWS : 3 * ROWS]) and asked.total() == 3


def test_what_is_there_is_not_fetched_again(bucket: Any, tmp_path: Path) -> None:
    entries, asked, _ = bucket
    for _ in range(2):
        fetch(Place("s3://bucket/x"), entries[0], tmp_path / "here" / entries[0]["file"])
    assert asked.total() == 1


@pytest.mark.parametrize("damage", [lambda content: content[:-4] + b"abcd", lambda content: content[:-100]])
def test_a_fetched_shard_that_was_damaged_since_is_fetched_again(damage: Any, bucket: Any, tmp_path: Path) -> None:
    """One that nobody touched is not even hashed again."""
    entries, asked, _ = bucket
    _store(entries, tmp_path).open(4)
    path = tmp_path / "here" / entries[4]["file"]
    path.write_bytes(damage(path.read_bytes()))
    assert np.array_equal(_store(entries, tmp_path).open(4), X[4 * ROWS : 5 * ROWS]) and asked.total() == 2
    os.utime(path)
    assert np.array_equal(_store(entries, tmp_path).open(4), X[4 * ROWS : 5 * ROWS]) and asked.total() == 2


def test_a_shard_that_nobody_touched_is_hashed_once(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries, _, _ = bucket
    _store(entries, tmp_path).open(4)
    monkeypatch.setattr(stores.files, "sha256", lambda path: pytest.fail("hashed again"))
    assert np.array_equal(_store(entries, tmp_path).open(4), X[4 * ROWS : 5 * ROWS])


def test_a_shard_that_is_slow_to_come_is_waited_for_with_words(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """It drips until the words are there."""
    entries, _, instead = bucket
    told = threading.Event()
    monkeypatch.setattr(stores, "_SLOW", 0.05)
    monkeypatch.setattr(stores, "say", lambda text: (print(text), told.set()))

    def drips(place: Place, name: str) -> Iterator[bytes]:
        content = (tmp_path / "bucket" / name).read_bytes()
        yield content[:10]
        assert told.wait(60)
        yield content[10:]

    instead[entries[1]["file"]] = drips
    store = _store(entries, tmp_path)
    assert np.array_equal(store.open(1), X[ROWS : 2 * ROWS]) and np.array_equal(store.open(0), X[:ROWS])
    assert capfd.readouterr().out == "waiting for train-00001.arrow of s3://bucket/x ...\n"
