"""How a training starts on rank 0: is anything left to do, what is it computed with, and where; a new run or a resumed one."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import torch

import models
from pipeline import distributed, machine, manifest, precision, reuse, stages
from pipeline.config import RunConfig
from pipeline.data import prepare as prepared
from pipeline.data.loader import open_split
from pipeline.data.spec import DataSpec
from pipeline.distributed import Ranks
from pipeline.errors import UserError
from pipeline.output import log_to, say
from pipeline.reuse import Found
from pipeline.run import Run, ensure_new, ensure_writable, parse_rows
from pipeline.signals import Interrupted
from pipeline.skeleton import estimate_size
from pipeline.tracking import connection, runs
from pipeline.tracking import tracker as tracking
from pipeline.tracking.tracker import HostTracker, NullTracker, Tracker


def missing_stages(run: Run, *, export: bool) -> list[str]:
    """Return the stages that a run has not done yet, of those that its command does; a proof that failed is none."""
    wanted = ("train", "evaluate", *(("export", "verify", "report") if export else ()))
    missing = [stage for stage in wanted if not manifest.is_whole(run.folder, stage)]
    if "train" in missing:  # whatever stands on other weights
        return list(wanted)
    if export and "verify" not in missing:
        report = json.loads((run.folder / manifest.FILES["verify"][0]).read_text())
        missing += [] if report["passed"] and not report.get("rejected") else ["verify"]
    if "export" in missing and "verify" not in missing:
        missing.append("verify")
    if export and missing and "report" not in missing:
        missing.append("report")
    return missing


def is_finished(config: RunConfig, *, export: bool) -> bool:
    """Tell whether nothing is left to do for a run that is to be resumed, and say so. Raises UserError for a damaged one."""
    if config.resume != "true":
        return False
    run = Run.open(Path(config.output_dir), check=False)
    missing = missing_stages(run, export=export)
    if "train" in missing and manifest.is_sealed(run.folder, "train") and not any((run.folder / "checkpoints").glob("*.json")):
        manifest.check(run.folder)  # damaged, and nothing to make it anew from
    if missing or not tracking.is_told(run):
        return False
    connection.configure(check=False)
    runs.set_parent_run(run.mlflow_run_id)
    tracking.send_rest(run)
    rows = parse_rows((run.folder / manifest.METRICS).read_bytes(), run.folder / manifest.METRICS)
    epochs = max((row.get("epoch", 0) for row in rows), default=0)
    say(f"run {run.folder} is finished ({epochs:g} epochs): nothing to do")
    return True


@contextmanager
def opened(
    config: RunConfig, ranks: Ranks, data: Path, tags: Mapping[str, str] | None = None
) -> Iterator[tuple[Run, NullTracker]]:
    """Yield the run of a training and what this rank tracks with; rank 0 opens both, with more `tags` for MLflow."""
    with ExitStack() as stack:
        found = distributed.run_on_main(lambda: open_training(config, ranks, data, stack, tags or {}), on=ranks.is_main)
        run: Run = distributed.broadcast(found[0] if found else None)
        tracker: NullTracker = found[1] if found else NullTracker()
        if not found and ranks.local_rank == 0:
            tracker = stack.enter_context(closing(HostTracker()))
        yield run, tracker


def open_training(
    config: RunConfig, ranks: Ranks, data: Path, stack: ExitStack, more: Mapping[str, str]
) -> tuple[Run, Tracker]:
    """Open the MLflow run and the run folder: nothing exists before this, and it refuses to overwrite."""
    spec = prepared.read_spec(data)
    commit, dirty = tracking.git_state()
    say(f"opening MLflow at {connection.shown()} ...")
    connection.configure(check=config.resume == "false")  # a resumed run need not wait for a server
    dataset = None
    if config.resume == "true":
        run = _resumed(config, ranks, spec)
    else:
        run = _new(config, ranks, data, spec, commit, more)
        where = f"pipeline.data.{spec.name}" if config.dataset == spec.name else config.dataset
        dataset = {"name": spec.name, "digest": spec.sha256, "source": where}
    tags = tracking.environment_tags(run, world_size=ranks.world_size, device=ranks.device.type, dirty=dirty)
    tags |= {"evaluated_on": "test" if "test" in spec.counts else "train"} | dict(more)
    tracker = stack.enter_context(tracking.training_run(run, tags, dataset=dataset))
    log_to(run.folder / manifest.LOG)
    say(f"run folder {run.folder}, MLflow run {run.mlflow_run_id}")
    return run, tracker


def with_keys(run: Run, config: RunConfig, ranks: Ranks, data: Path, *, is_new: bool) -> Run:
    """Return the run with the keys of its stages; of a new one it is written down with what it begins."""
    if not is_new:
        config = dataclasses.replace(config, weights="")  # which may be gone by now
    found = stages.keys(
        config, prepared.read_manifest(data), num_ranks=ranks.world_size, device=machine.kind(ranks.device.type),
        tracking=connection.place(), places=run.own_files,
    )  # fmt: skip
    if is_new:
        stages.begin(run.folder, found)
    return dataclasses.replace(run, keys=found if is_new else stages.resumed(run.folder, found))


def take(found: Found, ranks: Ranks) -> Path | None:
    """Take a run that was found as the result; return its folder on rank 0. What `mlflow run` has opened is shown below it."""
    if not ranks.is_main:
        return None
    if os.environ.get("MLFLOW_RUN_ID"):
        connection.configure()
        runs.set_parent_run(found.run.mlflow_run_id, {"cache": "hit"})
    reuse.tell(found)
    return found.run.folder


def _resumed(config: RunConfig, ranks: Ranks, spec: DataSpec) -> Run:
    run = Run.open(Path(config.output_dir), check=False)
    run.keep_code()
    ensure_same_data(run, spec)
    ensure_writable(run.folder, num_bytes=estimate_size(dataclasses.replace(config, model=run.model)))
    runs.set_parent_run(run.mlflow_run_id)
    _say_what(spec, ranks, config.precision)
    return dataclasses.replace(run, config=config)


def _new(config: RunConfig, ranks: Ranks, data: Path, spec: DataSpec, commit: str, tags: Mapping[str, str]) -> Run:
    runs.check_new(spec.name)
    config = settle_precision(config, ranks, data, spec)
    if config.output_dir:
        ensure_new(Path(config.output_dir))
    parent = Path(config.output_dir or "runs")
    is_new = not parent.exists()
    ensure_writable(parent, num_bytes=estimate_size(config))
    try:
        run_id = runs.create_run(dataset=spec.name, output_dir=config.output_dir, tags=tags)
    except BaseException:
        if is_new:
            parent.rmdir()
        raise
    folder = Path(config.output_dir or f"runs/{models.label(config.model)}-{run_id[:8]}")
    try:
        return Run.create(folder, config=config, mlflow_run_id=run_id, git_commit=commit, data=spec)
    except BaseException as error:
        runs.abort_run(run_id, "KILLED" if isinstance(error, Interrupted) else "FAILED")
        raise


def settle_precision(config: RunConfig, ranks: Ranks, data: Path, spec: DataSpec) -> RunConfig:
    """Return the configuration with `precision=auto` decided, and say what is trained on and how it is computed."""
    run = Run(folder=Path(), config=config, mlflow_run_id="", git_commit="", data=spec)
    settled, why = precision.choose(run, open_split(data, "train"), ranks)
    _say_what(spec, ranks, settled.precision + (f" ({why})" if why else ""))
    return settled


def _say_what(spec: DataSpec, ranks: Ranks, arithmetic: str) -> None:
    """Say what is trained on, by how many ranks, and how it is computed."""
    samples = ", ".join(f"{number:,} {name}".replace(",", " ") for name, number in spec.counts.items() if number)
    classes = f" of {len(spec.classes)} classes" if spec.classes else ""
    number = torch.get_num_threads()
    threads = f", {number} thread{'s' * (number > 1)} each" if ranks.device.type == "cpu" else ""
    say(f"{samples} samples{classes}; {ranks.world_size} x {ranks.device.type}{threads}, {arithmetic}")
    if "test" not in spec.counts:
        say("no samples are held out for a test: the final metrics are of the training samples, and called train/final/...")


def prepare_everywhere(config: RunConfig, ranks: Ranks) -> Path:
    """Prepare once on each host; return the folder on this one."""
    distributed.run_on_main(lambda: prepared.prepare(config), on=ranks.local_rank == 0)
    return prepared.prepared_folder(config)


def ensure_same_data(run: Run, spec: DataSpec) -> None:
    """Raise UserError where what was prepared here is not what a run was trained on."""
    if spec.sha256 != run.data.sha256:
        raise UserError(
            f"dataset={run.config.dataset}: the tensors prepared here are not those of the training (SHA-256 "
            f"{spec.sha256[:12]}, not {run.data.sha256[:12]}). Point --data_dir to the same raw files, and use the same "
            "versions (see README)."
        )
