"""Flags to a configuration that needs no further checks: recipe, flags, and every rule between fields, told all at once."""

from __future__ import annotations

import dataclasses
import inspect
import json
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import models
from models import ModelSpec
from models.recipes import RECIPES, names, recipe, recipe_for_own
from pipeline import data, losses
from pipeline.checks import violations, without_effect
from pipeline.config import RUNTIME_FIELDS, RunConfig, from_json, to_flags, to_json
from pipeline.data.spec import Source
from pipeline.errors import UserError
from pipeline.recipe import Merged, merge, text_of
from pipeline.task import task
from pipeline.values import convert, field_types


def resolve(flags: Mapping[str, str], *, world_size: int | None = None) -> RunConfig:
    """Return the full configuration: flag, or else what the file of `config` says, or else recipe, or else default.

    `config` among the flags names a JSON or TOML file. `world_size` is the number of ranks where torchrun has already set it.
    Raises UserError with every problem.
    """
    flags, base = with_file(flags)
    values, problems = convert(RunConfig, flags)
    merged, model, source, unknown = _merged(values, base)
    problems |= unknown
    config = RunConfig(**merged.fields)
    messages = [problems[field.name] for field in dataclasses.fields(RunConfig) if field.name in problems]
    if "model" not in problems:
        invalid = set(problems)
        broken = violations(config, model, source, values, world_size)
        messages += [message for fields, message in broken if not invalid & set(fields)]
    messages += _wrong_data_args(config, source) if not {"dataset", "data_args"} & set(problems) else []
    messages += _wrong_loss_args(config) if not {"loss", "loss_args"} & set(problems) else []
    if messages:
        raise UserError(*messages)
    return config


def with_file(flags: Mapping[str, str]) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the flags with those that a file sets beneath them, and the whole configuration that a run's config.json is.

    Raises UserError for a file that is neither.
    """
    flags = dict(flags)
    if "config" not in flags:
        return flags, {}
    path = Path(flags.pop("config"))
    try:
        text = path.read_text()
        values = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("it is no table of names and values")
        whole = values.get("config")
        if isinstance(whole, dict):
            base = {name: value for name, value in vars(from_json(whole)).items() if name not in RUNTIME_FIELDS}
            models.find(base["model"])
            return flags, base
        if unknown := sorted(set(values) - set(field_types(RunConfig))):
            raise ValueError(f"it sets {unknown[0]}, which is not a field of a training")
    except UserError as error:
        raise UserError(*(f"config={path}: {message}" for message in error.messages)) from error
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(
            f"config={path} cannot be used ({reason}). Give a JSON or TOML file of fields and values, or a run's config.json."
        ) from error
    return to_flags(values) | flags, {}


def _merged(values: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[Merged, ModelSpec, Source, dict[str, str]]:
    """Return what recipe and flags come to, for which model and data, and what is wrong with these three, by field."""
    defaults = {spec.name: getattr(RunConfig(), spec.name) for spec in dataclasses.fields(RunConfig)}
    problems: dict[str, str] = {}
    values = dict(values)
    base = dict(base)
    name = values.get("model", base.get("model", defaults["model"]))
    try:
        model = models.find(name)
    except ValueError as error:
        problems["model"] = f"model={name} {error}"
        name = values["model"] = defaults["model"]
        model = models.find(name)
    chosen = values.get("recipe", "default")
    if base and base["model"] != name:
        problems["model"] = f"model={name}: the whole configuration (--config) is one of model={base['model']}. Leave one out."
    if base and "recipe" in values:
        problems["recipe"] = f"recipe={chosen} and a whole configuration (--config) cannot both be the start. Leave one out."
    elif chosen not in names(name):
        problems["recipe"] = f"recipe={chosen} is not there for model={name}. It has: {', '.join(names(name))}."
        chosen = values["recipe"] = "default"
    is_whole = bool(base) and base["model"] == name
    home = str(base["dataset"] if is_whole else recipe(name, chosen)["dataset"] if name in RECIPES else defaults["dataset"])
    source, problem = _source(values, base if is_whole else {}, home, defaults, model)
    if problem:
        problems["dataset"] = problem
        values.pop("dataset", None)
    if source.is_own and "dataset" in values:  # a whole configuration has it as it should be
        values["dataset"] = data.address(values["dataset"])
    if "loss" in values:
        values["loss"] = losses.address(values["loss"])
    if not is_whole:
        base = _recipe(name, chosen, source, values) | {"image_size": model.image_size if source.spec.is_image else 0}
        home = str(base["dataset"])
    return merge(name, base, values, defaults, source=source, home=home), model, source, problems


def _source(
    values: Mapping[str, Any], base: Mapping[str, Any], home: str, defaults: Mapping[str, Any], model: ModelSpec
) -> tuple[Source, str]:
    """Return the data that is meant, and what is wrong with it; then the recipe's own in its place."""
    size = {"image_size": model.image_size}  # what a model recommends stands above the default, and below all else
    fields = {**defaults, **size, **base, **values}
    if values.get("dataset", home) != home and "data_args" not in values:
        fields["data_args"] = {}
    try:
        return data.find(values.get("dataset", home), data.options_of(fields)), ""
    except UserError as error:
        return data.find(defaults["dataset"] if home not in data.matching() else home), str(error)


