"""Shards in a bucket: a real S3 server on loopback, whose connections break, and processes that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cli import main
from tests import own_data
from tests.conftest import read_rows
from tests.disks import fill, small_disk
from tests.servers import free_port
from tests.team import Service, Wire
from tests.trainings import CLOCKS, same_weights

WINDOW = ["--shuffle_window", "40"]


@pytest.fixture(scope="module")
def wire(session_folder: Path) -> Iterator[Wire]:
    """The way to a server that holds a bucket called bucket."""
    port = free_port()
    folder = session_folder / "s3"
    folder.mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    server = Service([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], folder, clean, port=port)
    server.start()
    made = Wire(port)
    patch = pytest.MonkeyPatch()
    for name, value in {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{made.port}", "AWS_ACCESS_KEY_ID": "key",
                        "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}.items():  # fmt: skip
        patch.setenv(name, value)
    import boto3

    boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1").create_bucket(Bucket="bucket")
    try:
        yield made
    finally:
        patch.undo()
        made.cut()
        server.end()


@pytest.fixture(scope="module")
def data(session_folder: Path, wire: Wire) -> Path:
    """Images, written as shards of 16 to s3://bucket/images, and as the same ones to `shards`."""
    folder = session_folder / "images"
    folder.mkdir()
    x = np.random.default_rng(0).integers(0, 256, (300, 28, 28), dtype=np.uint8)
    np.savez(folder / "data.npz", x=x, y=np.arange(300) % 3)
    for place in ("s3://bucket/images", str(folder / "shards")):
        words = ["--dataset", str(folder / "data.npz"), "--model", "cnn", "--shards", "13KB", "--output_dir", place]
        if place.startswith("s3"):
            _run(folder, "prepare", *words)
        else:
            assert main(["prepare", *words]) == 0
    return folder


def _start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "pipeline", *words], cwd=folder, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)  # fmt: skip


def _run(folder: Path, *words: str) -> str:
    process = _start(folder, *words)
    text = process.communicate(timeout=200)[0]
    assert process.returncode == 0, text
    return text


def _train(place: str, out: Path, *more: str) -> list[str]:
    flags = {
        "model": "cnn", "dataset": place, "epochs": "3", "batch_size": "16", "precision": "fp32",
        "cache_dir": str(out / "cache"), "output_dir": str(out / "run"),
    }  # fmt: skip
    return ["train", *(word for name, text in flags.items() for word in (f"--{name}", text)), *WINDOW, *more]


def _curve(run: Path) -> list[Any]:
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in read_rows(run)]


@pytest.fixture(scope="module")
def local(data: Path) -> Path:
    """A training on the shards that lie on this machine."""
    (data / "local").mkdir()
    assert main(_train(str(data / "shards"), data / "local")) == 0
    return data / "local" / "run"


def test_a_training_from_a_bucket_with_little_room_is_the_one_from_the_disk(data: Path, local: Path, tmp_path: Path) -> None:
    _run(tmp_path, *_train("s3://bucket/images", tmp_path, "--local_cache_gb", "0.00011"))
    assert same_weights(local / "weights.safetensors", tmp_path / "run" / "weights.safetensors")
    (kept,) = (tmp_path / "cache").glob("*/shards")
    assert 0 < sum(path.stat().st_size for path in kept.glob("train-*.arrow")) <= 110_000


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("room", [[], ["--local_cache_gb", "0.00011"]], ids=["all", "little room"])
def test_two_ranks_share_what_they_fetch(room: list[str], data: Path, local: Path, tmp_path: Path) -> None:
    _run(tmp_path, *_train("s3://bucket/images", tmp_path, "--nproc", "2", "--device", "cpu", *room))
    one, two = (
        np.array([row["train/loss"] for row in _curve(run) if "train/loss" in row]) for run in (local, tmp_path / "run")
    )
    np.testing.assert_allclose(one, two, rtol=1e-4)


@pytest.fixture(scope="module")
def raw(session_folder: Path, wire: Wire) -> Path:
    """A folder of photos, a table and a Parquet file, and the same below s3://bucket/raw."""
    import boto3

    folder = session_folder / "raw"
    own_data.photos(folder / "photos")
    rows = [f"{'abc'[k % 3]},{'' if k % 7 == 0 else k},{'yes' if k % 2 else 'no'}" for k in range(120)]
    (folder / "t.csv").write_text("letter,number,kind\n" + "\n".join(rows) + "\n")
    client = boto3.client("s3", region_name="us-east-1")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            client.put_object(Bucket="bucket", Key=f"raw/{path.relative_to(folder)}", Body=path.read_bytes())
    return folder


