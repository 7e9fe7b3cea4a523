"""Row 19: a whole training command on own photographs, against timm's training script and torchvision's.

`python -m benchmarks.image_peers --timm_script FILE --torchvision_script FILE --python PYTHON`, or with one of the two

The scripts are train.py of huggingface/pytorch-image-models and references/classification/train.py of pytorch/vision, with the
files beside it. You fetch them; nothing of them is here. PYTHON has timm, and torch and torchvision as ours has them.

All begin with the same JPEGs of ten classes in `train` and `val`, and end when the process does: imports, reading, resnet18 at
64 px from random weights, SGD in batches of 64 (momentum 0.9, lr 0.01 all the way, no weight decay, no smoothed labels), and
validation and a checkpoint after each epoch. They decode in two loader processes; ours prepares once, from an empty cache, and
tracks into an empty SQLite file. In float32, and ours again with `--precision auto`, which first measures what that is.

What differs, as it cannot be had alike:
- Ours also tries the export of the network, evaluates `test` with the best weights, reports and draws. Theirs do nothing of it.
- timm is told `--no-aug`: the shorter side to 64 and the middle cut out, where ours squashes. Its loader drops the last batch
  of an epoch, which is smaller. Its resnet18 is its own, of the same layers.
- torchvision's script always crops and mirrors at random, so against it ours does too (`--augment_crop`, `--augment_flip`). It
  crops the photograph, ours the prepared 64 px.
- Theirs resize in each epoch, with Pillow. They normalize by ImageNet's statistics, ours by those of the data.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.decode import _write
from benchmarks.report import Row, row, run

ROOT = Path(__file__).resolve().parents[1]
SIDE, BATCH, LR, WORKERS = 64, 64, 0.01, 2
CLASSES = "abcdefghij"  # torchvision's script reports whether the right one is among five
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_RECIPE: Mapping[str, object] = {
    "model": "torchvision:resnet18", "image_size": SIDE, "batch_size": BATCH, "optimizer": "sgd", "momentum": 0.9, "lr": LR,
    "weight_decay": 0, "scheduler": "constant", "warmup_ratio": 0, "label_smoothing": 0, "checkpoint_every": "epoch",
    "device": DEVICE,
}  # fmt: skip
_LIKE_TORCHVISION: Mapping[str, object] = {"augment_crop": 0.08, "augment_flip": "true"}


def _words(flags: Mapping[str, object], *, dash: str = "_") -> list[str]:
    return [word for name, value in flags.items() for word in (f"--{name.replace('_', dash)}", str(value))]


def _seconds(words: Sequence[str], folder: Path, **environment: str) -> float:
    """Return how long a command takes in `folder`; what it says is shown only when it fails."""
    start = time.perf_counter()
    done = subprocess.run(
        words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        env=os.environ | environment,
    )  # fmt: skip
    taken = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{done.stdout[-4000:]}\n{' '.join(words)}\nended with status {done.returncode}.")
    print(f"{taken:8.1f} s  {' '.join(words)}", flush=True)
    return taken


def _ours(photos: Path, epochs: int, precision: str, more: Mapping[str, object]) -> float:
    with tempfile.TemporaryDirectory() as base:
        flags = {"dataset": photos, "cache_dir": f"{base}/cache", "output_dir": f"{base}/run", "epochs": epochs}
        words = [sys.executable, "-m", "pipeline", "train", *_words({**_RECIPE, **flags, "precision": precision, **more})]
        store = f"sqlite:///{base}/mlflow.db"
        return _seconds(words, Path(base), PYTHONPATH=str(ROOT), MLFLOW_TRACKING_URI=store)


def _timm(given: argparse.Namespace, photos: Path) -> float:
    with tempfile.TemporaryDirectory() as output:
        flags = {
            "data_dir": photos, "model": "resnet18", "num_classes": len(CLASSES), "batch_size": BATCH, "epochs": given.epochs,
            "opt": "momentum", "momentum": 0.9, "lr": LR, "weight_decay": 0, "sched": "step", "decay_epochs": 10_000,
            "warmup_epochs": 0, "smoothing": 0, "crop_pct": 1, "workers": WORKERS, "device": DEVICE, "output": output,
        }  # fmt: skip
        words = [
            given.python,
            given.timm_script,
            *_words(flags, dash="-"),
            "--no-aug",
            "--input-size",
            "3",
            f"{SIDE}",
            f"{SIDE}",
        ]
        return _seconds(words, Path(output))


def _torchvision(given: argparse.Namespace, photos: Path) -> float:
    with tempfile.TemporaryDirectory() as output:
        flags = {
            "data_path": photos, "model": "resnet18", "batch_size": BATCH, "epochs": given.epochs, "opt": "sgd",
            "momentum": 0.9, "lr": LR, "weight_decay": 0, "lr_step_size": 10_000, "workers": WORKERS, "device": DEVICE,
            "train_crop_size": SIDE, "val_crop_size": SIDE, "val_resize_size": SIDE, "output_dir": output,
        }  # fmt: skip
        return _seconds([given.python, given.torchvision_script, *_words(flags, dash="-")], Path(output))


def _in_turns(sides: Mapping[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """Return the seconds of each side, `count` of them, of which another is the first each time."""
    names = list(sides)
    seen: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(count):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            seen[name].append(sides[name]())
    return seen


def measure(given: argparse.Namespace) -> list[Row]:
    if not given.timm_script and not given.torchvision_script:
        sys.exit("No script was given to compare with. Add --timm_script FILE, --torchvision_script FILE, or both.")
    rows = []
    with tempfile.TemporaryDirectory() as base:
        photos = Path(base) / "photos"
        few = max(given.images // 10, len(CLASSES))
        for seed, (split, count) in enumerate((("train", given.images), ("val", few), ("test", few))):
            _write(photos / split, count, classes=CLASSES, seed=seed)
        for name, script, theirs, more in (
            ("timm's script", given.timm_script, _timm, {}),
            ("torchvision's script", given.torchvision_script, _torchvision, _LIKE_TORCHVISION),
        ):
            if not script:
                continue
            sides = {
                "fp32": lambda: _ours(photos, given.epochs, "fp32", more),  # noqa: B023
                "auto": lambda: _ours(photos, given.epochs, "auto", more),  # noqa: B023
                "theirs": lambda: theirs(given, photos),  # noqa: B023
            }
            seen = _in_turns(sides, given.pairs)
            for precision, goal in (("fp32", 1.0), ("auto", 1.5)):
                job = f"resnet18 at {SIDE} px, {given.images} files, {given.epochs} epochs, {precision}"
                both = list(zip(seen[precision], seen["theirs"], strict=True))
                rows.append(row(19, f"whole command, {job}, and {name}", "s", both, lambda a, b: b / a, at_least=goal))
    return rows


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--timm_script", type=_file, help="train.py of huggingface/pytorch-image-models")
    parser.add_argument("--torchvision_script", type=_file, help="references/classification/train.py of pytorch/vision")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs them")
    parser.add_argument("--images", type=int, default=2_000, help="training images; a tenth of it more for val, and for test")
    parser.add_argument("--epochs", type=int, default=3)


def _file(text: str) -> str:
    path = Path(text).expanduser().resolve()
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text} is not a file. Fetch that repository, and give its script.")
    return str(path)


if __name__ == "__main__":
    run(measure, __doc__, flags=_flags)