def _recipe(model: str, name: str, source: Source, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a recipe sets, for the data that is meant, and by whose name it goes."""
    if model in RECIPES and (not source.is_own or name != "default"):
        return recipe(model, name, source.spec.name)
    kind = task(source.spec.task)
    is_pretrained = bool(values.get("weights") or values.get("pretrained"))
    fields = recipe_for_own(
        model, is_image=source.spec.is_image, num_train=source.num_train, loss=kind.losses[0],
        monitor=kind.metric if kind.has_decisions else "loss", is_pretrained=is_pretrained,
    )  # fmt: skip
    if is_pretrained and models.find(model).is_library:
        fields["preprocess"] = "pretrained"  # the mean and std that its weights have learnt with
    return fields | {"dataset": source.spec.name}


def _wrong_data_args(config: RunConfig, source: Source) -> list[str]:
    return [f"data_args: {problem}" for problem in argument_problems(config.data_args, source.parameters, config.dataset)]


def _wrong_loss_args(config: RunConfig) -> list[str]:
    """Those of an own loss are told once it is loaded: no code of a user's runs here."""
    name, args = config.loss, config.loss_args
    found = [] if losses.is_own(name) else argument_problems(args, losses.parameters(name), name)
    return [f"loss_args: {problem}" for problem in [*found, *losses.out_of_range(name, args)]]


def argument_problems(args: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter], owner: str) -> list[str]:
    """Return what is wrong with arguments of a constructor or loader, by its signature: sentences without their beginning."""
    problems = []
    taken = ", ".join(parameters) or "none"
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return []
    for name, value in args.items():
        if name not in parameters:
            problems.append(f"{owner} has no argument {name}. It takes: {taken}.")
        elif wanted := _other_type(value, parameters[name].annotation):
            problems.append(f"{name}={value} of {owner} is not {wanted}. Give {name}={_example(parameters[name])}.")
    missing = [n for n, p in parameters.items() if p.default is p.empty and n not in args and p.kind is p.KEYWORD_ONLY]
    return problems + [f"{owner} needs the argument {name}. Give {name}=..." for name in missing]


_TYPES: Mapping[type, tuple[tuple[type, ...], str]] = {
    int: ((int,), "a whole number"), float: ((int, float), "a number"), bool: ((bool,), "true or false"), str: ((str,), "text"),
}  # fmt: skip


def _other_type(value: object, annotation: object) -> str:
    """Return what was wanted where a value is not of an annotation, as far as that is a plain one."""
    if typing.get_origin(annotation) is typing.Literal:
        choices = typing.get_args(annotation)
        return "" if value in choices else f"one of {', '.join(map(str, choices))}"
    for kind, (types, wanted) in _TYPES.items():
        if annotation is kind:
            return "" if isinstance(value, types) and isinstance(value, bool) == (kind is bool) else wanted
    return ""


def _example(parameter: inspect.Parameter) -> object:
    return "..." if parameter.default is parameter.empty else parameter.default


def describe(flags: Mapping[str, str]) -> str:
    """Return in one line what the flags of a new training mean: model, data, recipe, and what replaced what in it.

    Below it stands what is remarkable about data that is the user's own.
    """
    file = flags.get("config")
    flags, base = with_file(flags)
    merged, _, source, _ = _merged(convert(RunConfig, flags)[0], base)
    fields, leave_out = merged.fields, ["model", "recipe", "dataset", "image_size", *RUNTIME_FIELDS]
    if base:  # a whole configuration is no news
        changes = merged.describe(leave_out=[*leave_out, *merged.kept]) or "nothing changed"
        text = f"{fields['model']} on {source.spec.name}, as in {file}; {changes}"
    else:
        text = f"{fields['model']} on {source.spec.name}, recipe {fields['recipe']}: {merged.describe(leave_out=leave_out)}"
    return "\n".join([text, *source.notes])


def applicable(config: RunConfig) -> dict[str, Any]:
    """Return, as JSON values, what has an effect on a training; `model_args` and its like as one entry for each argument."""
    idle = without_effect(config, data.source_of(config))
    values = {name: value for name, value in to_json(config).items() if name not in {*idle, "resume", "cache", "explain"}}
    for name in ("model_args", "data_args", "loss_args"):
        values |= {f"{name}.{argument}": value for argument, value in values.pop(name).items()}
    return values


def resumed(flags: Mapping[str, str], stored: RunConfig) -> RunConfig:
    """Return the configuration of a stored run with the runtime fields of `flags`.

    Raises UserError for a flag that would make it another training, or that has no effect.
    """
    values, problems = convert(RunConfig, flags)
    values |= {"dataset": data.address(values["dataset"])} if "dataset" in values else {}
    values |= {"loss": losses.address(values["loss"])} if "loss" in values else {}
    meant = values | (vars(resolve(flags)) if "config" in flags else {})  # one command line starts a run and resumes it
    changed = [
        f"{name}={flags.get(name, text_of(value))} differs from the run's {text_of(getattr(stored, name))}. A resumed run "
        f"keeps its configuration: leave --{name if name in flags else 'config'} out, or train in another folder."
        for name, value in meant.items()
        if name not in RUNTIME_FIELDS and value != getattr(stored, name) and (name, value) != ("precision", "auto")
    ]
    idle = without_effect(stored, data.source_of(stored))
    changed += [
        f"{name}={flags[name]} has no effect {idle[name][0]}. Leave --{name} out."
        for name in values
        if name in RUNTIME_FIELDS and name in idle
    ]
    if problems or changed:
        raise UserError(*problems.values(), *changed)
    return dataclasses.replace(stored, **{k: v for k, v in values.items() if k in RUNTIME_FIELDS} | {"resume": "true"})
