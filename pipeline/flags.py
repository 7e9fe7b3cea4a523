"""Flags: the words of a command line to {field: text}, and the help that lists them, both from the configuration classes."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import textwrap
from collections import deque
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from models import MODELS
from models.recipes import RECIPES, recipe
from pipeline import data
from pipeline.config import RENAMED, RunConfig
from pipeline.errors import UserError
from pipeline.recipe import text_of
from pipeline.values import convert, flag_name, shown, texts

_METAVARS = {
    "int": "N", "float": "X", "bool": "true|false", "Path": "FOLDER", "str": "TEXT", "output_dir": "FOLDER", "run": "RUN",
    "onnx": "FILE", "force": "REASON", "space": "NAME=VALUES...", "Args": "NAME=VALUE,...", "tuple[str, ...]": "PATH...",
    "tuple[int, ...]": "N,...", "storage": "FILE|URL",
}  # fmt: skip


def read_flags(words: Sequence[str], cls: type) -> dict[str, str]:
    """Return {field: text}. A flag takes the word behind it, unless that begins with two minus signs; the last one counts.
    One of true or false means true without a word behind it.

    A flag of several texts takes all words up to the next flag, and may be repeated; its text is a JSON list of them.

    Not by argparse, which takes `--flag=--` and `--flag -1e-3` for something else. Raises UserError with every problem.
    """
    names = {flag_name(field.name): field.name for field in dataclasses.fields(cls)}
    names |= {"config": "config"} if issubclass(cls, RunConfig) else {}
    if words and "action" in names and not words[0].startswith("-"):  # `cache gc`
        words = ["--action", *words]
    lists = {field.name for field in dataclasses.fields(cls) if field.type == "tuple[str, ...]"}
    switches = {field.name for field in dataclasses.fields(cls) if field.type == "bool"}
    flags: dict[str, str] = {}
    problems: list[str] = []
    rest = deque(words)
    while rest:
        flag, equals, text = rest.popleft().partition("=")
        name = flag.removeprefix("--")
        follows = bool(rest) and not equals and not rest[0].startswith("--")
        if not flag.startswith("--") or name not in names:
            problems.append(_unknown_flag(flag, cls))
            if flag.startswith("--") and follows:
                rest.popleft()
            continue
        name = names[name]
        if name in lists and (equals or follows):
            several = texts(flags[name]) if name in flags else []
            several.append(text if equals else rest.popleft())
            while rest and not equals and not rest[0].startswith("--"):
                several.append(rest.popleft())
            flags[name] = json.dumps(several)
        elif equals or follows:
            flags[name] = text if equals else rest.popleft()
        elif name in switches:
            flags[name] = "true"
        else:
            problems.append(f"{flag} was given without a value. Write {flag} VALUE.")
    if problems:
        raise UserError(*problems, *convert(cls, flags)[1].values())
    return flags


def _unknown_flag(word: str, cls: type) -> str:
    name = word[:100].lstrip("-")
    if name in RENAMED:
        return f"--{name} is given otherwise now: {RENAMED[name]}."
    fields = [flag_name(field.name) for field in dataclasses.fields(cls)]
    near = get_close_matches(word[:100].lower().lstrip("-").replace("-", "_"), fields, n=1)
    if not word.startswith("-"):
        hint = f"A value stands behind its flag, as in --{fields[0]} VALUE."
    else:
        hint = f"Did you mean --{near[0]}?" if near else "Leave it out; --help lists the flags."
    return f"{shown(word) or 'An empty word'} is not a flag of this command. {hint}"


def help_text(command: str, summary: str, cls: type) -> str:
    """Return what `--help` prints for a command."""
    parser = argparse.ArgumentParser(
        prog=f"{program()} {command}",
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=_recipes() if issubclass(cls, RunConfig) else None,
        allow_abbrev=False,
        usage="%(prog)s [--flag VALUE ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    by_recipe = {name for recipes in RECIPES.values() for values in recipes.values() for name in values} | {"image_size"}
    if issubclass(cls, RunConfig):
        what = "JSON or TOML file of such fields, beneath the flags; a run's own config.json repeats or varies that run"
        parser.add_argument("--config", metavar="FILE", help=f"{what} (default: empty)")
    for field in dataclasses.fields(cls):
        choices = [choice for choice in field.metadata["choices"] if choice]
        own = field.default if field.default is not dataclasses.MISSING else ""
        default = "from the recipe" if issubclass(cls, RunConfig) and field.name in by_recipe else text_of(own)
        note = "required" if field.metadata["is_required"] else f"default: {default or 'empty'}"
        parser.add_argument(
            f"--{flag_name(field.name)}",
            metavar=("NAME,..." if field.metadata["several"] is not None else "|".join(choices))
            or ("FILE" if field.metadata["is_file"] else _METAVARS.get(field.name))
            or _METAVARS.get(str(field.type), "auto|N"),
            help=f"{field.metadata['description']} ({note})".replace("%", "%%"),
        )
    return parser.format_help().rstrip()


def _recipes() -> str:
    lines = ["models and their default recipes (--recipe reference: those of the text that a model came from):"]
    for name, spec in MODELS.items():
        values = " ".join(f"{k}={text_of(v)}" for k, v in recipe(name, "default").items())
        lines += [f"  {name}: {spec.summary}", *textwrap.wrap(values, 110, initial_indent="    ", subsequent_indent="    ")]
    return "\n".join([*lines, "data sets:", *(f"  {name}: {data.find(name).summary}" for name in data.matching())])


def overview(summaries: Mapping[str, str]) -> str:
    """Return what the command line prints without a command."""
    width = max(map(len, summaries))
    return "\n".join(
        [
            f"usage: {program()} COMMAND [--flag VALUE ...]",
            "",
            "Data to trained model, model to artifacts that are proven to predict as it did in training.",
            "",
            *(f"  {name:{width}}  {summary}" for name, summary in summaries.items()),
            "",
            f"Begin with `{program()} run --model cnn`, and look at what came of it with `mlflow ui`.",
            f"`{program()} COMMAND --help` lists the flags of a command with their meanings and defaults.",
        ]
    )


def program() -> str:
    """Return what the user calls this program: the installed command, or the module."""
    return "trainyard" if Path(sys.argv[0]).stem == "trainyard" else "python -m pipeline"
