"""Shards hold what tensors hold, whoever writes them; a training on them is the training on the tensors, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from pipeline.cli import main
from pipeline.data.loader import Batches, Split, open_split
from pipeline.data.prepare import prepare, read_spec
from pipeline.data.shards import places, size_of, source, table
from pipeline.data.shards.order import within_windows
from pipeline.data.shards.places import Place
from pipeline.data.shards.rows import ShardRows
from pipeline.data.shards.write import write
from pipeline.errors import Failure, UserError
from pipeline.resolve import resolve
from tests import own_data
from tests.trainings import same_weights

Make = Callable[..., Any]
CPU = torch.device("cpu")


def _data(kind: str, folder: Path) -> dict[str, str]:
    """Write data of a kind; return the flags that name it."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    if kind == "npz":
        x = rng.integers(0, 256, (90, 30, 26, 3), dtype=np.uint8)
        np.savez(folder / "data.npz", x=x, y=np.arange(90) % 3)
        return {"dataset": str(folder / "data.npz"), "model": "cnn", "epochs": "2", "batch_size": "16"}
    if kind == "folder":
        return {"dataset": str(own_data.photos(folder / "photos")), "model": "cnn", "epochs": "2", "batch_size": "16"}
    rows = [f"{k},{'abc'[k % 3]},{'' if k % 7 == 0 else k * 0.37:.4},{k % 2},{k * 1.5 + 2:.3f}" for k in range(120)]
    (folder / "data.csv").write_text("id_,letter,number,kind,price\n" + "\n".join(rows) + "\n")
    target = "kind" if kind == "table" else "price"
    return {"dataset": str(folder / "data.csv"), "model": "mlp", "target": target, "epochs": "3", "batch_size": "16"}


@pytest.fixture
def shards(tmp_path: Path, cache_dir: Path) -> Callable[..., tuple[dict[str, str], Path]]:
    """Return a function that writes data of a kind and shards of it; it returns the flags of the data and where shards lie."""

    def make(kind: str, size: int = 20_000, name: str = "shards") -> tuple[dict[str, str], Path]:
        flags = _data(kind, tmp_path / "data") | {"cache_dir": str(cache_dir)}
        place = tmp_path / name
        place.mkdir()
        without = {name: text for name, text in flags.items() if name not in ("epochs", "batch_size")}
        write(resolve(without), Place(str(place)), num_bytes=size)
        return flags, place

    return make


def _on(place: object, flags: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in flags.items() if name != "target"} | {"dataset": str(place)}


def _words(flags: dict[str, str]) -> list[str]:
    return [word for name, text in flags.items() for word in (f"--{name}", text)]


KINDS_OF_DATA = ("npz", "folder", "table")


@pytest.mark.parametrize("kind", KINDS_OF_DATA)
def test_shards_hold_what_tensors_hold(kind: str, shards: Any) -> None:
    flags, place = shards(kind, 1000 if kind in ("table", "values") else 20_000)
    tensors, sharded = prepare(resolve(flags)), prepare(resolve(_on(place, flags)))
    before, after = read_spec(tensors), read_spec(sharded)
    names = {"sha256": "", "name": ""}
    assert before.to_json() | names == after.to_json() | names
    for name in ("train", "val", "test"):
        old, new = open_split(tensors, name), open_split(sharded, name)
        assert torch.equal(old.y, new.y) and len(old) == len(new)
        assert isinstance(new.x, ShardRows if name == "train" else Tensor)
        assert torch.equal(old.x, new.x[:])
    assert len(list(place.glob("train-*.arrow"))) == len(list(place.glob("train-*.json"))) > 1


@pytest.mark.parametrize(
    ("kind", "size", "more"),
    [
        ("npz", 20_000, ()),
        ("npz", 10_000_000, ()),
        ("table", 1000, ()),
        ("npz", 20_000, ("--batch_size", "200", "--init", "pca")),
    ],
    ids=["npz", "one shard", "table", "a full batch"],
)
def test_a_training_on_shards_ends_with_the_weights_of_the_one_on_tensors(
    kind: str, size: int, more: tuple[str, ...], shards: Any, tmp_path: Path
) -> None:  # fmt: skip
    flags, place = shards(kind, size)
    for folder, given in (("on-tensors", flags), ("on-shards", _on(place, flags))):
        words = ["train", *_words(given), "--precision", "fp32", *more]
        assert main([*words, "--output_dir", str(tmp_path / folder)]) == 0
    assert same_weights(tmp_path / "on-tensors" / "weights.safetensors", tmp_path / "on-shards" / "weights.safetensors")
    test = [json.loads((tmp_path / folder / "test.json").read_text()) for folder in ("on-tensors", "on-shards")]
    assert test[0] == test[1]


