from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import checkpoint, manifest, signals
from pipeline.checkpoint import Writer, snapshot
from pipeline.config import RunConfig
from pipeline.errors import Failure, UserError
from pipeline.progress import Progress
from pipeline.signals import Interrupted
from tests.trainings import curve, fit

Make = Callable[..., RunConfig]


def _save(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoint.save_checkpoint(folder, step, {"step": step, "weights": {"w": torch.full((50,), float(step))}})


def test_the_two_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    _save(tmp_path, 9, 10, 11, 100)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        "step-000000011.json", "step-000000011.pt", "step-000000100.json", "step-000000100.pt",
    ]  # fmt: skip
    found = checkpoint.newest_checkpoint(tmp_path)
    assert found and found[1]["step"] == 100


@pytest.mark.parametrize("damage", ["flip", "truncate", "no hash", "bad hash file"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _save(tmp_path, 1, 2)
    path = tmp_path / "checkpoints" / "step-000000002.pt"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 4
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:-100])
    elif damage == "no hash":
        path.with_suffix(".json").unlink()
    else:
        path.with_suffix(".json").write_text("{")
    found = checkpoint.newest_checkpoint(tmp_path)
    assert found and found[1]["step"] == 1
    told = "was never finished and is skipped" if damage == "no hash" else "is damaged and skipped"
    assert f"step-000000002.pt {told}" in capsys.readouterr().out


def test_no_checkpoint_at_all_is_no_error(tmp_path: Path) -> None:
    assert checkpoint.newest_checkpoint(tmp_path) is None


