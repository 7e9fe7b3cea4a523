"""The command `inspect`, from top to bottom: find out, say it, draw it. Nothing is written but the picture.

What a training would refuse is told after all that can be said, and ends with exit status 2 and without a picture.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline import data
from pipeline.config import InspectConfig, RunConfig
from pipeline.data import image_table, table
from pipeline.data.prepare import check
from pipeline.data.shards.places import is_remote
from pipeline.data.shards.source import is_place
from pipeline.data.spec import DataSpec, Samples, Source
from pipeline.data.split import split
from pipeline.errors import UserError
from pipeline.inspection import arrays, columns, costs, images, shards, targets
from pipeline.inspection.report import Found, Part, render
from pipeline.inspection.targets import Rows
from pipeline.output import say
from pipeline.resolve import resolve
from pipeline.task import task

_LONGEST_NAME = 100  # bytes of the picture's name that are the data's


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
    asked = config.image_size or (found.side if source.shards else 0)  # which were made for one size
    model, image_size = costs.propose(found.side, image_size=asked, name=config.dataset)
    given |= found.flags
    run = _resolved(given, model, image_size, is_sharded=source.shards is not None)
    spec = source.spec.resized(image_size or run.image_size)
    parts = [head]
    if samples:
        rows, uncut = _split(samples, run, source)
        if uncut:
            given |= {"val_split": "0", "test_split": "0"}
            notes = Part(title=notes.title, rows=[(uncut,), *notes.rows])
        needs = costs.needs(run, spec, samples, rows, model, is_sharded=source.shards is not None)
        if balance := targets.balance(spec, samples.y):
            parts = [Part(title=head.title, rows=[*head.rows, ("balance", balance)])]
        parts += [targets.targets(source.spec, samples, rows), targets.cut(source, samples, rows), *found.parts, notes]
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


def _resolved(flags: Mapping[str, str], model: str, image_size: int, *, is_sharded: bool = False) -> RunConfig:
    """Return the configuration of the training that is proposed. Raises UserError as it would."""
    asked = dict(flags) | {"model": model}
    if model == costs.RESNET and not is_sharded:  # torch would be asked, which takes seconds: another's recipe says the same
        asked |= {"model": "cnn"}
    elif image_size:
        asked |= {"image_size": str(image_size)}
    return resolve(asked)


def _find(config: InspectConfig, flags: Mapping[str, str]) -> Found:
    """Return what the data has to say of itself. Raises UserError where that is nothing."""
    name, options = config.dataset, data.options_of(vars(config))
    is_own = name not in data.matching()
    path = Path(name).expanduser()
    if is_own and path.is_dir() and not is_place(name):
        return images.of_folder(name, options)
    if is_own and path.is_file() and path.suffix.lower() in table.SUFFIXES:
        return images.of_table(name, options) if image_table.column_of(path) else columns.of_table(name, options)
    if is_remote(name) and not is_place(name):
        raise UserError(
            f"dataset={name} holds no shards, and raw data is looked at on this machine only. Copy some of it here."
        )
    source = data.find(name, options)
    if source.shards:
        return shards.of_shards(name, options)
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
    found = arrays.of_images(source, samples) if source.spec.is_image else arrays.of_vectors(source, samples)
    found.kind = kind or found.kind
    return found


def _facts(found: Found) -> list[tuple[str, str]]:
    """Return the task, and what the data says of itself."""
    if not found.source:
        return found.facts
    spec = found.source.spec
    of = f"{len(spec.classes):,} {'labels' if task(spec.task).has_labels else 'classes'}" if spec.classes else ""
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