def _arrow(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".arrow", ".npy", ".feather")}


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("photos", ["--model", "cnn", "--shards", "20KB"]),
        pytest.param("t.csv", ["--model", "mlp", "--target", "kind", "--shards", "1KB"], marks=pytest.mark.slow),
    ],
)
def test_raw_data_in_a_bucket_becomes_the_shards_of_the_same_data_on_a_disk(
    name: str, flags: list[str], raw: Path, tmp_path: Path
) -> None:
    _run(tmp_path, "prepare", "--dataset", f"s3://bucket/raw/{name}", *flags, "--output_dir", "fetched")
    assert main(["prepare", "--dataset", str(raw / name), *flags, "--output_dir", str(tmp_path / "local")]) == 0
    assert len(found := _arrow(tmp_path / "fetched")) > 5 and found == _arrow(tmp_path / "local")
    before, after = (json.loads((tmp_path / each / "index.json").read_text())["spec"] for each in ("fetched", "local"))
    assert before == after


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_raw_data_is_read_over_connections_that_break_by_as_many_processes_as_there_are(
    raw: Path, wire: Wire, tmp_path: Path
) -> None:
    words = ["prepare", "--dataset", "s3://bucket/raw/photos", "--model", "cnn", "--shards", "20KB", "--output_dir", "out"]
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29557"}
    wire.pause = 0.01
    processes = [
        subprocess.Popen([sys.executable, "-m", "pipeline", *words], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, env=os.environ | job | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]  # fmt: skip
    cuts = 0
    try:
        while any(process.poll() is None for process in processes):
            time.sleep(0.7)
            wire.cut()
            cuts += 1
            time.sleep(0.2)
            wire.mend()
    finally:
        wire.pause = 0.0
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0] and cuts > 3, said
    assert main(["prepare", "--dataset", str(raw / "photos"), *words[3:-1], str(tmp_path / "local")]) == 0
    assert _arrow(tmp_path / "out") == _arrow(tmp_path / "local")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--dataset", "s3://bucket/raw/photos", "--model", "cnn"], "holds raw data and no shards. Make these first"),
        (["prepare", "--dataset", "s3://bucket/raw/photos", "--model", "cnn"], "holds raw data and no shards"),
        (["run", "--dataset", "s3://bucket/raw/photos", "--model", "cnn", "--explain"], "holds raw data and no shards"),
        (["search", "--dataset", "s3://bucket/raw/photos", "--model", "cnn", "--space", "lr=0.1,0.2", "--trials", "2"],
         "holds raw data and no shards"),
        (["inspect", "--dataset", "s3://bucket/raw/photos"], "raw data is looked at on this machine only"),
        (["train", "--dataset", "s3://bucket/nothing"], "has no index.json, and no image either"),
        (["train", "--dataset", "s3://nobucket/x"], "s3://nobucket/x"),
        (["prepare", "--dataset", "s3://bucket/raw/u.csv", "--target", "a", "--model", "mlp", "--shards", "1KB",
          "--output_dir", "x"], "dataset=s3://bucket/raw/u.csv is not there"),
        (["prepare", "--dataset", "s3://bucket/raw/t.csv", "--target", "a", "--model", "mlp", "--shards", "1KB",
          "--output_dir", "x"], "s3://bucket/raw/t.csv"),
        (["prepare", "--dataset", "s3://bucket/bad", "--model", "cnn", "--shards", "1KB", "--output_dir", "x"],
         "dataset=s3://bucket/bad has 1 file that cannot be read: a/0.jpg"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_with_raw_data_gets_a_sentence_and_leaves_nothing(
    words: list[str], said: str, raw: Path, tmp_path: Path
) -> None:
    import boto3

    client = boto3.client("s3", region_name="us-east-1")
    for number, path in enumerate(sorted((raw / "photos").rglob("*.jpg"))[:6]):
        content = path.read_bytes() if number else b"no image"
        client.put_object(Bucket="bucket", Key=f"bad/{'ab'[number % 2]}/{number}.jpg", Body=content)
    process = _start(tmp_path, *words)
    text = process.communicate(timeout=200)[0]
    assert process.returncode == 2 and said in text, text
    assert "Traceback" not in text and not [path for path in tmp_path.iterdir() if path.name not in ("mlflow.db", "mlruns")]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_more_ranks_than_shards_train_alike(data: Path, tmp_path: Path) -> None:
    words = ["--dataset", str(data / "data.npz"), "--model", "cnn", "--shards", "1MB", "--output_dir", "s3://bucket/one"]
    _run(tmp_path, "prepare", *words)
    for ranks in ("1", "3"):
        (tmp_path / ranks).mkdir()
        _run(tmp_path, *_train("s3://bucket/one", tmp_path / ranks, "--nproc", ranks, "--device", "cpu"))
        assert len([*(tmp_path / ranks / "cache").glob("*/shards/*.arrow")]) == 1
    one, three = (
        np.array([row["train/loss"] for row in _curve(tmp_path / ranks / "run") if "train/loss" in row]) for ranks in ("1", "3")
    )
    np.testing.assert_allclose(one, three, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_answers_that_are_slow_are_waited_for(data: Path, local: Path, wire: Wire, tmp_path: Path) -> None:
    """A kilobyte in 50 ms: a shard takes most of a second."""
    wire.pause = 0.05
    try:
        _run(tmp_path, *_train("s3://bucket/images", tmp_path, "--local_cache_gb", "0.00011"))
    finally:
        wire.pause = 0.0
    assert same_weights(local / "weights.safetensors", tmp_path / "run" / "weights.safetensors")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_disk_that_is_full_makes_do_with_what_it_has_and_then_says_so(data: Path, local: Path, tmp_path: Path) -> None:
    """With room for a few shards the training is the same; without room for one it ends, and goes on when there is some."""
    with small_disk(tmp_path / "disk") as disk:
        for name, leaving in (("few", 100_000), ("none", 4096)):
            out = tmp_path / name
            out.mkdir()
            words = [*_train("s3://bucket/images", out), "--cache_dir", str(disk / name)]
            _run(out, "prepare", "--dataset", "s3://bucket/images", "--model", "cnn", "--cache_dir", str(disk / name))
            fill(disk, leaving=leaving)
            process = _start(out, *words)
            text = process.communicate(timeout=200)[0]
            if name == "none":
                assert process.returncode == 1 and "has no room for train-" in text and "Traceback" not in text, text
                assert not [*disk.glob("none/*/shards/*.arrow")]
                (disk / "ballast").unlink()
                _run(out, *words, "--resume", "auto")
            else:
                assert process.returncode == 0, text
            (disk / "ballast").unlink(missing_ok=True)
            assert same_weights(local / "weights.safetensors", out / "run" / "weights.safetensors")


def test_too_little_room_for_a_window_is_told_before_anything_is_made(data: Path, tmp_path: Path) -> None:
    process = _start(tmp_path, *_train("s3://bucket/images", tmp_path, "--local_cache_gb", "0.00002"))
    text = process.communicate(timeout=100)[0]
    assert process.returncode == 2 and "local_cache_gb=2e-05 is less than" in text and list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_connections_that_break_and_a_server_that_is_away_change_nothing(
    data: Path, local: Path, wire: Wire, tmp_path: Path
) -> None:  # fmt: skip
    process = _start(tmp_path, *_train("s3://bucket/images", tmp_path, "--local_cache_gb", "0.00011"))
    while process.poll() is None:
        time.sleep(0.7)
        wire.cut()
        time.sleep(0.2)
        wire.mend()
    assert process.returncode == 0, process.communicate()[0]
    assert same_weights(local / "weights.safetensors", tmp_path / "run" / "weights.safetensors")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_training_that_is_killed_at_any_moment_goes_on_to_the_same_weights(data: Path, local: Path, tmp_path: Path) -> None:
    for k in range(20):
        out = tmp_path / str(k)
        out.mkdir()
        words = _train("s3://bucket/images", out, "--local_cache_gb", "0.00011", "--checkpoint_every", "5")
        process = _start(out, *words)
        assert process.stdout
        for number, _ in enumerate(process.stdout):  # its own words are its clock
            if number >= 4 + k % 7:
                break
        time.sleep(0.05 * (k // 7))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert not [path for path in out.glob("cache/*/shards/*.arrow") if path.stat().st_size == 0]
        _run(out, *words, "--resume", "auto")
        assert same_weights(local / "weights.safetensors", out / "run" / "weights.safetensors"), k


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_writer_that_is_killed_at_any_moment_goes_on_to_the_same_shards(data: Path, tmp_path: Path, capsys: Any) -> None:
    """50 kills of one of two processes; the shards are those that nobody has killed."""
    whole = {path.name: path.read_bytes() for path in (data / "shards").iterdir()}
    words = ["prepare", "--dataset", str(data / "data.npz"), "--model", "cnn", "--shards", "13KB", "--output_dir", "out"]
    job = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29556"}
    kills = 0
    for k in range(25):
        place = tmp_path / str(k)
        place.mkdir()
        for stop in (k % 13, k % 13 + 5):  # files that are there when it is killed
            process = subprocess.Popen([sys.executable, "-m", "pipeline", *words], cwd=place, stdout=subprocess.DEVNULL,
                                       env=os.environ | job | {"RANK": str(k % 2), "LOCAL_RANK": "0"})  # fmt: skip
            while process.poll() is None and len(list(place.glob("out/*"))) < stop:
                time.sleep(0.001)
            kills += process.poll() is None
            process.kill()
            process.wait(timeout=60)
        _run(place, *words)
        found = {path.name: path.read_bytes() for path in (place / "out").iterdir() if not path.name.startswith(".")}
        assert found == whole, k
    with capsys.disabled():
        print(f"\n{kills} kills of a writer of shards")
