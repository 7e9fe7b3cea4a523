"""The small data and code of which README and docs/ speak, drawn from a seed: `make` lays them into a folder."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from pyarrow import csv, parquet

from tests.conftest import ROOT

PAGES = (ROOT / "README.md", ROOT / "docs" / "your-data.md", ROOT / "docs" / "your-model.md",
         ROOT / "docs" / "search.md", ROOT / "docs" / "deploy.md",
         ROOT / "docs" / "team.md", ROOT / "docs" / "cache.md", ROOT / "docs" / "scale.md")  # fmt: skip
_COLORS = {"daisy": (230, 225, 200), "rose": (190, 30, 60), "tulip": (230, 150, 30)}


def make(folder: Path) -> None:
    """Write photos/, archive/photos/, new-photos/, houses.csv and .parquet, images.parquet, arrays.npz, and own code.

    The code is what stands in the pages: each block of Python that begins with `# name.py` is that file.
    """
    rng = np.random.default_rng(0)
    for label, color in _COLORS.items():
        for k in range(16):
            _photo(rng, color, folder / "photos" / label / f"{k:02d}.{'png' if k % 5 == 0 else 'jpg'}")
        _photo(rng, color, folder / "new-photos" / f"{label}.jpg")
    shutil.copytree(folder / "photos", folder / "archive" / "photos")
    houses = _houses(rng, 240)
    csv.write_csv(houses, folder / "houses.csv")
    parquet.write_table(houses, folder / "houses.parquet")
    files = sorted((folder / "photos").rglob("*.*"))
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in files]
    parquet.write_table(pa.table({"image": images, "label": [path.parent.name for path in files]}), folder / "images.parquet")
    x = rng.normal(size=(200, 4)).astype(np.float32)
    np.savez(folder / "arrays.npz", x=x, y=(x[:, 0] + x[:, 1] > 0).astype(np.int64), classes=np.array(["low", "high"]))
    for page in PAGES:
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text() if page.is_file() else "", flags=re.M | re.S):
            if name := re.match(r"# (\w+\.py)\b", block):
                (folder / name[1]).write_text(block)


def _photo(rng: np.random.Generator, color: tuple[int, int, int], path: Path) -> None:
    """Draw a disc of a color on a noisy ground, of a size of its own."""
    height, width = rng.integers(72, 120, 2)
    pixels = rng.integers(0, 90, (height, width, 3))
    y, x = np.mgrid[:height, :width]
    disc = (y - height / 2) ** 2 + (x - width / 2) ** 2 < (min(height, width) * rng.uniform(0.25, 0.45)) ** 2
    pixels[disc] = np.clip(np.array(color) + rng.integers(-25, 25, (disc.sum(), 3)), 0, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def _houses(rng: np.random.Generator, count: int) -> pa.Table:
    """Return houses with numbers, text, dates and booleans, some of them missing."""
    area, rooms = rng.uniform(40, 240, count).round(1), rng.integers(1, 8, count)
    district = rng.choice(["north", "south", "harbour", "old town"], count)
    street = rng.integers(0, 30, count)
    garden = rng.random(count) < 0.5
    price = 3000 * area + 20_000 * (district == "old town") + 15_000 * garden + rng.normal(0, 20_000, count)
    part = np.where(street < 20, "train", np.where(street < 25, "val", "test"))

    def holed(values: NDArray[np.generic], share: float) -> pa.Array:
        return pa.array(values.tolist(), mask=rng.random(count) < share)

    return pa.table({
        "area": holed(area, 0.05), "rooms": rooms, "district": holed(district, 0.05), "garden": garden,
        "built": np.datetime64("1950-01-01") + rng.integers(0, 25_000, count), "street": [f"street {k}" for k in street],
        "part": part.tolist(), "price": price.round(-2), "sold": np.where(price < 400_000, "yes", "no").tolist(),
        "garage": rng.integers(0, 2, count), "cellar": (area > 120).astype(int),
    })  # fmt: skip