def test_without_held_out_samples_the_training_samples_are_evaluated_from_their_shards(tmp_path: Path, cache_dir: Path) -> None:
    flags = _data("npz", tmp_path / "data") | {"cache_dir": str(cache_dir), "test_split": "0", "val_split": "0"}
    without = {name: text for name, text in flags.items() if name not in ("epochs", "batch_size")}
    write(resolve(without), Place(str(tmp_path / "place")), num_bytes=20_000)
    sharded = {n: t for n, t in _on(tmp_path / "place", flags).items() if n not in ("test_split", "val_split")}
    assert main(["train", *_words(sharded), "--precision", "fp32", "--output_dir", str(tmp_path / "run")]) == 0
    table = json.loads((tmp_path / "run" / "train.json").read_text())
    assert np.sum(table["confusion_matrix"]) == 90 and not (tmp_path / "run" / "test.json").exists()


def test_samples_that_lie_by_class_or_as_the_file_has_them_are_mixed_before_they_are_cut(shards: Any) -> None:
    flags, place = shards("values", 1000)
    tensors, sharded = (open_split(prepare(resolve(each)), "train") for each in (flags, _on(place, flags)))
    assert torch.equal(tensors.y.sort(0).values, sharded.y.sort(0).values) and not torch.equal(tensors.y, sharded.y)
    assert torch.equal(tensors.x[tensors.y.view(-1).argsort()], sharded.x[sharded.y.view(-1).argsort()])


def test_a_run_on_shards_is_exported_and_proven(shards: Any, tmp_path: Path, capsys: Any) -> None:
    flags, place = shards("table", 1000)
    words = ["run", *_words(_on(place, flags)), "--output_dir", str(tmp_path / "run")]
    assert main(words) == 0 and "**PASSED**" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("world", [2, 3, 40])
@pytest.mark.parametrize("kind", ["npz", "table"])
def test_any_number_of_processes_writes_the_same_files(kind: str, world: int, shards: Any, tmp_path: Path) -> None:
    """Also more of them than there are shards."""
    flags, alone = shards(kind)
    config = resolve({name: text for name, text in flags.items() if name not in ("epochs", "batch_size")})
    together = tmp_path / "together"
    together.mkdir()
    for rank in reversed(range(world)):
        write(config, Place(str(together)), num_bytes=20_000, rank=rank, world_size=world)
    assert {p.name: p.read_bytes() for p in alone.iterdir()} == {p.name: p.read_bytes() for p in together.iterdir()}


