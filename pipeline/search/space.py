"""The words of `--space`: which flags are searched, and among which values; every mistake is told before anything begins.

A range is of numbers, `lr=1e-4..1e-1:log`; of a field for whole numbers, of whole ones. Anything else is a list of choices,
`optimizer=adamw,muon`. The values are texts, as on a command line: the one that is printed in the end trains the same.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline.config import RUNTIME_FIELDS, RunConfig
from pipeline.data.spec import DataOptions
from pipeline.errors import UserError
from pipeline.resolve import resolve
from pipeline.values import convert, field_types, flag_name, shown

if TYPE_CHECKING:
    import optuna

_RANGE = re.compile(r"([^,]+?)\.\.([^,]+?)(:.*)?")
_DIGITS = 4  # of a number that is tried: what a person would type
_MOST_CORNERS = 64  # of the space that are tried whether they are a training at all
_DATA = {field.name for field in dataclasses.fields(DataOptions)} - {"args"}
_FIXED: Mapping[str, str] = {  # fields that all trials have in common, and why
    **dict.fromkeys(RUNTIME_FIELDS, "says where and how is computed, and not what"),
    **dict.fromkeys(("epochs", "max_steps"), "is the budget, by which trials are compared"),
    **dict.fromkeys(
        (*_DATA, "dataset", "target", "data_args", "split_seed", "val_split", "test_split", "image_size"),
        "changes the data, by which trials are compared",
    ),
    **dict.fromkeys(("model", "recipe", "seed", "weights"), "is what the study is of"),
    **dict.fromkeys(("monitor", "early_stopping"), "says how trials are compared"),
    **dict.fromkeys(
        ("checkpoint_every", "log_every", "strict_tracking", "check_export", "formats", "max_metric_drop", "min_speedup",
         "calibrate"),
        "changes no training",
    ),
}  # fmt: skip
_ARGS = ("model_args", "loss_args")


@dataclass(frozen=True)
class Dimension:
    """One flag that is searched: a range from `low` to `high`, both included, or `choices`, the texts of a flag."""

    name: str
    low: float = 0.0
    high: float = 0.0
    is_log: bool = False
    is_whole: bool = False
    choices: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The word that stands for it; two spaces are the same if their words are."""
        values = ",".join(self.choices) or f"{self.low:.15g}..{self.high:.15g}{':log' * self.is_log}"
        return f"{self.name}={values}"

    @property
    def ends(self) -> tuple[str, ...]:
        """All choices, or both ends of the range, as texts."""
        return self.choices or (self.written(self.low), self.written(self.high))

    def written(self, value: float) -> str:
        """Return a number of the range as the text of a flag."""
        if self.is_whole:
            return str(round(value))
        number = float(f"{value:.{_DIGITS}g}")
        return f"{number:g}" if self.low <= number <= self.high else repr(value)

    def param(self, text: str) -> str | int | float:
        """Return a text of a flag as the study keeps it."""
        return text if self.choices else int(text) if self.is_whole else float(text)

    def ask(self, trial: optuna.Trial) -> str:
        """Return the text that the study's sampler proposes for a trial."""
        if self.choices:
            return str(trial.suggest_categorical(self.name, self.choices))
        if self.is_whole:
            return self.written(trial.suggest_int(self.name, int(self.low), int(self.high), log=self.is_log))
        return self.written(trial.suggest_float(self.name, self.low, self.high, log=self.is_log))


def parse(words: Sequence[str]) -> tuple[Dimension, ...]:
    """Return what the words of `--space` say, by name. Raises UserError with every mistake in them."""
    found: dict[str, Dimension] = {}
    problems: list[str] = []
    for word in " ".join(words).split():
        try:
            dimension = _dimension(word)
            if dimension.name in found:
                raise ValueError(f"has {dimension.name} twice. Name each once.")
            found[dimension.name] = dimension
        except ValueError as error:
            problems.append(f"space={shown(word)} {error}")
    if not found and not problems:
        problems.append("space: nothing was given. Add --space, as in --space lr=1e-4..1e-1:log optimizer=adamw,muon.")
    if problems:
        raise UserError(*problems)
    return tuple(found[name] for name in sorted(found))


def _dimension(word: str) -> Dimension:
    """Return the dimension of one word. Raises ValueError with the end of the sentence about it."""
    name, equals, text = word.partition("=")
    if not equals or not text:
        raise ValueError("has no values. Write NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=a,b.")
    owner, dot, argument = name.partition(".")
    kinds = {flag_name(field): kind for field, kind in field_types(RunConfig).items()}
    if dot and (owner not in _ARGS or not argument.isidentifier()):
        raise ValueError(f"is no argument. Write one of {' or '.join(f'{args}.NAME' for args in _ARGS)}.")
    if owner not in kinds or (owner in _ARGS and not dot):
        what = f"a single argument is searched, as {owner}.hidden=8,16" if owner in _ARGS else "`train --help` lists the flags"
        raise ValueError(f"names {owner}, which cannot be searched: {what}.")
    if why := _FIXED.get(owner):
        raise ValueError(f"cannot be searched: {owner} {why}. Give one value, as --{owner} VALUE.")
    if matched := _RANGE.fullmatch(text):
        return _range(name, *matched.groups(), kind=None if dot else kinds[name])
    choices = tuple(text.split(","))
    if len(set(choices)) < len(choices) or len(choices) < 2 or "" in choices:
        raise ValueError("is no list of at least two different values. Write NAME=a,b; a single one is a flag of its own.")
    if not dot:
        _check(name, choices)
    return Dimension(name, choices=choices)


