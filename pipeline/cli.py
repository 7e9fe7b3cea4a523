"""The command line: sub-commands, flags generated from the configuration classes, exit status.

Nothing heavy is imported before the flags are known to be right, so a mistake is answered at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import errno
import signal
import sys
import textwrap
import traceback
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from models import MODELS
from pipeline import __version__, environment, output, places
from pipeline import config as configuration
from pipeline.config import EvaluateConfig, Failure, PlotConfig, RunConfig, StageConfig, SyncConfig, UserError, VerifyConfig
from pipeline.data.catalog import DATASETS
from pipeline.output import say
from pipeline.signals import Interrupted

COMMANDS: Mapping[str, tuple[type, str]] = {
    "run": (RunConfig, "prepare, train, evaluate, export and verify, in one MLflow run (MLproject's `main`)"),
    "prepare": (RunConfig, "lay the data set out as tensors on disk"),
    "train": (RunConfig, "prepare what is missing, train and evaluate"),
    "evaluate": (EvaluateConfig, "evaluate a run's best weights on its test split"),
    "export": (StageConfig, "write a run's model as ONNX, TorchScript, .pt2 and safetensors"),
    "verify": (VerifyConfig, "prove that a run's artifacts answer as its model does"),
    "sync": (SyncConfig, "send MLflow what it did not take while a run was going on"),
    "plot": (PlotConfig, "draw a picture that needs no run"),
}

_LOADING = "loading torch and MLflow ..."  # takes seconds, and a minute on a busy machine
_ALIASES = {"main": "run"}  # MLproject's name of it
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)  # what a disk does, and no mistake of ours
_METAVARS = {
    "int": "N", "float": "X", "bool": "true|false", "Path": "FOLDER", "str": "TEXT", "output_dir": "FOLDER", "run": "RUN",
    "onnx": "FILE",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; return 0 done, 1 failed, 2 bad configuration or input, 130 or 143 stopped by a signal."""
    output.end_log()
    try:
        return _answered(list(sys.argv[1:] if argv is None else argv))
    except Exception:
        output.log(traceback.format_exc().rstrip())
        raise


def _answered(arguments: list[str]) -> int:
    """Run one sub-command, and say what ended it if it was not our own mistake."""
    try:
        return _dispatch(arguments)
    except UserError as error:
        _complain(error.messages)
        return 2
    except Failure as error:
        _complain(str(error).splitlines())
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("models", "pipeline", "export"):
            raise
        _complain(
            [f"{error.name} is not installed for {sys.executable}. Activate the environment of this project (`mlflow run "
             "--env-manager local` takes the python on the PATH), or use `uv run`."]
        )  # fmt: skip
        return 2
    except OSError as error:
        if error.errno not in _DISK:
            raise
        _complain(
            [f"{error.filename or 'the run folder'} cannot be written ({error.strerror}). What was saved is kept. Make room or "
             "mend the access, and go on: --resume true."]
        )  # fmt: skip
        return 1
    except Interrupted as stop:
        _complain([f"stopped by {signal.Signals(int(stop.code or 0) - 128).name}"])
        return int(stop.code or 0)


def _complain(messages: Sequence[str]) -> None:
    """Say what is wrong, one line each; of a job's ranks, the first on each host says it."""
    try:
        local_rank = environment.worker().local_rank
    except UserError:  # which is what is to be told
        local_rank = 0
    if local_rank == 0:
        say("\n".join(messages), error=True)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        say(_overview())
        return 0
    if arguments[0] == "--version":
        say(__version__)
        return 0
    command, *words = arguments
    command = _ALIASES.get(command, command)
    if command.startswith("-"):
        raise UserError(f"The command comes before {configuration.shown(command)}. Choose one of: {', '.join(COMMANDS)}.")
    if command not in COMMANDS:
        near = get_close_matches(command[:100], COMMANDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"{configuration.shown(command)} is not a command.{hint} Choose one of: {', '.join(COMMANDS)}.")
    cls = COMMANDS[command][0]
    if not places.is_somewhere():
        raise UserError("the working folder is gone: it was deleted. Change into one that is there.")
    if "-h" in words or "--help" in words:
        say(_parser(command).format_help().rstrip())
        return 0
    flags = _read_flags(words, cls)
    worker = environment.worker()  # raises UserError where the variables of torchrun contradict each other
    values, problems = configuration.convert(cls, flags)
    obstacles = {name: m for name, m in places.occupied(values) if name != "output_dir" or worker.rank == 0}
    if cls is RunConfig and not obstacles:
        return _training(command, [command, *words], flags)
    if problems or obstacles:
        raise UserError(*(problems | obstacles).values())
    return _later_stage(command, [command, *words], cls(**values))


