"""Every file of a run that is read again, with a bit flipped, cut short, emptied or gone: found, or of no consequence.

The table says of each file what reads it. What is hashed is always found; a damaged line of a journal costs that line.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import checkpoint
from pipeline.cli import main
from pipeline.data.prepare import is_intact, prepare
from pipeline.errors import UserError
from pipeline.run import Run
from pipeline.tracking import sender
from pipeline.tracking.journal import Journal, Outbox

SEED = 20_261_121
KINDS = ("flip", "truncate", "empty", "missing")


def _open(folder: Path) -> None:
    Run.open(folder)


def _newest(folder: Path) -> None:
    """A damaged newest checkpoint is skipped; that another one is taken counts as found."""
    newest = max(int(path.stem[5:]) for path in (folder / "checkpoints").glob("step-*.*"))
    found = checkpoint.newest_checkpoint(folder, run_id=Run.open(folder, check=False).mlflow_run_id)
    if found is None or found[1]["state"]["step"] < newest:
        raise UserError("the newest one is damaged")


def _resumable(folder: Path) -> None:
    """What `--resume true` reads first, of a run that never ended."""
    Run.open(folder, check=False)


FILES: dict[str, Callable[[Path], None]] = {
    "config.json": _resumable, "manifest.json": _open, "weights.safetensors": _open, "last.safetensors": _open,
    "test.json": _open, "answers.safetensors": _open,
    "export/model.onnx": _open, "export/model.pt2": _open, "export/model.torchscript.pt": _open,
    "export/model.safetensors": _open, "checkpoints/newest.pt": _newest, "checkpoints/newest.json": _newest,
}  # fmt: skip


def spoil(path: Path, kind: str, source: random.Random) -> None:
    content = bytearray(path.read_bytes())
    if kind == "flip":
        bit = source.randrange(8 * len(content))
        content[bit // 8] ^= 1 << bit % 8
    elif kind == "truncate":
        del content[source.randrange(1, len(content)) :]
    elif kind == "empty":
        content.clear()
    path.unlink()
    if kind != "missing":
        path.write_bytes(content)


@pytest.fixture(scope="session")
def exported(trained: Callable[[str], Run], session_folder: Path) -> Path:
    """A small run with its exports and two checkpoints, in a folder of its own."""
    run = trained("mlp")
    folder = session_folder / "damage"
    shutil.copytree(run.folder, folder)
    if not (folder / "export").is_dir():
        assert main(["export", "--run", str(folder)]) == 0
    newest = max((folder / "checkpoints").glob("step-*.pt"))
    older = torch_content(newest)
    older["state"]["step"] = 1
    checkpoint.save_checkpoint(folder, 1, older)
    assert checkpoint.newest_checkpoint(folder, run_id=run.mlflow_run_id)
    return folder


def torch_content(path: Path) -> dict[str, Any]:
    import torch

    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def _means_the_same(path: Path, kept: bytes) -> bool:
    """Tell whether a JSON file still says the same: without its last line end, or with 1E-05 for 1e-05."""
    try:
        return bool(json.loads(path.read_bytes()) == json.loads(kept))
    except (OSError, ValueError):
        return False


def _found(exported: Path, name: str, kind: str, source: random.Random, capsys: Any) -> bool:
    if "newest" in name:
        path = max((exported / "checkpoints").glob("step-*.pt")).with_suffix(Path(name).suffix)
    else:
        path = exported / name
    kept = path.read_bytes()
    try:
        spoil(path, kind, source)
        if path.suffix == ".json" and _means_the_same(path, kept):
            return True
        FILES[name](exported)
    except UserError as error:
        assert len(error.messages) == 1 and "\n" not in error.messages[0].strip()
        return True
    finally:
        path.write_bytes(kept)
        capsys.readouterr()
    return False


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_found(exported: Path, name: str, capsys: Any) -> None:
    source = random.Random(f"{SEED} {name}")
    assert not [
        kind for kind in (*KINDS, "flip", "flip", "flip", "truncate") if not _found(exported, name, kind, source, capsys)
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FILES)
def test_five_hundred_flips_and_fifty_truncations_are_all_found(exported: Path, name: str, capsys: Any) -> None:
    source = random.Random(f"{SEED} {name} long")
    missed = sum(not _found(exported, name, kind, source, capsys) for kind in ["flip"] * 500 + ["truncate"] * 50)
    with capsys.disabled():
        print(f"\n{name}: seed {SEED}, 500 flips and 50 truncations, {missed} missed")
    assert missed == 0


def _spoilt_cache(make_config: Callable[..., Any], tmp_path: Path, count: int) -> int:
    """Return how often a spoilt file of the prepared data was taken for whole."""
    folder = prepare(make_config(model="mlp", cache_dir=tmp_path))
    source, missed = random.Random(SEED), 0
    for path in sorted(p for p in folder.iterdir() if p.stat().st_size > 128):
        for kind in [*KINDS, *["flip"] * count, *["truncate"] * (count // 10)]:
            kept = path.read_bytes()
            spoil(path, kind, source)
            missed += is_intact(folder)
            path.write_bytes(kept)
    assert is_intact(folder)
    return missed


def test_damaged_data_is_found_and_made_anew(make_config: Callable[..., Any], tmp_path: Path) -> None:
    assert _spoilt_cache(make_config, tmp_path, 10) == 0
    config = make_config(model="mlp", cache_dir=tmp_path)
    folder = prepare(config)
    (folder / "manifest.json").write_text("{")
    assert not is_intact(folder) and prepare(config) == folder and is_intact(folder)


@pytest.mark.slow
def test_five_hundred_flips_in_prepared_data_are_all_found(make_config: Callable[..., Any], tmp_path: Path) -> None:
    assert _spoilt_cache(make_config, tmp_path, 500) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_journal_costs_a_line_and_a_damaged_note_a_second_sending(tmp_path: Path, kind: str, capsys: Any) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    for step in range(20):
        journal.append({"step": step, "time": 1, "train/loss": 0.5})
    outbox = Outbox(tmp_path, "run")
    outbox.sent_up_to("metrics.jsonl", 50)
    source = random.Random(f"{SEED} {kind}")
    for _ in range(30):
        for name in ("metrics.jsonl", "tracking.json"):
            kept = (tmp_path / name).read_bytes()
            spoil(tmp_path / name, kind, source)
            rows = Journal(tmp_path / "metrics.jsonl").all_rows()
            assert len(rows) >= (19 if kind == "flip" else 0)
            assert Outbox(tmp_path, "run").sent_bytes("metrics.jsonl") >= 0
            (tmp_path / name).write_bytes(kept)
    capsys.readouterr()


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"sha256": []}', '{"sha256": {}}', '{"sha256": {"../x": "0"}}', '{"sha256": 1}', "[]", "null"]
)
def test_a_manifest_that_says_nothing_of_the_run_is_refused(exported: Path, content: str, capsys: Any) -> None:
    """Of 100 000 brackets too, which Python's own reader answers with a RecursionError."""
    for name in ("manifest.json", "config.json"):
        kept = (exported / name).read_bytes()
        try:
            (exported / name).write_text(content)
            assert main(["verify", "--run", str(exported)]) == 2
        finally:
            (exported / name).write_bytes(kept)
        told = capsys.readouterr().err
        assert f"has a {name} that cannot be read" in told and told.count("\n") == 1


