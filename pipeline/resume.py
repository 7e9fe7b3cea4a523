"""Which training a command means: a new run or a resumed one, and where its checkpoints are found.

Rank 0 decides it, because only rank 0 needs the run folder; under torchrun the others are told.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from pipeline import distributed, environment, skeleton
from pipeline.config import RUNTIME_FIELDS, RunConfig
from pipeline.errors import UserError
from pipeline.resolve import resolve, resumed
from pipeline.run import Run, ensure_new, is_run_dir
from pipeline.values import convert


def resolve_run(flags: Mapping[str, str], *, world_size: int | None = None) -> RunConfig:
    """Return the configuration that the flags `flags` mean, with `resume` true or false. Raises UserError.

    A worker that the launcher has restarted resumes the run that it finds. With `upload_checkpoints`, a run of the same
    torchrun job whose rank 0 was on another host is found too.
    """
    restarted = distributed.num_restarts() > 0
    values, problems = convert(RunConfig, flags)
    folder = Path(values.get("output_dir", ""))
    if restarted and not flags.get("output_dir"):
        raise UserError("the workers were restarted without --output_dir, so their checkpoint cannot be found. Add it.")
    wanted = flags.get("resume", "false")
    if flags.get("output_dir") and (restarted or wanted != "false"):
        if problems:
            raise UserError(*problems.values())
        if flags.get("upload_checkpoints") == "true":
            from pipeline.tracking import fetch

            fetch.take_over(folder, job_id=os.environ.get("TORCHELASTIC_RUN_ID", ""))
        if is_run_dir(folder) or (wanted == "true" and not restarted):
            return resumed(flags, Run.open(folder, check=False).config)
    config = resolve(flags, world_size=world_size)
    if config.output_dir:
        ensure_new(folder)
    here = environment.worker().local_world_size if environment.is_worker() else config.nproc
    skeleton.refuse_impossible(config, num_ranks=here if isinstance(here, int) else 1)
    return dataclasses.replace(config, resume="false")


def config_before_init(flags: Mapping[str, str]) -> RunConfig:
    """Return a configuration whose `device` is right, before rank 0 can be asked for the rest."""
    if flags.get("resume", "false") == "false":
        return resolve(flags)
    values, problems = convert(RunConfig, flags)
    if problems:
        raise UserError(*problems.values())
    runtime = {name: value for name, value in values.items() if name in RUNTIME_FIELDS}
    folder = Path(values.get("output_dir") or "none")
    if (folder / "config.json").exists():
        return dataclasses.replace(Run.open(folder, check=False).config, **runtime)
    return RunConfig(**runtime)


def with_local_overrides(config: RunConfig, flags: Mapping[str, str]) -> RunConfig:
    """Return rank 0's configuration with what this host's own flags say of where and how to compute."""
    values, _ = convert(RunConfig, flags)
    own = {name: value for name, value in values.items() if name in RUNTIME_FIELDS - {"resume"}}
    return dataclasses.replace(config, **own)


def resolve_device(config: RunConfig) -> str:
    """Return `cpu` or `cuda`. Raises UserError for a device or a precision that this machine lacks."""
    device = distributed.resolve_device(config.device)
    if config.precision == "fp16" and device == "cpu":
        raise UserError("precision=fp16 needs a GPU, and torch finds none here. Use --precision bf16 or fp32.")
    if config.cuda_graph == "true" and device == "cpu":
        raise UserError("cuda_graph=true needs a GPU, and torch finds none here. Leave --cuda_graph out.")
    return device
