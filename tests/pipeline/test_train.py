from __future__ import annotations

import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline import checkpoint, manifest
from pipeline.cli import main
from pipeline.config import RunConfig
from pipeline.data.loader import Split
from pipeline.errors import Failure
from pipeline.layers import parameter_table
from pipeline.progress import Progress
from pipeline.run import Run
from pipeline.train import Training
from tests.conftest import read_rows
from tests.trainings import begin, curve, fit, losses, same_weights

Make = Callable[..., RunConfig]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(make_config: Make, tmp_path: Path) -> None:
    runs = [
        fit(make_config(model="mlp", epochs=2, model_args="dropout=0.5", seed=s), tmp_path / f"{k}")
        for k, s in enumerate((1, 1, 2))
    ]
    first, again, other = (torch.cat([p.flatten() for p in t.model.parameters()]) for t in runs)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_accumulation_does_not_change_the_gradient(make_config: Make, tmp_path: Path) -> None:
    flags = {"model": "mlp", "epochs": 2, "batch_size": 50, "optimizer": "sgd", "log_every": 1}
    whole, parts = (losses(fit(make_config(**flags, grad_accum_steps=k), tmp_path / str(k))) for k in (1, 7))
    assert parts == pytest.approx(whole, rel=1e-5)


def test_points_of_the_curve_stand_for_equal_windows_and_epochs_for_their_own_samples(
    make_config: Make, tmp_path: Path
) -> None:
    """2 steps an epoch, of 200 and 141 samples, and 5 steps a window, which goes on beyond the end of an epoch."""
    flags = {"model": "mlp", "epochs": 8, "batch_size": 200, "checkpoint_every": "1000"}
    single = losses(fit(make_config(**flags, log_every=1), tmp_path / "single"))
    shared = fit(make_config(**flags, log_every=5), tmp_path / "shared")
    assert len(single) == 16
    samples = [200, 141] * 8
    points = [row for row in curve(shared) if "train/loss" in row]
    assert [row["step"] for row in points] == [5, 10, 15]
    for row in points:
        window = slice(row["step"] - 5, row["step"])
        assert row["samples"] == sum(samples[window])
        assert row["train/loss"] == pytest.approx(_mean(single[window], samples[window]), rel=1e-12)
    epochs = [row for row in curve(shared) if "train/accuracy" in row]
    assert [row["step"] for row in epochs] == [2, 10, 16]
    for row in epochs:
        epoch = slice(row["step"] - 2, row["step"])
        assert row["train/epoch_loss"] == pytest.approx(_mean(single[epoch], samples[epoch]), rel=1e-12)
    assert sum("val/loss" in row for row in curve(shared)) == 8


def _mean(values: list[float], weights: list[int]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)


@pytest.mark.parametrize("max_steps", [5, 9, 14])  # in the first epoch, at its end, in the second
def test_max_steps_ends_a_training_in_mid_epoch(make_config: Make, tmp_path: Path, max_steps: int) -> None:
    flags = {"model": "mlp", "epochs": 40, "batch_size": 38, "scheduler": "cosine", "log_every": 1}
    training = fit(make_config(**flags, max_steps=max_steps), tmp_path / "run")
    assert len(training.batches) == 9
    rows = curve(training)
    steps = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in steps] == list(range(1, max_steps + 1))
    assert steps[-1]["train/lr"] < 0.1 * max(row["train/lr"] for row in steps)  # the schedule knows where the end is
    ends = [row for row in rows if "val/loss" in row]
    assert len(ends) == math.ceil(max_steps / 9) and ends[-1]["step"] == max_steps
    assert training.state.epoch == len(ends) and checkpoint.newest_checkpoint(tmp_path / "run") is not None


def test_the_accuracy_of_a_cut_epoch_counts_its_own_samples(make_config: Make, tmp_path: Path) -> None:
    training = fit(make_config(model="mlp", epochs=1, batch_size=38, max_steps=2, lr=1e-9), tmp_path / "run")
    (row,) = [r for r in curve(training) if "train/accuracy" in r]
    right = 0
    for ((x, y),) in training.batches.epoch(0, end=2):
        right += ((training.model(x)[0][:, 0] > 0).long() == y).sum().item()
    assert row["train/accuracy"] == right / 76


def test_the_logged_loss_is_that_of_the_global_batch_before_the_update(make_config: Make, tmp_path: Path) -> None:
    training = begin(make_config(model="polynomial", recipe="reference", epochs=1, log_every=1), tmp_path / "run")
    (((x, y),),) = training.batches.epoch(0)
    expected = ((training.model(x)[0] - y) ** 2).sum().item()
    training.fit(Progress())
    assert losses(training) == pytest.approx([expected], rel=1e-6)


