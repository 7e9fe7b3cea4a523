"""Images under `inspect`: sizes, formats, colours and bad files, from headers; and from pixels, as far as that takes a second.

The surprise: a file whose pixels cannot be decoded is found only if it is among those that are. What was decoded is told.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline import data
from pipeline.data import folder, image_table
from pipeline.data.decoding import Bad, ImageFiles, counted, for_each, sentence
from pipeline.data.images import BadImage, Header, decode, header, resize
from pipeline.data.layout import refuse_empty
from pipeline.data.spec import DataOptions, Samples, Source
from pipeline.errors import UserError
from pipeline.inspection.costs import propose
from pipeline.inspection.report import Found, Part

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PIXELS = 100_000_000  # that are decoded to find broken files; a second or two on two cores
_NAMED = 20  # bad files that are named
_NO_SIZE = 28  # a side to ask the providers with, before one is proposed


class Photo(NamedTuple):
    """An image file, or its content, with what its header says."""

    name: str
    label: int
    file: Path | bytes
    header: Header


def of_folder(name: str, options: DataOptions) -> Found:
    """Return what a folder of images has to say. Raises UserError as a training does, but for bad files and mixed sizes."""
    path = Path(name).expanduser()
    scan = _scan(path)
    number = {label: k for k, label in enumerate(scan.classes)}
    photos = [Photo(e.name, number[e.label], path / e.name, e.header) for e in scan.entries]
    given = dataclasses.replace(options, skip_bad=bool(scan.bad) or options.skip_bad)
    broken, decoded = _broken(photos, is_whole=options.skip_bad)
    kept = [k for k in range(len(photos)) if k not in broken]
    bad = [*scan.bad, *(Bad(photos[k].name, reason) for k, reason in sorted(broken.items()))]
    learnt = [photos[k] for k in kept if scan.entries[k].split in ("", "train")]
    _refuse_empty(path, scan.classes, learnt, bad)
    side = _side([photos[k] for k in kept])
    source = data.find(name, dataclasses.replace(given, image_size=propose(side, image_size=options.image_size)[1] or _NO_SIZE))
    used = scan._replace(entries=[scan.entries[k] for k in kept])
    channels = source.spec.sample_shape[0]
    files = ImageFiles(
        path,
        [e.name for e in used.entries],
        [e.stamp for e in used.entries],
        channels=channels,
        side=source.spec.sample_shape[1],
        given=name,
    )
    samples = folder.samples(path, files, used, skip_bad=False)
    return _found("a folder of images", [photos[k] for k in kept], source, samples, bad, decoded)


def _scan(path: Path) -> folder.Scan:
    try:
        return folder.scan(path, skip_bad=True)
    except UserError as error:  # perhaps because of bad files: then these are named first
        folder.scan(path)
        raise error


def of_table(name: str, options: DataOptions) -> Found:
    """Return what a Parquet file with a column of images has to say. Raises UserError as `of_folder` does."""
    path = Path(name).expanduser()
    asked = dataclasses.replace(options, skip_bad=True, image_size=options.image_size or _NO_SIZE)
    source = data.find(name, asked)
    samples: Samples = source.load(Path(), 0)
    rows = [int(row) for row in samples.x.names]  # type: ignore[union-attr]
    labels = dict(zip(rows, samples.y.tolist(), strict=True))
    photos, bad = [], []
    for row, content in enumerate(image_table.contents(path)):
        try:
            photos.append(Photo(f"row {row}", labels.get(row, -1), content, header(content)))
        except BadImage as error:
            bad.append(Bad(f"row {row}", str(error)))
    broken, decoded = _broken(photos, is_whole=options.skip_bad)
    bad += [Bad(photos[k].name, reason) for k, reason in sorted(broken.items())]
    kept = [k for k in range(len(photos)) if k not in broken]
    _refuse_empty(path, source.spec.classes, [photos[k] for k in kept], bad)
    groups = None if samples.groups is None else samples.groups[kept]
    samples = samples._replace(y=samples.y[kept], groups=groups)
    return _found("a table with a column of images", [photos[k] for k in kept], source, samples, bad, decoded)


def _refuse_empty(path: Path, classes: Sequence[str], photos: Sequence[Photo], bad: Sequence[Bad]) -> None:
    """Raise UserError where all images of a class are bad, and name these."""
    try:
        refuse_empty(path, classes, (classes[p.label] for p in photos), "can be decoded")
    except UserError as error:
        raise UserError(sentence(str(path), bad), *error.messages) from error


def _found(kind: str, photos: list[Photo], source: Source, samples: Samples, bad: Sequence[Bad], decoded: int) -> Found:
    sizes = sorted((p.header[:2] for p in photos), key=lambda s: (s[0] * s[1], s))
    smallest, middle, largest = (f"{w}x{h}" for w, h in (sizes[0], sizes[len(sizes) // 2], sizes[-1]))
    grey = sum(p.header.is_grey for p in photos)
    read = "grey" if source.spec.sample_shape[0] == 1 else "RGB"
    equal = [note for note in source.notes if "by their bytes" in note]
    deep = sum(p.header.is_16_bit for p in photos)
    total = len(photos) + len(bad)
    facts = [
        ("images", f"{len(photos):,} of {len(source.spec.classes)} classes"
                   + (f", and {counted(len(bad), 'file')} that cannot be read" if bad else "")),
        ("sizes", f"{smallest} in all" if smallest == largest else
                  f"min {smallest}, median {middle}, max {largest} ({len(set(sizes))} different)"),
        ("formats", ", ".join(f"{name} {n:,}" for name, n in Counter(p.header.format for p in photos).most_common())),
        ("colours", f"RGB {len(photos) - grey:,}, grey {grey:,}" + (f" ({deep:,} of 16 bit)" if deep else "")
                    + f"; read as {read}"),
        ("duplicates", equal[0] if equal else repeated(Counter([] if samples.groups is None else samples.groups.tolist()))),
        ("decoded", f"all {decoded:,}, to find what is broken" if decoded >= total - len(bad) else
                    f"{decoded:,} of {total:,} files; of the others the headers were read (--skip_bad true decodes all)"),
    ]  # fmt: skip
    rows = [(b.name, b.reason) for b in bad[:_NAMED]]
    more = f", the first {_NAMED}" if len(bad) > _NAMED else ""
    return Found(
        kind=kind, facts=facts, source=source, samples=samples, side=_side(photos),
        parts=[Part(title=f"files that cannot be read{more}", rows=rows)] if bad else [],
        notes=[n for n in source.notes if n not in equal and "(skip_bad=true)" not in n and "are squashed to" not in n],
        flags={"skip_bad": "true"} if bad else {}, draw=partial(_draw_files, source, photos),
    )  # fmt: skip


def repeated(counts: Counter[Any]) -> str:
    several = [count for count in counts.values() if count > 1]
    return f"{sum(several):,} are only {len(several):,} different ones, by their bytes" if several else "none, by their bytes"


def _side(photos: Sequence[Photo]) -> int:
    """Return the shorter side of the image in the middle."""
    sides = sorted(min(p.header.width, p.header.height) for p in photos)
    return sides[len(sides) // 2] if sides else _NO_SIZE


def _broken(photos: Sequence[Photo], *, is_whole: bool) -> tuple[dict[int, str], int]:
    """Return why images cannot be decoded, by their places, and how many were: all if that is quick, or `is_whole`."""
    total = sum(p.header.width * p.header.height for p in photos)
    places = range(0, len(photos), 1 if is_whole else max(1, -(-total // _PIXELS)))
    found: dict[int, str] = {}

    def work(index: int) -> None:
        try:
            decode(photos[places[index]].file, 1 if photos[places[index]].header.is_grey else 3)
        except BadImage as error:
            found[places[index]] = str(error)

    for_each(len(places), work, what="decoding images")
    return found, len(places)


def _draw_files(source: Source, photos: Sequence[Photo], side: int) -> Figure:
    from pipeline.plots.data import image_rows

    channels = source.spec.sample_shape[0]
    labels = np.array([p.label for p in photos])

    def tile(row: int) -> tuple[str, NDArray[np.uint8]]:
        return Path(photos[row].name).name, resize(decode(photos[row].file, channels), side)

    return image_rows(labels, tile, classes=source.spec.classes, side=side)
