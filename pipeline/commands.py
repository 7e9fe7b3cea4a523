"""What each sub-command does, in order: the stages put together, with their tracking and their last words."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline import distributed, manifest, precision
from pipeline import run as run_folder
from pipeline.checkpoint import newest_checkpoint
from pipeline.config import EvaluateConfig, Failure, RunConfig, StageConfig, UserError, VerifyConfig
from pipeline.data.catalog import DATASETS
from pipeline.data.loader import evaluation_split, open_split
from pipeline.data.prepare import prepare, prepared_folder, read_manifest
from pipeline.distributed import Ranks
from pipeline.output import log_to
from pipeline.output import say as _say
from pipeline.run import Run
from pipeline.signals import Interrupted
from pipeline.tracking import connection, registry, runs
from pipeline.tracking import tracker as tracking
from pipeline.tracking.tracker import HostTracker, NullTracker, Tracker

if TYPE_CHECKING:
    from export.runner import Runner


def train(config: RunConfig, ranks: Ranks, *, export: bool) -> None:
    """Prepare, train and evaluate on all ranks; with `export`, export and verify on rank 0, all in one MLflow run.

    A run that is gone on with does what it has not done yet.
    """
    if distributed.broadcast(distributed.run_on_main(lambda: _is_finished(config, export=export), on=ranks.is_main)):
        return
    data = _prepare_everywhere(config, ranks)
    with ExitStack() as stack:
        begun = distributed.run_on_main(lambda: _begin(config, ranks, data, stack), on=ranks.is_main)
        tracker: NullTracker = begun[1] if begun else NullTracker()
        if ranks.local_rank == 0 and not begun:
            tracker = stack.enter_context(closing(HostTracker()))
        run: Run = distributed.broadcast(begun[0] if begun else None)
        missing = distributed.broadcast(_missing(run, export=export) if begun else None)
        if "train" in missing:
            _fit(run, config, ranks, tracker, data, command="run" if export else "train")
        probes = None
        if begun and "verify" in missing:
            from export.runner import FORMATS, Runner

            probes = stack.enter_context(Runner(FORMATS))  # these import their runtimes while the model is exported
        draw = _nothing
        if "evaluate" in missing:
            draw = _evaluate(run, ranks, tracker, data)
        if begun:
            _finish(run, begun[1], data, missing, probes, draw)
            _say(_where(run))
            if export:
                _say_where_served(begun[1])
            _say(f"next: {_next(run, exported=export)}")


def _nothing() -> None: ...


def _fit(run: Run, config: RunConfig, ranks: Ranks, tracker: NullTracker, data: Path, *, command: str) -> None:
    """Train on all ranks, from the newest checkpoint on if there is one."""
    from pipeline.progress import show
    from pipeline.train import Training, parameter_table

    if ranks.is_main:
        manifest.unseal(run, *manifest.REPLACES["train"])
    found = distributed.run_on_main(
        lambda: newest_checkpoint(run.folder, run_id=run.mlflow_run_id), on=config.resume == "true" and ranks.is_main
    )
    checkpoint = distributed.broadcast(found)
    training = Training(run, ranks, tracker, open_split(data, "train"), open_split(data, "val"))
    if checkpoint:
        training.restore(checkpoint[1])
    if ranks.is_main and run.config.optimizer == "muon" and not training.has_matrices():
        _say("muon finds no matrix between the first and the last layer here: every step is AdamW's")
    if ranks.is_main:
        with run_folder.atomic(run.folder / "parameters.md") as path:
            path.write_text("\n".join(parameter_table(training.model)) + "\n")
    with show(
        epochs=training.num_epochs, steps_per_epoch=len(training.batches), first_step=training.state.step,
        is_main=ranks.is_main,
    ) as progress:  # fmt: skip
        try:
            with distributed.collective_timeout(config.collective_timeout):
                training.fit(progress)
        except Failure:
            training.keep_best()
            raise
        except Interrupted:
            if ranks.is_main:
                _say(f"stopped at step {training.state.step}; the checkpoint is written. Go on with:")
                _say(f"python -m pipeline {command} --output_dir {run.folder} --resume true")
            raise
    if ranks.is_main:
        manifest.seal(run, *manifest.FILES["train"])
        _say(f"best weights: epoch {training.state.best_epoch or training.state.epoch} of {training.state.epoch}")


def _evaluate(run: Run, ranks: Ranks, tracker: NullTracker, data: Path) -> Callable[[], None]:
    """Evaluate on all ranks and log the figures. Return what draws the pictures on rank 0, and seals all of it."""
    from pipeline.evaluate import evaluate

    if ranks.is_main:
        manifest.unseal(run, *manifest.REPLACES["evaluate"])
    figures, draw = evaluate(run, ranks, data)
    if not isinstance(tracker, Tracker):
        return _nothing
    _summary(run, figures)
    _log(run, tracker, figures)

    def finish() -> None:
        _say("drawing the pictures ...")
        draw()
        manifest.seal(run, *manifest.FILES["evaluate"])

    return finish


def _finish(
    run: Run, tracker: Tracker, data: Path, missing: Sequence[str], probes: Runner | None, draw: Callable[[], None]
) -> None:
    """Do what is left after the evaluation. The proof comes before the pictures, as it is what is waited for."""
    if "export" in missing:
        try:
            _export(run, tracker)
        except Failure:
            draw()
            tracker.upload()
            raise
    if "verify" in missing:
        _verify(run, tracker, data, probes=probes, meanwhile=_import_plots, draw=draw)
    else:
        draw()
        tracker.upload()


def _missing(run: Run, *, export: bool) -> list[str]:
    """Return the stages that a run has not done yet, of those that its command does; a proof that failed is none."""
    wanted = ("train", "evaluate", *(("export", "verify") if export else ()))
    missing = [stage for stage in wanted if not manifest.is_whole(run.folder, stage)]
    if "train" in missing:  # whatever stands on other weights
        return list(wanted)
    if export and "verify" not in missing:
        report = json.loads((run.folder / manifest.FILES["verify"][0]).read_text())
        missing += [] if report["passed"] else ["verify"]
    if "export" in missing and "verify" not in missing:
        missing.append("verify")
    return missing


def _is_finished(config: RunConfig, *, export: bool) -> bool:
    """Tell whether nothing is left to do for a run that is to be gone on with, and say so. Raises UserError."""
    if config.resume != "true":
        return False
    run = run_folder.open_run(Path(config.output_dir), check=False)
    missing = _missing(run, export=export)
    if "train" in missing and manifest.is_sealed(run.folder, "train") and not any((run.folder / "checkpoints").glob("*.json")):
        manifest.check(run.folder)  # damaged, and nothing to make it anew from
    if missing or not tracking.is_told(run):
        return False
    connection.configure(check=False)
    runs.set_parent_run(run.mlflow_run_id)
    tracking.send_rest(run)
    rows = run_folder.parse_rows((run.folder / run_folder.METRICS).read_bytes(), run.folder / run_folder.METRICS)
    epochs = max((row.get("epoch", 0) for row in rows), default=0)
    _say(f"run {run.folder} is finished ({epochs:g} epochs): nothing to do")
    return True


def _prepare_everywhere(config: RunConfig, ranks: Ranks) -> Path:
    """Prepare once on each host; return the folder on this one."""
    distributed.run_on_main(lambda: prepare(config), on=ranks.local_rank == 0)
    return prepared_folder(config)


def _begin(config: RunConfig, ranks: Ranks, data: Path, stack: ExitStack) -> tuple[Run, Tracker]:
    """Open the MLflow run and the run folder, on rank 0: nothing exists before this, and it refuses to overwrite."""
    prepared = read_manifest(data)
    commit, dirty = tracking.git_state()
    _say(f"opening MLflow at {connection.shown()} ...")
    connection.configure(check=config.resume == "false")  # a run that goes on need not wait for a server
    dataset = None
    if config.resume == "true":
        run = run_folder.open_run(Path(config.output_dir), check=False)
        _same_data(run, prepared)
        run_folder.ensure_writable(run.folder, num_bytes=run_folder.estimate_size(config, prepared))
        runs.set_parent_run(run.mlflow_run_id)
        run = dataclasses.replace(run, config=config)
    else:
        runs.check_new(config.dataset)
        config = _settle_precision(config, ranks, data, prepared)
        if config.output_dir:
            run_folder.ensure_new(Path(config.output_dir))
        parent = Path(config.output_dir or "runs")
        is_new = not parent.exists()
        run_folder.ensure_writable(parent, num_bytes=run_folder.estimate_size(config, prepared))
        try:
            run_id = runs.create_run(dataset=config.dataset, output_dir=config.output_dir)
        except BaseException:
            if is_new:
                parent.rmdir()
            raise
        folder = Path(config.output_dir or f"runs/{config.model}-{run_id[:8]}")
        try:
            run = run_folder.create(folder, config=config, mlflow_run_id=run_id, git_commit=commit, data=prepared)
        except BaseException as error:
            runs.abort_run(run_id, "KILLED" if isinstance(error, Interrupted) else "FAILED")
            raise
        source = f"pipeline.data.sources.{config.dataset}"
        dataset = {"name": config.dataset, "digest": prepared["data_sha256"], "source": source}
    tags = tracking.environment_tags(run, world_size=ranks.world_size, device=ranks.device.type, dirty=dirty)
    tags["evaluated_on"] = evaluation_split(data)
    tracker = stack.enter_context(tracking.training_run(run, tags, dataset=dataset))
    log_to(run.folder / run_folder.LOG)
    _say(f"run folder {run.folder}, MLflow run {run.mlflow_run_id}")
    return run, tracker


def _settle_precision(config: RunConfig, ranks: Ranks, data: Path, prepared: Mapping[str, Any]) -> RunConfig:
    """Say what is trained on and how it is computed; return the configuration with `precision=auto` decided."""
    run = Run(folder=Path(), config=config, mlflow_run_id="", git_commit="", data=prepared)
    settled, why = precision.choose(run, open_split(data, "train"), ranks)
    numbers = {name: parts["x"]["shape"][0] for name, parts in prepared["splits"].items()}
    samples = ", ".join(f"{number:,} {name}".replace(",", " ") for name, number in numbers.items() if number)
    classes = f" of {len(prepared['classes'])} classes" if prepared["classes"] else ""
    number = torch.get_num_threads()
    threads = f", {number} thread{'s' * (number > 1)} each" if ranks.device.type == "cpu" else ""
    _say(
        f"{samples} samples{classes}; {ranks.world_size} x {ranks.device.type}{threads}, {settled.precision}"
        + (f" ({why})" if why else "")
    )
    if "test" not in numbers:
        _say("no samples are held out for a test: the final figures are of the training samples, and called train/final/...")
    return settled


def _same_data(run: Run, prepared: Mapping[str, object]) -> None:
    if prepared["data_sha256"] != run.data["data_sha256"]:
        raise UserError(
            f"dataset={run.config.dataset}: the tensors prepared here are not those of the training (SHA-256 "
            f"{str(prepared['data_sha256'])[:12]}, not {run.data['data_sha256'][:12]}). Point --data_dir to the same raw "
            "files, and use the same versions (see README)."
        )


def evaluate(config: EvaluateConfig, run: Run, ranks: Ranks) -> None:
    """Evaluate a run's best weights on its test split (without one, on its training samples) and log the figures to MLflow."""
    data = _data_of(run, config, ranks)
    with ExitStack() as stack:
        attached = distributed.run_on_main(lambda: stack.enter_context(tracking.attached(run)), on=ranks.is_main)
        if attached:
            log_to(run.folder / run_folder.LOG)
        draw = _evaluate(run, ranks, attached or NullTracker(), data)
        if attached:
            draw()
            attached.upload()
            _say(_where(run))


