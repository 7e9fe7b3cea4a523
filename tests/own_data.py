"""Own data and own networks of each kind, and the commands that train them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import data
from pipeline.cli import main

N = 72  # samples of each data set
COLOURS = ("blue", "green", "red")

NETS = """
import torch
from torch import nn
from .blocks import block


class Net(nn.Module):
    def __init__(self, input_shape, num_classes, width=8, dropout=0.2):
        super().__init__()
        self.body = nn.Sequential(block(input_shape[0], width), block(width, 2 * width), nn.Dropout(dropout))
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))
"""
BLOCKS = """
from torch import nn


def block(channels, width):
    return nn.Sequential(nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
"""


def pixels(number: int, label: int, height: int, width: int) -> np.ndarray:
    """Return noise (H, W, 3) in which one channel is brighter."""
    image = np.random.default_rng(number).integers(0, 140, (height, width, 3), dtype=np.uint8)
    image[..., 2 - label] += 90
    return image


def photos(root: Path) -> Path:
    """Write JPEGs of mixed sizes, one of them grey, one with an EXIF turn."""
    for k in range(N):
        height, width = np.random.default_rng(k).integers(18, 70, 2)
        path = root / COLOURS[k % 3] / f"{k:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6 if k == 4 else 1
        picture = Image.fromarray(pixels(k, k % 3, int(height), int(width)))
        (picture.convert("L") if k == 9 else picture).save(path, exif=exif)
    return root


def grey(root: Path) -> Path:
    """Write grey PNGs of 20 x 20 into splits of their own: bars that lie, and bars that stand."""
    for k in range(N):
        image = np.random.default_rng(k).integers(0, 90, (20, 20), dtype=np.uint8)
        image[::4] += 120
        path = root / ("train", "train", "val", "test")[k // 2 % 4] / ("lying", "standing")[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.T.copy() if k % 2 else image).save(path)
    return root


def houses(root: Path) -> Path:
    """Write a table with numbers, text that needs quotes, dates, booleans and missing values, and a target of each kind."""
    source = np.random.default_rng(0)
    with root.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["area", "rooms", "city", "built", "garden", "kind", "sold", "price", "rent", "a", "b", "c"])
        for _ in range(3 * N):
            area, rooms, garden = source.normal(80, 25), int(source.integers(1, 7)), source.choice(["true", "false"])
            city = source.choice(["Oslo", "Rome", 'a "b", c', ""])
            built = f"{source.integers(1950, 2020)}-0{source.integers(1, 9)}-11" if source.random() > 0.1 else ""
            kind = ("flat", "house", "villa, large")[min(2, rooms // 3)]
            sold = "yes" if area + 10 * rooms > 115 else "no"
            price, rent = area * 3 + rooms * 20 + source.normal(), area / 10 + rooms
            writer.writerow(
                [f"{area:.2f}" if source.random() > 0.1 else "", rooms, city, built, garden, kind, sold, f"{price:.2f}",
                 f"{rent:.3f}", int(area > 80), int(rooms > 3), int(garden == "true")]
            )  # fmt: skip
    return root.with_suffix(".csv")


def arrays(root: Path) -> Path:
    """Write images (N, H, W, C), of no size that a network takes, and their labels."""
    y = np.arange(N) % 3
    x = np.stack([pixels(k, int(label), 30, 26) for k, label in enumerate(y)])
    np.savez(root.with_suffix(".npz"), x=x, y=y, classes=COLOURS)
    return root.with_suffix(".npz")


@dataclass(frozen=True)
class Case:
    """How a data set is made, and with which flags it is trained."""

    make: Callable[[Path], Path]
    flags: Mapping[str, str]
    target: str = ""


def _table(target: str) -> Case:
    ignored = [name for name in ("kind", "sold", "price", "rent", "a", "b", "c") if name not in target.split(",")]
    flags = {"model": "mlp", "target": target, "ignore_columns": ",".join(ignored), "epochs": "6"}
    return Case(houses, flags, target)


CASES = {
    "rgb": Case(photos, {"model": "cnn", "epochs": "2"}),
    "grey": Case(grey, {"model": "cnn", "epochs": "2"}),
    "binary": _table("sold"),
    "multiclass": _table("kind"),
    "regression": _table("price,rent"),
    "multilabel": _table("a,b,c"),
    "npz": Case(arrays, {"model": "cnn", "epochs": "2"}),
    "module": Case(
        photos, {"model": "nets.py:Net", "model_args": "width=4", "image_size": "16", "epochs": "4", "batch_size": "8"}
    ),
    "resnet18": Case(photos, {"model": "torchvision:resnet18", "image_size": "32", "epochs": "3", "batch_size": "8"}),
}


def call(*words: object) -> tuple[int, str, str]:
    """Run a command as a process of its own would, which has read no data yet; return its status, and what it said."""
    data.forget()
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(list(map(str, words)))
    return status, out.getvalue(), err.getvalue()


def words_of(flags: Mapping[str, object]) -> list[str]:
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def place_of(case: Case, place: Path) -> tuple[Path, dict[str, str]]:
    """Make the data of a case, and its network; return where the data lies and the flags of its training."""
    (place / "nets.py").write_text(NETS)
    (place / "blocks.py").write_text(BLOCKS)
    dataset = case.make(place / "own")
    flags = dict(case.flags) | {"dataset": str(dataset), "cache_dir": str(place / "cache"), "precision": "fp32"}
    if flags["model"].startswith("nets.py"):
        flags["model"] = f"{place}/{flags['model']}"
    return dataset, flags
