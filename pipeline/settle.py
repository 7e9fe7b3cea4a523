"""Which training a command means: a new one, or one that is gone on with, and where its checkpoints are found.

Rank 0 decides it, because only rank 0 needs the run folder; under torchrun the others are told.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from pipeline import config as configuration
from pipeline import distributed, environment, skeleton, store
from pipeline.config import RUNTIME_FIELDS, RunConfig, UserError


def settle(texts: Mapping[str, str], *, world_size: int | None = None) -> RunConfig:
    """Return the configuration that the flags `texts` mean, with `resume` true or false. Raises UserError.

    A worker that the launcher has started anew goes on with the run that it finds. With `upload_checkpoints`, a run of the same
    torchrun job whose rank 0 was on another host is found too.
    """
    restarted = distributed.num_restarts() > 0
    values, problems = configuration.convert(RunConfig, texts)
    folder = Path(values.get("output_dir", ""))
    if restarted and not texts.get("output_dir"):
        raise UserError("the workers were restarted without --output_dir, so their checkpoint cannot be found. Add it.")
    wanted = texts.get("resume", "false")
    if texts.get("output_dir") and (restarted or wanted != "false"):
        if problems:
            raise UserError(*problems.values())
        if texts.get("upload_checkpoints") == "true":
            from pipeline.tracking import takeover

            takeover.take_over(folder, job_id=os.environ.get("TORCHELASTIC_RUN_ID", ""))
        if store.holds_run(folder) or (wanted == "true" and not restarted):
            return configuration.resume(texts, store.open_run(folder, check=False).config)
    config = configuration.resolve(texts, world_size=world_size)
    if config.output_dir:
        store.refuse_existing(folder)
    here = environment.worker().local_world_size if environment.is_worker() else config.nproc
    skeleton.refuse_impossible(config, num_ranks=here if isinstance(here, int) else 1)
    return dataclasses.replace(config, resume="false")


def before_joining(texts: Mapping[str, str]) -> RunConfig:
    """Return a configuration whose `device` is right, before rank 0 can be asked for the rest."""
    if texts.get("resume", "false") == "false":
        return configuration.resolve(texts)
    values, problems = configuration.convert(RunConfig, texts)
    if problems:
        raise UserError(*problems.values())
    runtime = {name: value for name, value in values.items() if name in RUNTIME_FIELDS}
    folder = Path(values.get("output_dir") or "none")
    if (folder / "config.json").exists():
        return dataclasses.replace(store.open_run(folder, check=False).config, **runtime)
    return RunConfig(**runtime)


def on_this_host(config: RunConfig, texts: Mapping[str, str]) -> RunConfig:
    """Return rank 0's configuration with what this host's own flags say of where and how to compute."""
    values, _ = configuration.convert(RunConfig, texts)
    own = {name: value for name, value in values.items() if name in RUNTIME_FIELDS - {"resume"}}
    return dataclasses.replace(config, **own)


def resolve_device(config: RunConfig) -> str:
    """Return `cpu` or `cuda`. Raises UserError for a device or a precision that is not to be had here."""
    device = distributed.resolve_device(config.device)
    if config.precision == "fp16" and device == "cpu":
        raise UserError("precision=fp16 needs a GPU, and torch finds none here. Use --precision bf16 or fp32.")
    if config.cuda_graph == "true" and device == "cpu":
        raise UserError("cuda_graph=true needs a GPU, and torch finds none here. Leave --cuda_graph out.")
    return device