def test_journals_and_notes_of_many_brackets_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("[" * 100_000 + "\n")
    assert Journal(tmp_path / "metrics.jsonl").all_rows() == []
    (tmp_path / "tracking.json").write_text("[" * 100_000)
    assert Outbox(tmp_path, "run").sent_bytes("metrics.jsonl") == 0


def test_a_half_line_left_by_a_kill_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "time": 1, "x": 1}\n{"step": 2, "ti')
    journal = Journal(path)
    journal.append({"step": 2, "time": 2, "x": 2})
    assert [row["step"] for row in journal.all_rows()] == [1, 2]


def test_a_row_is_sent_with_the_time_of_its_writing_so_that_sending_it_again_does_no_harm(tmp_path: Path) -> None:
    class _Client:
        def log_batch(self, run_id: str, metrics: list[Any]) -> None:
            sent.extend((metric.key, metric.step, metric.timestamp, metric.value) for metric in metrics)

    sent: list[tuple[str, int, int, float]] = []
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.append({"step": 3, "time": 1234, "train/loss": 0.5, "lr": 0.1})
    for again in range(2):
        sender._send_rows(_Client(), Outbox(tmp_path / f"{again}", "run"), journal, lambda worked: None)
    assert sent == [("train/loss", 3, 1234, 0.5), ("lr", 3, 1234, 0.1)] * 2


def test_half_a_line_that_a_full_disk_left_is_waited_for(tmp_path: Path) -> None:
    class _Client:
        def log_batch(self, run_id: str, metrics: list[Any]) -> None:
            sent.extend(metric.step for metric in metrics)

    sent: list[int] = []
    journal, outbox = Journal(tmp_path / "metrics.jsonl"), Outbox(tmp_path, "run")
    journal.append({"step": 1, "time": 1, "x": 1})
    with journal.path.open("a") as file:
        file.write('{"step": 2, ')
    assert sender._send_rows(_Client(), outbox, journal, lambda worked: None) == 1 and journal.all_rows()[-1]["step"] == 1
    with journal.path.open("a") as file:
        file.write('"time": 2, "x": 2}\n')
    assert sender._send_rows(_Client(), outbox, journal, lambda worked: None) == 1 and sent == [1, 2]