def test_a_first_checkpoint_that_was_never_finished_is_no_obstacle(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    (tmp_path / "checkpoints" / "step-000000001.json").unlink()
    assert checkpoint.newest_checkpoint(tmp_path) is None


def test_only_damaged_checkpoints_are_a_clear_error(tmp_path: Path) -> None:
    _save(tmp_path, 1, 2)
    for path in (tmp_path / "checkpoints").glob("*.pt"):
        path.write_bytes(b"x")
    with pytest.raises(UserError, match=r"none of its 2 checkpoints is valid\. Start a new run"):
        checkpoint.newest_checkpoint(tmp_path)


def test_every_flipped_bit_and_every_truncation_is_found(tmp_path: Path) -> None:
    _save(tmp_path, 1, 2)
    path = tmp_path / "checkpoints" / "step-000000002.pt"
    content = path.read_bytes()
    for position in range(0, 8 * len(content), 8 * len(content) // 60):
        spoilt = bytearray(content)
        spoilt[position // 8] ^= 1 << position % 8
        path.write_bytes(spoilt)
        found = checkpoint.newest_checkpoint(tmp_path)
        assert found and found[1]["step"] == 1
        path.write_bytes(content[: position // 8])
        found = checkpoint.newest_checkpoint(tmp_path)
        assert found and found[1]["step"] == 1
    path.write_bytes(content)
    found = checkpoint.newest_checkpoint(tmp_path)
    assert found and found[1]["step"] == 2


def test_a_snapshot_is_not_changed_by_what_comes_after() -> None:
    value = {"a": torch.zeros(2), "b": [torch.zeros(2), (1, torch.zeros(2))]}
    copy = snapshot(value)
    value["a"].add_(1)
    value["b"][1][1].add_(1)
    assert not copy["a"].any() and not copy["b"][1][1].any() and isinstance(copy["b"][1], tuple)


def _content() -> dict[str, Any]:
    return {"model": {"w": torch.ones(3)}, "best_weights": {}, "step": 1}


def test_a_full_disk_is_told_and_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(Failure, match=r"step 2 cannot be written.*No space left.*--resume true"),
        Writer() as writer,
    ):
        writer.start(tmp_path, 1, _content())
        writer._wait()
        monkeypatch.setattr(torch, "save", full)
        writer.start(tmp_path, 2, _content())
    assert "No space left on device); the one before it is kept, and training goes on" in capsys.readouterr().err
    found = checkpoint.newest_checkpoint(tmp_path)
    assert found and found[1]["step"] == 1
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.startswith(".")] == []


def test_a_disk_that_was_full_for_a_while_costs_nothing_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner, calls = torch.save, []

    def full_once(*args: Any) -> None:
        calls.append(1)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        inner(*args)

    monkeypatch.setattr(torch, "save", full_once)
    with Writer() as writer:
        writer.start(tmp_path, 1, _content())
        writer.start(tmp_path, 2, _content())
    assert checkpoint.newest_checkpoint(tmp_path)


class _StopAt(Progress):
    """Asks for a stop, as a signal would, in the step before the given one."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, step: int, loss: float) -> None:
        if step == self.at - 1:
            signals._pending = 15


@pytest.mark.parametrize("num_workers", [0, 2])
def test_stopped_at_any_step_a_run_resumes_bit_for_bit(make_config: Make, tmp_path: Path, num_workers: int) -> None:
    """Weights, optimizer state and curve, with dropout, accumulation, a schedule and early stopping on."""
    config = make_config(
        model="mlp", epochs=3, batch_size=60, model_args="dropout=0.4", grad_accum_steps=2, scheduler="one_cycle",
        warmup_ratio=0.3, early_stopping=9, log_every=1, checkpoint_every="epoch", num_workers=num_workers,
    )  # fmt: skip
    whole = fit(config, tmp_path / "whole")
    rows = curve(whole)
    positions = range(2, 19) if not num_workers else (4, 6, 7)
    for position in positions:
        folder = tmp_path / str(position)
        with pytest.raises(Interrupted):
            fit(config, folder, _StopAt(position))
        found = checkpoint.newest_checkpoint(folder)
        assert found and found[1]["state"]["step"] == position
        resumed = fit(config, folder)
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, resumed.model.state_dict()[name]), (position, name)
        ours, theirs = snapshot(resumed.optimizer.state_dict()), snapshot(whole.optimizer.state_dict())
        names = [[group.pop("metric") for group in state["param_groups"]] for state in (ours, theirs)]
        assert names[0] == names[1] == ["train/lr"]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
        assert vars(resumed.state) == vars(whole.state)
        tail = curve(resumed)
        assert tail == rows[len(rows) - len(tail) :]
        assert (folder / manifest.WEIGHTS).read_bytes() == (tmp_path / "whole" / manifest.WEIGHTS).read_bytes()


def test_short_epochs_that_share_a_logged_loss_resume_bit_for_bit_too(make_config: Make, tmp_path: Path) -> None:
    """3 steps an epoch, 4 of them a window: a stop waits for the window's end, and the curve goes on as if it had not been."""
    config = make_config(model="mlp", epochs=6, batch_size=120, log_every=4, checkpoint_every="1000m")
    whole = fit(config, tmp_path / "whole")
    rows = curve(whole)
    for at, stopped in ((5, 8), (9, 12), (13, 16)):
        folder = tmp_path / str(at)
        with pytest.raises(Interrupted):
            fit(config, folder, _StopAt(at))
        found = checkpoint.newest_checkpoint(folder)
        assert found and found[1]["state"]["step"] == stopped
        resumed = fit(config, folder)
        tail = curve(resumed)
        assert tail == rows[len(rows) - len(tail) :] and tail[0]["step"] > stopped - 3
        assert (folder / manifest.WEIGHTS).read_bytes() == (tmp_path / "whole" / manifest.WEIGHTS).read_bytes()


def test_changed_images_resume_bit_for_bit_too(make_config: Make, tmp_path: Path) -> None:
    """With augmentation, dropout, accumulation and a schedule, in mid-epoch, with loader processes before and none after."""
    flags: dict[str, Any] = {"model": "cnn", "epochs": 2, "batch_size": 300, "model_args": "dropout=0.3", "augment_shift": 2,
                             "augment_affine": 0.2, "grad_accum_steps": 2, "scheduler": "one_cycle", "warmup_ratio": 0.3,
                             "log_every": 1}  # fmt: skip
    whole = fit(make_config(**flags), tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(make_config(**flags, num_workers=2), tmp_path / "run", _StopAt(3))
    resumed = fit(make_config(**flags), tmp_path / "run")
    plain = fit(make_config(**flags | {"augment_shift": 0, "augment_affine": 0}), tmp_path / "plain")
    weights = [t.model.state_dict()["network.conv1.weight"] for t in (whole, resumed, plain)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("optimizer", RunConfig.__dataclass_fields__["optimizer"].metadata["choices"])
def test_every_optimizer_goes_on_bit_for_bit(make_config: Make, tmp_path: Path, optimizer: str) -> None:
    config = make_config(model="cnn", epochs=2, batch_size=300, optimizer=optimizer, log_every=1)
    whole = fit(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(config, tmp_path / "run", _StopAt(3))
    resumed = fit(config, tmp_path / "run")
    states = [snapshot([t.model.state_dict(), t.optimizer.state_dict()["state"]]) for t in (whole, resumed)]
    torch.testing.assert_close(*states, rtol=0, atol=0)


@pytest.mark.parametrize(("every", "steps"), [("7", [14, 18]), ("epoch", [12, 18]), ("1000m", [18])])
def test_checkpoints_come_when_asked_for(make_config: Make, tmp_path: Path, every: str, steps: list[int]) -> None:
    config = make_config(model="mlp", epochs=3, batch_size=60, checkpoint_every=every)
    fit(config, tmp_path / "run")
    kept = sorted(int(p.stem.removeprefix("step-")) for p in (tmp_path / "run" / "checkpoints").glob("*.pt"))
    assert kept == steps


def test_minutes_are_counted_by_rank_zeros_clock(make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    class _Tick(Progress):
        def step(self, step: int, loss: float) -> None:
            clock[0] += 50.0

    config = make_config(model="mlp", epochs=1, batch_size=35, log_every=1, checkpoint_every="2m")
    fit(config, tmp_path / "run", _Tick())
    kept = sorted(int(p.stem.removeprefix("step-")) for p in (tmp_path / "run" / "checkpoints").glob("*.pt"))
    assert kept == [8, 10]  # after 4 and 8 steps, when 150 s and more had gone by, and at the end; two are kept