def test_gradient_clipping_bounds_the_update(make_config: Make, tmp_path: Path) -> None:
    config = make_config(model="mlp", optimizer="sgd", lr=1, weight_decay=0, momentum=0, scheduler="constant",
                         max_grad_norm=0.01, epochs=1, batch_size=341)  # fmt: skip
    training = begin(config, tmp_path / "run")
    before = torch.cat([p.detach().flatten() for p in training.model.parameters()])
    training.fit(Progress())
    after = torch.cat([p.detach().flatten() for p in training.model.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_the_best_weights_on_validation_are_kept_not_the_last(make_config: Make, tmp_path: Path) -> None:
    """With a learning rate that wrecks the model later on, the kept weights are those of the best epoch."""
    config = make_config(model="mlp", epochs=12, lr=0.05, seed=1)
    training = fit(config, tmp_path / "run")
    rows = [r for r in curve(training) if "val/accuracy" in r]
    best = min(rows, key=lambda r: r["val/loss"])
    assert training.state.best_epoch == best["epoch"] < 12
    kept = training.run.load_model()
    val = training.val
    with torch.no_grad():
        loss = training.val_loss_sum(kept(val.x)[0], val.y).item() / len(val)
    assert loss == pytest.approx(best["val/loss"], rel=1e-5)
    last = Run.load_model(training.run, manifest.LAST_WEIGHTS)
    assert not torch.equal(last.network.output.weight, kept.network.output.weight)  # type: ignore[union-attr]


def test_early_stopping_ends_after_the_patience(make_config: Make, tmp_path: Path) -> None:
    training = fit(make_config(model="mlp", epochs=200, early_stopping=3, lr=0.05, checkpoint_every=50), tmp_path / "run")
    assert training.state.epoch == training.state.best_epoch + 3 < 200
    assert (tmp_path / "run" / "checkpoints").is_dir()  # the epoch it stopped in is saved


def test_patience_begins_after_the_warm_up(make_config: Make, tmp_path: Path) -> None:
    """With a rate that only rises, and hardly anything learnt, no epoch of the warm-up counts as one without a gain."""
    flags = {"model": "mlp", "epochs": 10, "early_stopping": 1, "lr": 1e-30, "scheduler": "constant", "batch_size": 341}
    assert fit(make_config(**flags, warmup_ratio=0.6), tmp_path / "warm").state.epoch == 7
    assert fit(make_config(**flags), tmp_path / "cold").state.epoch == 2


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_the_step_and_the_remedy(make_config: Make, tmp_path: Path, poison: float) -> None:
    training = begin(make_config(model="polynomial", batch_size=100, epochs=3), tmp_path / "run")
    y = training.batches.split.y.clone()
    batch = next(i for i, parts in enumerate(training.batches.epoch(0)) if 7 in _positions(training, parts))
    y[7] = poison
    training.batches.split = Split(training.batches.split.x, y)
    with pytest.raises(Failure, match=rf"loss=(nan|inf) in step {batch + 1} \(epoch 1\).*Lower --lr.*--max_grad_norm"):
        training.fit(Progress())


def _positions(training: Training, parts: Any) -> list[int]:
    x = training.batches.split.x[:, 0]
    return [int((x == value).nonzero()[0, 0]) for value in parts[0][0][:, 0]]


def test_a_diverged_run_keeps_its_best_weights_and_is_failed(tmp_path: Path, cache_dir: Path, capsys: Any) -> None:
    from mlflow import MlflowClient

    flags = ["--model", "polynomial", "--momentum", "0", "--nesterov", "false", "--scheduler", "constant", "--lr", "5",
             "--batch_size", "200", "--epochs", "40", "--cache_dir", str(cache_dir), "--output_dir", "run"]  # fmt: skip
    assert main(["train", *flags]) == 1
    error = capsys.readouterr().err
    assert "the training diverged" in error and "Traceback" not in error and "Lower --lr (now 5)" in error
    run = Run.open(Path("run"), check=False)
    assert all(p.isfinite().all() for p in run.load_model().parameters())
    assert MlflowClient().get_run(run.mlflow_run_id).info.status == "FAILED"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_mixed_precision_trains_to_the_same_place(make_config: Make, tmp_path: Path, precision: str) -> None:
    training = fit(make_config(model="cnn", epochs=3, precision=precision), tmp_path / "run")
    assert training.state.best[0] > 0.93
    assert all(p.dtype == torch.float32 for p in training.model.parameters())


@pytest.mark.slow
def test_compiling_the_model_changes_nothing_but_speed(make_config: Make, tmp_path: Path) -> None:
    flags = {"model": "mlp", "epochs": 1, "log_every": 1, "batch_size": 114}
    plain, compiled = (losses(fit(make_config(**flags, compile=c), tmp_path / c)) for c in ("false", "true"))
    assert compiled == pytest.approx(plain, rel=1e-4)


def test_a_checkpoint_restores_every_number(make_config: Make, tmp_path: Path) -> None:
    """Two epochs, a new Training from the checkpoint, two more: the same weights as four in a row, dropout included."""
    flags = {"model": "cnn", "epochs": 4, "model_args": "dropout=0.5", "batch_size": 200, "log_every": 1}
    whole = fit(make_config(**flags), tmp_path / "whole")
    first = begin(make_config(**flags), tmp_path / "parts")

    class _Stop(Progress):
        def epoch(self, epoch: int, row: Any) -> None:
            if epoch == 3:
                raise KeyboardInterrupt  # in the third epoch's end, before its checkpoint

    with pytest.raises(KeyboardInterrupt):
        first.fit(_Stop())
    found = checkpoint.newest_checkpoint(tmp_path / "parts")
    assert found and found[1]["state"]["epoch"] == 2
    second = fit(make_config(**flags), tmp_path / "parts")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert losses(second) == losses(whole)[-len(losses(second)) :]
    assert vars(second.state) == vars(whole.state)


def _interrupt(flags: list[str], line: str, signum: int) -> tuple[int, str]:
    """Run `train`, send a signal once it has printed `line`; return its exit status and what it said on stderr."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "train", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 90
    try:
        assert process.stdout
        for text in process.stdout:
            if text.startswith(line):
                process.send_signal(signum)
                break
            assert time.monotonic() < deadline
        _, error = process.communicate(timeout=30)
    finally:
        process.kill()
    return process.returncode, error


@pytest.mark.timeout(200)
def test_a_stopped_run_is_killed_and_resumes_in_the_same_mlflow_run(cache_dir: Path) -> None:
    from mlflow import MlflowClient

    flags = ["--model", "two_layer", "--batch_size", "2", "--epochs", "4", "--cache_dir", str(cache_dir)]
    status, said = _interrupt([*flags, "--output_dir", "stopped"], "epoch 2/4", signal.SIGTERM)
    assert status == 143 and said == "stopped by SIGTERM\n"
    run = Run.open(Path("stopped"), check=False)
    client = MlflowClient()
    assert client.get_run(run.mlflow_run_id).info.status == "KILLED"
    found = checkpoint.newest_checkpoint(run.folder, run_id=run.mlflow_run_id)
    assert found and 0 < found[1]["state"]["samples_seen"] < 640  # in the middle of an epoch
    assert main(["train", "--output_dir", "stopped", "--resume", "true", "--cache_dir", str(cache_dir)]) == 0
    assert client.get_run(run.mlflow_run_id).info.status == "FINISHED"
    assert main(["train", *flags, "--output_dir", "whole"]) == 0
    for name in (manifest.WEIGHTS, manifest.LAST_WEIGHTS):
        assert same_weights(Path("stopped") / name, Path("whole") / name)
    names = ("step", "epoch", "train/loss", "train/accuracy", "train/epoch_loss", "val/loss", "val/accuracy", "train/lr")
    stopped, whole = ([{k: r[k] for k in names if k in r} for r in read_rows(Path(f))] for f in ("stopped", "whole"))
    assert stopped == whole
    curve = [(r["step"], r["train/loss"]) for r in whole if "train/loss" in r]
    sent = client.get_metric_history(run.mlflow_run_id, "train/loss")
    assert [(m.step, m.value) for m in sorted(sent, key=lambda m: m.step)] == curve


def test_ctrl_c_ends_with_130_and_a_killed_run(cache_dir: Path) -> None:
    from mlflow import MlflowClient

    flags = ["--model", "two_layer", "--batch_size", "2", "--epochs", "8", "--cache_dir", str(cache_dir), "--output_dir", "run"]
    status, said = _interrupt(flags, "epoch 1/8", signal.SIGINT)
    assert status == 130 and "Traceback" not in said
    run = Run.open(Path("run"), check=False)
    assert MlflowClient().get_run(run.mlflow_run_id).info.status == "KILLED"


def test_an_update_that_diverges_at_the_very_end_is_told_and_its_weights_are_not_saved(
    cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No loss is computed after the last update: the weights themselves must be looked at."""
    flags = ["--model", "mlp", "--recipe", "reference", "--cache_dir", str(cache_dir), "--output_dir", "run"]
    assert main(["train", *flags, "--epochs", "1", "--lr", "1e38"]) == 1
    told = capsys.readouterr().err
    assert "weights are not finite after step 1: the training diverged. Lower --lr (now 1e+38)" in told
    assert not (Path("run") / manifest.WEIGHTS).exists() and not list(Path("run").glob("checkpoints/*"))


def test_weights_that_are_finite_and_useless_are_told_by_the_evaluation(
    cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", "polynomial", "--recipe", "reference", "--cache_dir", str(cache_dir), "--output_dir", "run"]
    assert main(["train", *flags, "--epochs", "1", "--lr", "1e20"]) == 1
    told = capsys.readouterr().err
    assert "loss=inf on the train samples" in told and "Traceback" not in told


def test_a_training_whose_validation_was_never_finite_has_diverged(make_config: Make, tmp_path: Path) -> None:
    training = begin(make_config(model="mlp", epochs=1, batch_size=341, checkpoint_every=9), tmp_path / "run")
    training.val = Split(training.val.x * math.nan, training.val.y)
    with pytest.raises(Failure, match="the validation loss was not finite after any epoch: the training diverged"):
        training.fit(Progress())


def test_the_parameter_table_lists_names_shapes_and_the_total(make_config: Make, tmp_path: Path) -> None:
    lines = list(parameter_table(begin(make_config(model="lenet"), tmp_path / "run").model))
    assert "| conv1.weight | (6, 1, 5, 5) | 150 |" in lines and lines[-1] == "| **all 10 tensors** | | 61706 |"
