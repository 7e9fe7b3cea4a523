"""The command `inspect`, from top to bottom: find out, say it, draw it. Nothing is written but the picture.

What a training would refuse is told after all that can be said, and ends with exit status 2 and without a picture.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import data
from pipeline.config import InspectConfig, RunConfig
from pipeline.data import image_table, table
from pipeline.data.prepare import check
from pipeline.data.spec import DataSpec, Samples, Source
from pipeline.data.split import split
from pipeline.errors import UserError
from pipeline.inspection import columns, costs, images
from pipeline.inspection.report import Found, Part, number, render
from pipeline.output import say
from pipeline.resolve import resolve
from pipeline.task import task

_CLASSES = 20  # that are listed
_UNEVEN = 3  # times as many samples in the largest class as in the smallest, from where it is told
_LONGEST_NAME = 100  # bytes of the picture's name that are the data's

Rows = Mapping[str, NDArray[np.int64]]


def inspect(config: InspectConfig, flags: Mapping[str, str]) -> None:
    """Say what a data set is, and draw it; `flags` are the given ones. Raises UserError where it cannot be trained on."""
    given = {name: text for name, text in flags.items() if name not in ("output", "image_size")}
    found = _find(config, given)
    head = Part(title=f"{config.dataset}: {found.kind}", rows=_facts(found))
    notes = Part(title="to be known", rows=[(note,) for note in found.notes])
    if found.source is None:
        _say([head, *found.parts, notes])
        raise UserError(*found.problems)
    source, samples = found.source, found.samples
    model, image_size = costs.propose(found.side, image_size=config.image_size, name=config.dataset)
    given |= found.flags
    run = _resolved(given, model, image_size)
    spec = source.spec.resized(image_size or run.image_size)
    parts = [head]
    if samples:
        rows, uncut = _split(samples, run, source)
        if uncut:
            given |= {"val_split": "0", "test_split": "0"}
            notes = Part(title=notes.title, rows=[(uncut,), *notes.rows])
        needs = costs.needs(run, spec, samples, rows, model)
        if balance := _balance(spec, samples.y):
            parts = [Part(title=head.title, rows=[*head.rows, ("balance", balance)])]
        parts += [_targets(source.spec, samples, rows), _cut(source, samples, rows), *found.parts, notes]
        parts += [Part(title="needs", rows=needs)]
    _say(parts if samples else [head, notes])
    if problems := _wrong(samples, source.spec):
        raise UserError(*problems)
    line = given | {"model": model} | ({"image_size": str(image_size)} if image_size else {})
    say(f"\ntrain it with\n  {costs.command(line)}")
    if model == costs.RESNET:
        say("  (--pretrained true begins with torchvision's weights, which it downloads)")
    if found.draw:
        _draw(found, config.output, name=source.spec.name, side=spec.sample_shape[-1] if spec.is_image else 0)


def _resolved(flags: Mapping[str, str], model: str, image_size: int) -> RunConfig:
    """Return the configuration of the training that is proposed. Raises UserError as it would."""
    asked = dict(flags) | {"model": model}
    if model == costs.RESNET:  # torch would be asked for it, which takes seconds: another model's recipe says the same
        asked |= {"model": "cnn"}
    elif image_size:
        asked |= {"image_size": str(image_size)}
    return resolve(asked)


def _find(config: InspectConfig, flags: Mapping[str, str]) -> Found:
    """Return what the data has to say of itself. Raises UserError where that is nothing."""
    name, options = config.dataset, data.options_of(vars(config))
    is_own = name not in data.matching()
    path = Path(name).expanduser()
    if is_own and path.is_dir():
        return images.of_folder(name, options)
    if is_own and path.is_file() and path.suffix.lower() in table.SUFFIXES:
        return images.of_table(name, options) if image_table.column_of(path) else columns.of_table(name, options)
    source = data.find(name, options)
    kind = "" if source.is_own else source.summary
    side = min(source.spec.sample_shape[1:], default=0)
    proposed = costs.propose(side, image_size=config.image_size, name=name)
    _resolved(flags, *proposed)  # tells of wrong flags before anything is loaded
    if source.missing and (files := source.missing(config.data_dir)):
        note = f"{len(files)} raw files are not there, the first is {files[0]}: a training downloads them."
        return Found(kind=kind, facts=[], source=source, notes=[note], side=side)
    try:
        samples = source.load(config.data_dir, 0, **config.data_args)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"data_args: {name} cannot be made with these arguments ({error}). Change them.") from error
    found = images.of_array(source, samples) if source.spec.is_image else columns.of_array(source, samples)
    found.kind = kind or found.kind
    return found


def _facts(found: Found) -> list[tuple[str, str]]:
    """Return the task, and what the data says of itself."""
    if not found.source:
        return found.facts
    spec = found.source.spec
    of = f"{len(spec.classes):,} {'labels' if spec.task == 'multilabel' else 'classes'}" if spec.classes else ""
    if spec.targets:
        of = ", ".join(spec.targets)
    return [("task", f"{spec.task}{' of ' if of else ''}{of}"), *found.facts]


def _wrong(samples: Samples | None, spec: DataSpec) -> tuple[str, ...]:
    """Return the sentences with which `prepare` would refuse the samples; images in files are decoded only there."""
    if samples is None or not isinstance(samples.x, np.ndarray):
        return ()
    try:
        check(samples, spec)
    except UserError as error:
        return error.messages
    return ()


def _split(samples: Samples, run: RunConfig, source: Source) -> tuple[Rows, str]:
    """Return the rows of the splits as they would be cut, and why none can be, where all samples are for training then."""
    try:
        return split(samples, run, source), ""
    except UserError as error:
        return {"train": np.arange(len(samples.y))}, str(error)


def _cut(source: Source, samples: Samples, rows: Rows) -> Part:
    """Return how many samples each split has, and where it comes from."""
    total = sum(map(len, rows.values()))
    own = set() if samples.split is None else set(np.unique(samples.split).tolist())
    strata = ", each class keeping its share" if task(source.spec.task).has_strata else ""
    chance = f"cut by chance{strata} (--split_seed 0)"
    whose = {name: "as the data says" if name in own else chance for name in rows}
    if any(len(r) and name not in own for name, r in rows.items() if name != "train"):
        whose["train"] = "what is left"
    return Part(
        title="splits", header=("split", "samples", "share", ""), numbers=(1, 2),
        rows=[(name, f"{len(r):,}", f"{len(r) / total:.1%}", whose[name] if len(r) else "") for name, r in rows.items()],
    )  # fmt: skip


def _targets(spec: DataSpec, samples: Samples, rows: Rows) -> Part:
    """Return the classes or labels with their counts, or the values that are predicted."""
    y = samples.y
    cells: list[tuple[str, ...]]
    if spec.task == "regression":
        values = y.astype(np.float64)
        cells = [
            (name, *(number(float(f(column))) for f in (np.min, np.median, np.max, np.mean, np.std)))
            for name, column in zip(spec.targets or [str(k) for k in range(y.shape[1])], values.T, strict=False)
        ]
        names = ("target", "min", "median", "max", "mean", "deviation")
        return Part(title="targets", header=names, rows=cells[:_CLASSES], numbers=(1, 2, 3, 4, 5))
    has_labels = y.ndim == 2

    def counted(part: NDArray[np.generic]) -> NDArray[np.int64]:
        return part.sum(0).astype(int) if has_labels else np.bincount(part.astype(int), minlength=len(spec.classes))

    counts = counted(y)
    order = np.argsort(-counts, kind="stable")
    shown, rest = order[:_CLASSES], order[_CLASSES:]
    of_split = {name: counted(y[r]) for name, r in rows.items()}
    cells = [
        (spec.classes[k], f"{counts[k]:,}", f"{counts[k] / len(y):.1%}", *(f"{c[k]:,}" for c in of_split.values()))
        for k in shown
    ]
    if len(rest):
        sums = (f"{c[rest].sum():,}" for c in of_split.values())
        cells.append((f"{len(rest):,} more", f"{counts[rest].sum():,}", f"{counts[rest].sum() / len(y):.1%}", *sums))
    header = ("label" if has_labels else "class", "samples", "share", *of_split)
    return Part(title="labels" if has_labels else "classes", header=header, rows=cells, numbers=tuple(range(1, len(header))))


def _balance(spec: DataSpec, y: NDArray[np.generic]) -> str:
    """Return how even the classes are; nothing where samples are of none, or of several."""
    if y.ndim > 1 or not spec.classes:
        return ""
    counts = np.bincount(y.astype(int), minlength=len(spec.classes))
    large, small = int(counts.argmax()), int(counts.argmin())
    if not counts[small]:
        return f"none of {spec.classes[small]}"
    ratio = counts[large] / counts[small]
    if ratio < _UNEVEN:
        return f"about even, the largest has {ratio:.1f} times as many samples as the smallest"
    return (
        f"uneven: {spec.classes[large]} has {number(float(f'{ratio:.2g}'))} times as many samples as {spec.classes[small]}; "
        f"who says {spec.classes[large]} every time is right in {counts[large] / counts.sum():.1%}. --class_weights balanced "
        "weighs all classes alike"
    )


def _say(parts: list[Part]) -> None:
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    say(render(parts, width=width))


def _draw(found: Found, output: Path, *, name: str, side: int) -> None:
    from pipeline.plots import style

    assert found.draw
    short = name.encode()[:_LONGEST_NAME].decode(errors="ignore")
    path = output / f"inspect-{short}.png"
    try:
        style.save(found.draw(side), path, about=f"{name}: {found.kind}")
    except OSError as error:
        raise UserError(f"output={output} cannot be written ({error.strerror}). Give another folder.") from error
    say(f"\npicture: {path}")