def export(config: StageConfig, run: Run) -> None:
    """Write the artifacts of a run, and their sizes into its MLflow run."""
    with tracking.attached(run) as tracker:
        log_to(run.folder / run_folder.LOG)
        _export(run, tracker)
    _say(f"next: {_next(run, exported=False)}".replace(" export ", " verify "))


def verify(config: VerifyConfig, run: Run) -> None:
    """Hold a run's artifacts, or another .onnx file, against its model. Raises Failure where they disagree."""
    onnx = Path(config.onnx) if config.onnx else None
    if onnx and not onnx.is_file():
        raise UserError(f"onnx={onnx} is not a file. Give the path of an .onnx file.")
    if onnx:  # somebody else's file: nothing of it belongs into the run that is tracked
        with tracking.beside(run):
            log_to(run.folder / run_folder.LOG)
            return _verify(run, None, _data_of(run, config, distributed.single_process()), onnx=onnx)
    with tracking.attached(run) as tracker:
        manifest.need(run.folder, "export")
        log_to(run.folder / run_folder.LOG)
        _verify(run, tracker, _data_of(run, config, distributed.single_process()))
        _say_where_served(tracker)


def _data_of(run: Run, config: StageConfig, ranks: Ranks) -> Path:
    """Prepare the data that a run was trained on, from where it lies on this machine. Raises UserError."""
    if config.data_dir != StageConfig().data_dir and "data_dir" not in DATASETS[run.config.dataset].fields:
        raise UserError(f"data_dir={config.data_dir} has no effect on dataset={run.config.dataset}. Leave --data_dir out.")
    here = dataclasses.replace(run.config, data_dir=config.data_dir, cache_dir=config.cache_dir)
    data = _prepare_everywhere(here, ranks)
    _same_data(run, read_manifest(data))
    return data