def _training(command: str, arguments: list[str], flags: Mapping[str, str]) -> int:
    world_size = environment.worker().world_size if environment.is_worker() else None
    if command == "prepare" or flags.get("resume", "false") == "false":  # all mistakes are told before anything is joined
        config = configuration.resolve(flags, world_size=world_size)
    if command == "prepare":
        from pipeline.data.prepare import prepare

        say(str(prepare(config)))
        return 0
    is_new = flags.get("resume", "false") == "false"
    _announce(configuration.describe(flags) if is_new else f"{command} in {flags.get('output_dir')}, resume={flags['resume']}")
    from pipeline import distributed

    if environment.is_worker():
        _refuse_what_torchrun_decides(flags)
        return _on_every_rank(command, flags)
    from pipeline import resume

    config = resume.resolve_run(flags)
    device = resume.resolve_device(config)
    nproc = distributed.resolve_nproc(config.nproc, device)
    if config.batch_size < nproc * config.grad_accum_steps:
        raise UserError(
            f"batch_size={config.batch_size} is smaller than {nproc} ranks x grad_accum_steps="
            f"{config.grad_accum_steps}. Use a larger --batch_size, or fewer processes (--nproc)."
        )
    if nproc == 1 and not config.max_restarts:
        return _on_every_rank(command, flags, config)
    from pipeline.data.prepare import prepare

    prepare(config)  # a mistake in the data is told before any worker starts
    arguments = [*arguments, "--device", device]  # workers need it before they can ask rank 0
    status = distributed.launch(["pipeline", *arguments], nproc, max_restarts=config.max_restarts)
    if status == 1:
        from pipeline.tracking import runs

        runs.close_after_failure()
    return status


def _announce(text: str) -> None:
    """Say what a command is about, before the slow imports. What our launcher has said, its workers only note in the log."""
    if environment.worker().rank == 0:
        (output.log if environment.is_launched() else say)(f"{text}\n{_LOADING}")


def _refuse_what_torchrun_decides(flags: Mapping[str, str]) -> None:
    """Raise UserError for a flag that our own launcher would obey, in a rank that torchrun has started."""
    if environment.is_launched():
        return
    local = str(environment.worker().local_world_size)
    decided = {"nproc": ("auto", local), "max_restarts": ("0",)}
    words = {"nproc": "--nproc-per-node", "max_restarts": "--max-restarts"}
    problems = [
        f"{name}={flags[name]} has no effect under torchrun. Give it as torchrun's own {words[name]}, and leave --{name} out."
        for name, same in decided.items()
        if name in flags and flags[name] not in same
    ]
    if problems:
        raise UserError(*problems)


def _on_every_rank(command: str, flags: Mapping[str, str], config: RunConfig | None = None) -> int:
    """Train on this rank. What rank 0 decides counts for all; the others need neither its run folder nor its disk."""
    from pipeline import commands, distributed, resume

    first = config or resume.config_before_init(flags)
    with distributed.process_group(resume.resolve_device(first)) as ranks:
        if config is None:
            decided = distributed.run_on_main(lambda: resume.resolve_run(flags, world_size=ranks.world_size), on=ranks.is_main)
            config = resume.with_local_overrides(distributed.broadcast(decided), flags)
        commands.train(config, ranks, export=command == "run")
    return 0


def _later_stage(command: str, arguments: list[str], config: Any) -> int:
    if command == "plot":
        say(f"drawing {config.plot} ...")
        from pipeline.plots import evaluation, standalone

        path = config.output / f"{config.plot}.png"
        about, draw = standalone.PICTURES[config.plot]
        try:
            evaluation.save(draw(), path, about=about)
        except OSError as error:
            raise UserError(f"output={config.output} cannot be written ({error.strerror}). Give another folder.") from error
        say(str(path))
        return 0
    if not config.run:
        raise UserError("run: nothing was given. Add --run FOLDER or --run MLFLOW_RUN_ID.")
    _announce(f"{command} of {config.run}")
    if command == "sync":
        from pipeline.tracking import tracker

        say(f"{config.run}: {tracker.sync(config.run)} figures sent")
        return 0
    from pipeline.tracking.runs import find_run

    if command == "evaluate":
        return _evaluate(arguments, config)
    run = find_run(config.run, stage=command)
    from pipeline import commands

    if command == "export":
        commands.export(config, run)
    else:
        commands.verify(config, run)
    return 0