def test_processes_of_torchrun_write_together(tmp_path: Path) -> None:
    """Without a process group: rank 0 waits for the marks of the others."""
    flags = _data("npz", tmp_path / "data") | {"output_dir": str(tmp_path / "out"), "shards": "20KB"}
    words = _words({name: text for name, text in flags.items() if name not in ("epochs", "batch_size")})
    job = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "pipeline", "prepare", *words],
            env=os.environ | job | {"RANK": f"{r}", "LOCAL_RANK": f"{r}"}, stdout=subprocess.PIPE, text=True,
        )
        for r in (0, 1, 2)
    ]  # fmt: skip
    texts = [process.communicate(timeout=100)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert "index.json in" in texts[0] and all("writing" in text for text in texts)
    assert source.is_place(str(tmp_path / "out"))


class Cut(BaseException):
    """What nobody catches."""


def test_a_writer_that_was_cut_off_goes_on(shards: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off behind each file: what is there counts, half of it never does, and the end is the same."""
    flags, whole = shards("npz")
    config = resolve({name: text for name, text in flags.items() if name not in ("epochs", "batch_size")})
    plain, wrote = Place.write, Counter[str]()
    number = len(list(whole.iterdir()))
    for stop in range(0, number, 3):
        part = tmp_path / f"part{stop}"
        part.mkdir()
        wrote.clear()

        def cut(place: Place, name: str, content: bytes, *, stop: int = stop) -> None:
            if wrote.total() == stop:
                raise Cut
            wrote[name] += 1
            plain(place, name, content)

        with monkeypatch.context() as patch, pytest.raises(Cut):
            patch.setattr(Place, "write", cut)
            write(config, Place(str(part)), num_bytes=20_000)
        assert not source.is_place(str(part))
        with monkeypatch.context() as patch:
            wrote.clear()
            patch.setattr(Place, "write", lambda place, name, content: (wrote.update([name]), plain(place, name, content))[1])
            write(config, Place(str(part)), num_bytes=20_000)
        assert {p.name: p.read_bytes() for p in part.iterdir()} == {p.name: p.read_bytes() for p in whole.iterdir()}
        assert wrote.total() <= number - stop + 5, "what was there is not written again, but for one shard and the last files"


def test_other_shards_are_not_written_over(shards: Any, tmp_path: Path) -> None:
    flags, place = shards("npz")
    before = {p.name: p.read_bytes() for p in place.iterdir()}
    config = resolve({name: text for name, text in flags.items() if name not in ("epochs", "batch_size")})
    write(config, Place(str(place)), num_bytes=20_000)
    with pytest.raises(UserError, match="holds other shards"):
        write(config, Place(str(place)), num_bytes=30_000)
    assert {p.name: p.read_bytes() for p in place.iterdir()} == before


def test_shards_are_not_laid_among_other_files(shards: Any, tmp_path: Path, capsys: Any) -> None:
    flags, _ = shards("npz")
    words = _words({name: text for name, text in flags.items() if name not in ("epochs", "batch_size", "cache_dir")})
    assert main(["prepare", *words, "--shards", "20KB", "--output_dir", str(tmp_path / "data")]) == 2
    assert "holds something else (data.npz)" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["data.npz"]


def test_shards_of_others_that_stay_away_are_told(shards: Any, tmp_path: Path) -> None:
    flags, _ = shards("npz")
    config = resolve({name: text for name, text in flags.items() if name not in ("epochs", "batch_size")})
    (tmp_path / "alone").mkdir()
    with pytest.raises(Failure, match="shards of other processes did not come"):
        write(config, Place(str(tmp_path / "alone")), num_bytes=20_000, rank=0, world_size=2, patience=0.5)


def test_a_shard_is_an_arrow_file_whose_columns_have_one_width(shards: Any) -> None:
    _, place = shards("npz")
    with pa.ipc.open_file(str(place / "train-00000.arrow")) as file:
        found = file.read_all()
    assert found.schema.field("x").type == pa.list_(pa.uint8(), 3 * 28 * 28) and found.schema.field("y").type == pa.int64()
    x = table.open_x(place / "train-00000.arrow", (3, 28, 28))
    assert np.array_equal(x.reshape(len(x), -1), np.stack(found["x"].to_pylist()).astype(np.uint8))
    assert len(set(found["row"].to_pylist())) == len(x)


@pytest.mark.parametrize("damage", ["changed", *(pytest.param(each, marks=pytest.mark.slow) for each in ("cut off", "gone"))])
def test_a_shard_that_is_not_what_was_written_is_told_and_not_read(
    damage: str, shards: Any, tmp_path: Path, capsys: Any
) -> None:
    flags, place = shards("npz")
    path = place / "train-00001.arrow"
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-8] + bytes(8) if damage == "changed" else content[:-1000])
    words = ["train", *_words(_on(place, flags)), "--precision", "fp32", "--output_dir", str(tmp_path / "run")]
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "train-00001.arrow" in error and "Traceback" not in error
    path.write_bytes(content)
    assert main(["train", "--output_dir", str(tmp_path / "run"), "--resume", "true"]) == 0


def test_shards_that_were_moved_are_read_where_they_are(shards: Any, tmp_path: Path) -> None:
    flags, place = shards("npz")
    before = open_split(prepare(resolve(_on(place, flags))), "train").x[:]
    moved = place.rename(tmp_path / "moved")
    assert torch.equal(open_split(prepare(resolve(_on(moved, flags))), "train").x[:], before)


def test_an_index_that_was_changed_is_told(shards: Any, capsys: Any) -> None:
    flags, place = shards("npz")
    path = place / "index.json"
    path.write_text(path.read_text().replace('"num_samples": ', '"num_samples": 1'))
    assert main(["train", *_words(_on(place, flags))]) == 2
    assert "its index.json cannot be read (its SHA-256 differs)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prepare", "--shards", "256MB"], "output_dir: nothing was given"),
        (["prepare", "--shards", "1MB", "--output_dir", "x", "--cache_dir", "y"], "cache_dir=y has no effect with --shards"),
        (["prepare", "--shards", "big", "--output_dir", "x"], "shards=big is no size"),
        (["prepare", "--shards", "0MB", "--output_dir", "x"], "shards=0MB is out of range"),
        (["prepare", "--shards", "1MB", "--output_dir", "ftp://x/y"], "is no place for shards"),
        (["train", "--dataset", "s3://"], "is no place for shards"),
        (["train", "--dataset", "ftp://x/y"], "is no place for shards"),
        (["train", "--shuffle_window", "10"], "shuffle_window=10 has no effect"),
        (["train", "--local_cache_gb", "10"], "local_cache_gb=10.0 has no effect"),
        (["train", "--shards", "1MB"], "--shards is not a flag of this command"),
    ],
)
def test_a_mistake_gets_a_sentence_and_leaves_nothing(words: list[str], said: str, capsys: Any, tmp_path: Path) -> None:
    assert main(words) == 2 and said in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_flags_of_the_data_have_no_effect_on_shards(shards: Any, capsys: Any) -> None:
    flags, place = shards("npz")
    for name, value in (("target", "a"), ("image_size", "32"), ("val_split", "0.5"), ("skip_bad", "true")):
        words = _words(_on(place, flags))
        assert main(["train", *words, f"--{name}", value]) == 2, name
        assert name in capsys.readouterr().err


@pytest.mark.parametrize(("text", "size"), [("256MB", 256_000_000), ("1gb", 10**9), ("64KB", 64_000)])
def test_sizes(text: str, size: int) -> None:
    assert size_of(text) == size
    assert places.is_remote("s3://a/b") and not places.is_remote("/a/b")


SIZES = [100] * 30 + [37]


def _order(window: int, seed: int = 0) -> Tensor:
    return within_windows(SIZES, window, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("window", [1, 50, 100, 333, 3036, 10_000])
def test_an_order_within_windows_has_each_row_once_and_hangs_on_the_seed_alone(window: int) -> None:
    order = _order(window)
    assert torch.equal(order.sort().values, torch.arange(3037, dtype=torch.int32))
    assert torch.equal(order, _order(window)) and not torch.equal(order, _order(window, seed=1))


def test_a_window_needs_few_shards_at_a_time() -> None:
    order = _order(300)
    open_at = []
    shard = order // 100
    for start in range(0, 3037, 50):
        open_at.append(len(shard[start : start + 50].unique()))
    assert max(open_at) <= 8, "of two windows, each with a shard more than it is long"
    first = {k: int((shard == k).nonzero()[0]) for k in range(31)}
    last = {k: int((shard == k).nonzero()[-1]) for k in range(31)}
    assert max(last[k] - first[k] for k in first) <= 600


@pytest.mark.parametrize(("window", "least"), [(1, 0.0), (300, 0.5), (1000, 0.85), (3037, 0.95)])
def test_the_larger_the_window_the_better_it_mixes(window: int, least: float) -> None:
    """Of the neighbors in an order, how many are of different shards, as a share of what chance would give."""
    shard = _order(window) // 100
    share = float((shard[1:] != shard[:-1]).double().mean()) / (1 - 1 / 30.37)
    assert share >= least and (window > 1 or share < 0.05)


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 0), (3, 0), (1, 2)])
def test_any_number_of_ranks_and_workers_walks_through_the_same_batches(world: int, workers: int, shards: Any) -> None:
    flags, place = shards("npz")
    split = open_split(prepare(resolve(_on(place, flags))), "train")

    def batches(rank: int, world: int, workers: int, window: int, x: Any) -> list[list[Tensor]]:
        made = Batches(Split(x, split.y), batch_size=16, grad_accum_steps=1, seed=3, rank=rank, world_size=world, device=CPU,
                       num_workers=workers, window=window)  # fmt: skip
        return [[part[0][0] for part in [step]][0:1] for step in made.epoch(1)]

    for window in (0, 30):
        alone = batches(0, 1, 0, window, split.x)
        parts = [batches(rank, world, workers, window, split.x) for rank in range(world)]
        joined = [[torch.cat([part[k][0] for part in parts])] for k in range(len(alone))]
        assert all(torch.equal(a[0], b[0]) for a, b in zip(alone, joined, strict=True))
    assert all(
        torch.equal(a[0], b[0]) for a, b in zip(batches(0, 1, 0, 0, split.x), batches(0, 1, 0, 0, split.x[:]), strict=True)
    )