def _export(run: Run, tracker: Tracker) -> None:
    from export.artifacts import export_run

    _say("exporting to ONNX, TorchScript and .pt2 ...")
    figures = export_run(run)
    manifest.seal(run, *manifest.FILES["export"])
    _log(run, tracker, {k: v for k, v in figures.items() if isinstance(v, int | float)})
    tracker.upload()
    names = ", ".join(Path(name).name for name in manifest.FILES["export"])
    _say(f"exported to {run.folder / 'export'}: {names}")


def _import_plots() -> None:
    """Import what drawing needs, when there is nothing else to do but to wait for the probes."""
    import sklearn.manifold  # noqa: F401

    import pipeline.plots.evaluation  # noqa: F401


def _verify(
    run: Run, tracker: Tracker | None, data: Path, *, onnx: Path | None = None,
    probes: Runner | None = None, meanwhile: Callable[[], None] = _nothing, draw: Callable[[], None] = _nothing,
) -> None:  # fmt: skip
    from export.verify import report_files, verify_run

    _say("verifying each file in a process of its own ...")
    verdict = verify_run(run, data=data, onnx=onnx, probes=probes, meanwhile=meanwhile)
    written = report_files(onnx)
    report = run.folder / written[1]
    if verdict.passed:  # otherwise the last words say what differs
        _say(report.read_text().partition("\n## Each batch size")[0])
        _say(f"report: {report}")
    draw()
    if tracker:
        if verdict.passed and tracker.upload():
            example = open_split(data, evaluation_split(data)).x[:7].numpy().copy()
            path, name = run.folder / "export" / "model.onnx", f"{run.config.model}-{run.config.dataset}"
            _say("logging the ONNX file as an MLflow model ...")
            address, difference = registry.log_onnx_model(run.mlflow_run_id, path, example, name=name)
            tracker.set_tags({"model_uri": address})
            verdict.figures["verify/pyfunc/max_abs_diff"] = difference
            _say(f"MLflow model logged and loaded back with pyfunc: max abs diff {difference:.1e}")
            if difference > 0:
                verdict.problems.append(f"MLflow's pyfunc answers otherwise than onnxruntime, by {difference:.1e}")
        elif verdict.passed:
            _say(
                f"the ONNX file is not logged as an MLflow model: do it later with python -m pipeline verify --run {run.folder}"
            )
        tracker.set_tags({"parity": "failed" if verdict.problems else "passed"})
    if tracker:  # a report of somebody else's file is no part of the run
        manifest.seal(run, *written)
        _log(run, tracker, verdict.figures)
        tracker.upload()
    if verdict.problems:
        raise Failure("\n".join(["the artifacts do not answer as the model does:", *verdict.problems, f"See {report}."]))


def _log(run: Run, tracker: Tracker, figures: Mapping[str, float]) -> None:
    """Write the figures of a stage into the run's journal, from where they go to MLflow."""
    tracker.log_figures(figures)
    if text := _formula(run):
        tracker.set_tags({"formula": text})


def _summary(run: Run, figures: Mapping[str, float]) -> None:
    _say("  ".join(f"{name} {value:.4f}" for name, value in figures.items() if "_class_" not in name))
    if text := _formula(run):
        _say(text)


def _say_where_served(tracker: Tracker) -> None:
    if address := tracker.outbox.value("tags", {}).get("model_uri"):
        _say(f"MLflow model: {address} (serve it: mlflow models serve -m {address} --env-manager local)")


def _where(run: Run) -> str:
    figures = next(name for name in run_folder.EVALUATIONS if (run.folder / name).exists())
    return f"run folder: {run.folder} (figures in {figures}, pictures in plots/)"


def _formula(run: Run) -> str:
    path = run.folder / "formula.txt"
    return path.read_text().strip() if path.is_file() else ""


def _next(run: Run, *, exported: bool) -> str:
    return "mlflow ui" if exported else f"python -m pipeline export --run {run.folder}"
