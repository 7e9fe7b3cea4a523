"""A field of a configuration, and the text of a flag to its value: every mistake is the end of a sentence."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pipeline.places import FIELDS as PLACES
from pipeline.places import NAMES_OR_FILES, check_length, expanded

_LARGEST_INT, _LARGEST_FLOAT = 1_000_000_000, 1e38  # where a field says nothing: what every library takes, 64 and 32 bits
_LONGEST_TEXT = 4_000  # characters; MLflow takes a parameter of 6 000


def Field(
    default: object,
    description: str,
    *,
    choices: Iterable[str] = (),
    gt: float | None = None,
    ge: float | None = None,
    lt: float | None = None,
    le: float | None = None,
    is_required: bool = False,
    is_file: bool = False,
    takes_own: bool = False,
    several: Iterable[str] | None = None,
) -> Any:
    """Declare a field with its description and the values that it may take; the bounds are called as elsewhere in the field.

    `is_file` says that a command writes a file of that name, `takes_own` that beside the choices it takes `file.py:function`,
    and `several` that it takes a list of choices, as a,b, and which of them have to be in it (perhaps none).
    """
    bounds = {"gt": gt, "ge": ge, "lt": lt, "le": le}
    flags = {"is_required": is_required, "is_file": is_file, "takes_own": takes_own}
    lists = {"several": None if several is None else tuple(several)}
    metadata = {"description": description, "choices": tuple(choices), "bounds": bounds, **flags, **lists}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


Args = Mapping[str, Any]
"""Arguments of a constructor or a loader, by name: what JSON can hold."""

_NOW = {"seed": "reference", "patches": "pca"}  # values of earlier versions


def flag_name(name: str) -> str:
    """Return what a field is called on the command line: one that Python keeps for itself has an underscore behind it."""
    return name.rstrip("_")


def field_types(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def shown(text: str) -> str:
    """Return what the user gave as a sentence can hold it: on one line, printable and not too long."""
    cut = text if len(text) <= 200 else f"{text[:100]}... ({len(text)} characters)"
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in cut)


def _convert(spec: dataclasses.Field[Any], kind: Any, text: str) -> object:
    """Return the value that `text` stands for. Raises ValueError with the end of a sentence that begins `name=text `."""
    flag = f"--{flag_name(spec.name)}"
    if kind == Args:
        return _args(text)
    if "auto" in typing.get_args(typing.get_args(kind)[1] if typing.get_args(kind) else None):
        if text == "auto":
            return text
        kind = typing.get_args(kind)[0]
    if kind == tuple[int, ...]:
        return _whole_numbers(spec, text)
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError(f"is neither true nor false. Give {flag} true or {flag} false.")
        return text == "true"
    if kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"is not {what}. Give {what}, as in {flag} {spec.default}.") from None
        if kind is float and not math.isfinite(number):
            raise ValueError(f"is not a finite number. Give a number, as in {flag} {spec.default}.")
        _check_bounds(spec, number, largest=_LARGEST_INT if kind is int else _LARGEST_FLOAT)
        return number
    if len(text) > _LONGEST_TEXT and spec.name not in PLACES:
        raise ValueError(f"is longer than {_LONGEST_TEXT} characters. Give a shorter one.")
    if not _is_utf8(text):
        raise ValueError("is not UTF-8, which is all that JSON and MLflow take. Give another name.")
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
        raise ValueError("holds a control character. Give a text of letters that can be read.")
    if spec.name in PLACES and text not in ("", str(spec.default)):  # a default with `~` is good on every machine
        text = expanded(text)
    if spec.name in NAMES_OR_FILES and "://" not in text:
        check_length(text)
    is_own = spec.metadata["takes_own"] and ":" in text
    if spec.metadata["several"] is not None:
        return text if text == spec.default else _several(spec, text)
    if spec.metadata["choices"] and text not in spec.metadata["choices"] and not is_own:
        near = [_NOW[text]] if text in _NOW else get_close_matches(text, spec.metadata["choices"], n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ValueError(f"is not known.{hint} Choose one of: {', '.join(filter(None, spec.metadata['choices']))}.")
    if kind is Path and not text:
        raise ValueError(f"is empty. Give a folder, as in {flag} {spec.default}.")
    return Path(text) if kind is Path else text


def _several(spec: dataclasses.Field[Any], text: str) -> str:
    """Return a list of choices as `a,b`, in the order of the choices. Raises ValueError."""
    choices, needed = spec.metadata["choices"], spec.metadata["several"]
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in choices:
            near = get_close_matches(name, choices, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"has {shown(name)!r}, which is not known.{hint} Choose some of: {', '.join(choices)}.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"has {twice[0]} twice. Name each once.")
    if lacking := [name for name in needed if name not in names]:
        whole = ",".join([*lacking, *names])
        raise ValueError(f"has no {lacking[0]}, which the others are held against. Write --{spec.name} {whole}.")
    return ",".join(name for name in choices if name in names)


def _whole_numbers(spec: dataclasses.Field[Any], text: str) -> tuple[int, ...]:
    """Return a list of whole numbers, as `1,32`, in their order. Raises ValueError."""
    default: Any = spec.default
    example = ",".join(map(str, default))
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"is no list of whole numbers. Give some as a,b, as in --{spec.name} {example}.") from None
    for number in numbers:
        _check_bounds(spec, number, largest=_LARGEST_INT, example=example)
    if twice := [number for number in numbers if numbers.count(number) > 1]:
        raise ValueError(f"has {twice[0]} twice. Name each once.")
    return tuple(sorted(numbers))


def _args(text: str) -> dict[str, Any]:
    """Return the arguments that a JSON object holds, or `a=1,b=x`, whose values are JSON or else text. Raises ValueError."""
    if len(text) > _LONGEST_TEXT:
        raise ValueError(f"is longer than {_LONGEST_TEXT} characters. Give a shorter one.")
    if text.startswith("{"):
        try:
            values = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise ValueError('is no JSON object. Write it as {"hidden": 25}, or as hidden=25.') from None
    else:
        values = {}
        for part in filter(None, text.split(",")):
            name, equals, value = part.partition("=")
            if not equals:
                raise ValueError(f"has {part!r} without a value. Write name=value,name=value, or a JSON object.")
            values[name.strip()] = _json_or_text(value.strip())
    bad = [name for name in values if not name.isidentifier()]
    if bad:
        raise ValueError(f"has {bad[0]!r}, which is no name of an argument. Write name=value,name=value, or a JSON object.")
    if not shown(text) == text or not _is_utf8(text):
        raise ValueError("holds a control character, or is too long. Give names and values that can be read.")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_BOUNDS = {"gt": "above", "ge": "at least", "le": "at most", "lt": "below"}


def _check_bounds(spec: dataclasses.Field[Any], number: float, *, largest: float, example: object = None) -> None:
    bounds = spec.metadata["bounds"]
    if number > largest and bounds["le"] is None:
        bounds = bounds | {"le": largest}
    broken = {"gt": lambda b: number <= b, "ge": lambda b: number < b, "le": lambda b: number > b, "lt": lambda b: number >= b}
    for name, limit in bounds.items():
        if limit is not None and broken[name](limit):
            allowed = " and ".join(f"{_BOUNDS[n]} {bounds[n]}" for n in _BOUNDS if bounds[n] is not None)
            raise ValueError(f"is out of range. Give a value {allowed}, as in --{spec.name} {example or spec.default}.")


def convert(cls: type, flags: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Turn flag flags into values of the fields of `cls`. Returns the good values, and a message for each bad field."""
    values: dict[str, Any] = {}
    problems: dict[str, str] = {}
    kinds = field_types(cls)
    for spec in dataclasses.fields(cls):
        if spec.name in flags:
            text = flags[spec.name]
            try:
                if kinds[spec.name] == tuple[str, ...]:
                    several = []
                    for text in texts(flags[spec.name]):
                        several.append(_convert(spec, str, text))
                    values[spec.name] = tuple(several)
                else:
                    values[spec.name] = _convert(spec, kinds[spec.name], text)
            except ValueError as error:
                problems[spec.name] = f"{flag_name(spec.name)}={shown(text)} {error}"
    return values, problems


def texts(flag: str) -> list[str]:
    """Return the texts of a flag that takes several: a JSON list of them, as `read_flags` has it, or else one."""
    try:
        found = json.loads(flag)
    except (ValueError, RecursionError):
        return [flag]
    return found if isinstance(found, list) and all(isinstance(text, str) for text in found) else [flag]