def _range(name: str, low: str, high: str, suffix: str | None, *, kind: Any) -> Dimension:
    if suffix not in (None, ":log"):
        raise ValueError(f"ends in {suffix}, which is not known. Write LOW..HIGH or LOW..HIGH:log.")
    is_number = kind is None or kind in (int, float) or "auto" in str(kind)
    if not is_number:
        raise ValueError(f"is a range, and {name} is no number. Write a list, as {name}=a,b.")
    is_whole = kind is int or (kind is None and not re.search(r"[.eE]", low + high))
    try:
        ends = [(int if is_whole else float)(end) for end in (low, high)]
    except ValueError:
        example = "8..64" if is_whole else "1e-4..1e-1"
        raise ValueError(f"is no range of {'whole ' * is_whole}numbers. Write {name}={example}.") from None
    if not all(map(math.isfinite, ends)) or ends[0] >= ends[1]:
        raise ValueError("is no range: its first number has to be below its second. Write LOW..HIGH.")
    if suffix and ends[0] <= 0:
        raise ValueError("cannot be logarithmic, as it does not begin above 0. Begin above 0, or leave :log out.")
    if kind is not None:
        _check(name, (low, high))
    return Dimension(name, float(ends[0]), float(ends[1]), bool(suffix), is_whole)


def _check(name: str, texts: Sequence[str]) -> None:
    """Raise ValueError where a text is no value of its flag, in the words that the flag itself would get."""
    for text in texts:
        if problem := next(iter(convert(RunConfig, {name: text})[1].values()), ""):
            raise ValueError(f"cannot be searched: {problem}")


def flags_of(fixed: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    """Return the flags of a training: what all trials have in common, and a text for each searched flag."""
    flags = dict(fixed) | {name: text for name, text in values.items() if "." not in name}
    for owner in _ARGS:
        own = {name.partition(".")[2]: _value(text) for name, text in values.items() if name.startswith(f"{owner}.")}
        if own:
            common = convert(RunConfig, {owner: fixed[owner]})[0].get(owner, {}) if owner in fixed else {}
            flags[owner] = json.dumps({**common, **own})
    return flags


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def first_point(space: Sequence[Dimension]) -> dict[str, str]:
    """Return the first value of each dimension."""
    return {dimension.name: dimension.ends[0] for dimension in space}


def recipe_point(
    fixed: Mapping[str, str], space: Sequence[Dimension], *, world_size: int | None = None
) -> tuple[dict[str, str], str]:
    """Return the point of a space that is the training without a search; or nothing, and the value that the space lacks."""
    try:
        config = resolve(dict(fixed), world_size=world_size)
    except UserError:  # what is searched has to be given
        return {}, ""
    point: dict[str, str] = {}
    for dimension in space:
        owner, _, argument = dimension.name.partition(".")
        value = getattr(config, owner)
        value = value.get(argument) if argument else value
        if value is None:  # what the network itself takes
            return {}, ""
        text = _text_of(dimension, value)
        if text is None:
            return {}, f"{dimension.name}={value:g}" if isinstance(value, float) else f"{dimension.name}={value}"
        point[dimension.name] = text
    return (point, "") if resolve(flags_of(fixed, point), world_size=world_size) == config else ({}, "")


def _text_of(dimension: Dimension, value: Any) -> str | None:
    """Return the text in a dimension that means a value; None where it has none."""
    if not dimension.choices:
        is_in = isinstance(value, int | float) and dimension.low <= value <= dimension.high
        return dimension.written(value) if is_in else None
    means = _value if "." in dimension.name else lambda text: convert(RunConfig, {dimension.name: text})[0][dimension.name]
    return next((text for text in dimension.choices if means(text) == value), None)


def _corners(space: Sequence[Dimension]) -> Iterator[dict[str, str]]:
    """Yield all corners of a small space; of a large one, those that differ from the first in one value."""
    if math.prod(len(dimension.ends) for dimension in space) <= _MOST_CORNERS:
        for texts in itertools.product(*(dimension.ends for dimension in space)):
            yield dict(zip((dimension.name for dimension in space), texts, strict=True))
        return
    first = first_point(space)
    yield first
    for dimension in space:
        yield from (first | {dimension.name: text} for text in dimension.ends[1:])


def resolve_first(fixed: Mapping[str, str], space: Sequence[Dimension], *, world_size: int | None = None) -> RunConfig:
    """Return the configuration of the first point of a space, once its corners were found to be trainings.

    Raises UserError for a flag that is in the space too, and for a corner that breaks a rule between fields.
    """
    owners = {dimension.name for dimension in space}
    twice = [
        f"{name}={shown(fixed[name])} was given, and --space has {name} too. Leave one of the two out."
        for name in fixed
        if name in owners
    ]
    given = {f"{owner}.{name}" for owner in _ARGS if owner in fixed
             for name in convert(RunConfig, {owner: fixed[owner]})[0].get(owner, {})}  # fmt: skip
    twice += [f"{name} was given, and --space has it too. Leave one of the two out." for name in sorted(given & owners)]
    if twice:
        raise UserError(*twice)
    first: RunConfig | None = None
    for corner in _corners(space):
        try:
            config = resolve(flags_of(fixed, corner), world_size=world_size)
        except UserError as error:
            where = f"space: at {' '.join(f'{name}={text}' for name, text in corner.items())}: " if first else ""
            raise UserError(*(where + message for message in error.messages)) from error
        first = first or config
    assert first
    return first