def _evaluate(arguments: list[str], config: EvaluateConfig) -> int:
    from pipeline import commands, distributed
    from pipeline.tracking.runs import find_run

    device = distributed.resolve_device(config.device)
    if not environment.is_worker() and (nproc := distributed.resolve_nproc(config.nproc, device)) > 1:
        find_run(config.run, stage="evaluate")
        return distributed.launch(["pipeline", *arguments], nproc)
    with distributed.process_group(device) as ranks:
        run = distributed.broadcast(distributed.run_on_main(lambda: find_run(config.run, stage="evaluate"), on=ranks.is_main))
        commands.evaluate(config, run, ranks)
    return 0


def _read_flags(words: Sequence[str], cls: type) -> dict[str, str]:
    """Return {field: text}. A flag takes the word behind it, unless that begins with two minus signs; the last one counts.

    Not by argparse, which takes `--flag=--` and `--flag -1e-3` for something else. Raises UserError with every problem.
    """
    names = {field.name for field in dataclasses.fields(cls)}
    flags: dict[str, str] = {}
    problems: list[str] = []
    rest = list(words)
    while rest:
        flag, equals, text = rest.pop(0).partition("=")
        name = flag.removeprefix("--")
        follows = bool(rest) and not equals and not rest[0].startswith("--")
        if not flag.startswith("--") or name not in names:
            problems.append(_unknown_flag(flag, cls))
            if flag.startswith("--") and follows:
                rest.pop(0)
        elif equals or follows:
            flags[name] = text if equals else rest.pop(0)
        else:
            problems.append(f"{flag} was given without a value. Write {flag} VALUE.")
    if problems:
        raise UserError(*problems, *configuration.convert(cls, flags)[1].values())
    return flags


def _unknown_flag(word: str, cls: type) -> str:
    fields = [field.name for field in dataclasses.fields(cls)]
    near = get_close_matches(word[:100].lower().lstrip("-").replace("-", "_"), fields, n=1)
    if not word.startswith("-"):
        hint = f"A value stands behind its flag, as in --{fields[0]} VALUE."
    else:
        hint = f"Did you mean --{near[0]}?" if near else "Leave it out; --help lists the flags."
    return f"{configuration.shown(word) or 'An empty word'} is not a flag of this command. {hint}"


def _parser(command: str) -> argparse.ArgumentParser:
    cls, meaning = COMMANDS[command]
    parser = argparse.ArgumentParser(
        prog=f"python -m pipeline {command}",
        description=f"{meaning[0].upper()}{meaning[1:]}.",
        epilog=_recipes() if cls is RunConfig else None,
        allow_abbrev=False,
        usage="%(prog)s [--flag VALUE ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    by_recipe = {name for spec in MODELS.values() for recipe in spec.recipes.values() for name in recipe}
    for field in dataclasses.fields(cls):
        choices = field.metadata["choices"]
        default = "from the recipe" if cls is RunConfig and field.name in by_recipe else _text(field.default)
        note = "required" if field.name == "run" and not field.default else f"default: {default or 'empty'}"
        parser.add_argument(
            f"--{field.name}",
            metavar="|".join(choices) or _METAVARS.get(field.name) or _METAVARS.get(str(field.type), "auto|N"),
            help=f"{field.metadata['description']} ({note})".replace("%", "%%"),
        )
    return parser


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _recipes() -> str:
    lines = ["models and their default recipes (--recipe reference: those of the text that a model came from):"]
    for name, spec in MODELS.items():
        recipe = " ".join(f"{k}={_text(v)}" for k, v in spec.recipe("default").items())
        lines += [
            f"  {name}: {spec.summary}",
            *textwrap.wrap(recipe, 110, initial_indent="    ", subsequent_indent="    "),
        ]
    return "\n".join([*lines, "data sets:", *(f"  {name}: {spec.summary}" for name, spec in DATASETS.items())])


def _overview() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: python -m pipeline COMMAND [--flag VALUE ...]",
            "",
            "Data to trained model, model to artifacts that are proven to answer as it did in training.",
            "",
            *(f"  {name:{width}}  {meaning}" for name, (_, meaning) in COMMANDS.items()),
            "",
            "Begin with `python -m pipeline run --model cnn`, and look at what came of it with `mlflow ui`.",
            "`python -m pipeline COMMAND --help` lists the flags of a command with their meanings and defaults.",
        ]
    )
