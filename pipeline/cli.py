"""The command line: words to a command and its flags, and what ended it to an exit status.

Nothing heavy is imported before the flags are known to be right, so a mistake is reported at once.
"""

from __future__ import annotations

import dataclasses
import errno
import signal
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches

from pipeline import __version__, environment, output, places
from pipeline.config import RunConfig
from pipeline.errors import Failure, UserError
from pipeline.flags import help_text, overview, read_flags
from pipeline.handlers import COMMANDS, Call
from pipeline.output import say
from pipeline.resolve import with_file
from pipeline.signals import Interrupted
from pipeline.values import convert, shown

_ALIASES = {"main": "run"}  # MLproject's name of it
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)  # what a disk does, and no mistake of ours


def main(argv: Sequence[str] | None = None) -> int:
    """Run one sub-command; return 0 done, 1 failed, 2 bad configuration or input, 130 or 143 stopped by a signal."""
    output.end_log()
    try:
        return _exit_status(list(sys.argv[1:] if argv is None else argv))
    except Exception:
        output.log(traceback.format_exc().rstrip())
        raise


def _exit_status(arguments: list[str]) -> int:
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
            [f"{error.filename or 'the run folder'} cannot be written ({error.strerror}). What was saved is kept. Free some "
             "space or fix the permissions, then rerun with --resume true."]
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
    summaries = {name: summary for name, (_, summary, _) in COMMANDS.items()}
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        say(overview(summaries))
        return 0
    if arguments[0] == "--version":
        say(__version__)
        return 0
    command, *words = arguments
    command = _ALIASES.get(command, command)
    if command.startswith("-"):
        raise UserError(f"The command comes before {shown(command)}. Choose one of: {', '.join(COMMANDS)}.")
    if command not in COMMANDS:
        near = get_close_matches(command[:100], COMMANDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UserError(f"{shown(command)} is not a command.{hint} Choose one of: {', '.join(COMMANDS)}.")
    cls, summary, handle = COMMANDS[command]
    if not places.is_somewhere():
        raise UserError("the working folder is gone: it was deleted. Change into one that is there.")
    if "-h" in words or "--help" in words:
        say(help_text(command, summary, cls))
        return 0
    flags = read_flags(words, cls)
    beneath, whole = with_file(flags)
    flags = flags if whole else beneath  # the fields of a file count as flags, before anybody asks for one of them
    worker = environment.worker()  # raises UserError where the variables of torchrun contradict each other
    values, problems = convert(cls, flags)
    written = [field.name for field in dataclasses.fields(cls) if field.metadata["is_file"]]
    obstacles = {name: m for name, m in places.occupied(values, written=written) if name != "output_dir" or worker.rank == 0}
    if cls is RunConfig and not obstacles:
        return handle(Call(command, words, flags))
    if problems or obstacles:
        raise UserError(*(problems | obstacles).values())
    return handle(Call(command, words, flags, cls(**values)))
