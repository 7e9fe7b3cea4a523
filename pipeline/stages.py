"""What each sub-command does, in order: the stages put together, with their tracking and their last words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import distributed, store
from pipeline.checkpoint import newest_checkpoint
from pipeline.config import EvaluateConfig, Failure, RunConfig, StageConfig, UserError, VerifyConfig
from pipeline.data.loader import open_split
from pipeline.data.prepare import prepare, prepared_folder, read_manifest
from pipeline.distributed import Ranks
from pipeline.stopping import Stopped
from pipeline.store import Run
from pipeline.tracking import connection, runs
from pipeline.tracking import onnx as onnx_model
from pipeline.tracking import tracker as tracking
from pipeline.tracking.tracker import HostTracker, NullTracker, Tracker

if TYPE_CHECKING:
    from export.probing import Probes


def train(config: RunConfig, ranks: Ranks, *, export: bool) -> None:
    """Prepare, train and evaluate on all ranks; with `export`, export and verify on rank 0, all in one MLflow run."""
    from pipeline.evaluate import evaluate
    from pipeline.progress import show
    from pipeline.train import Training, parameter_table

    data = _prepare_everywhere(config, ranks)
    with ExitStack() as stack:
        begun = distributed.together(lambda: _begin(config, ranks, data, stack), on=ranks.is_main)
        tracker: NullTracker = begun[1] if begun else NullTracker()
        if ranks.local_rank == 0 and not begun:
            tracker = stack.enter_context(closing(HostTracker()))
        run: Run = distributed.broadcast(begun[0] if begun else None)
        found = distributed.together(lambda: newest_checkpoint(run.folder), on=config.resume == "true" and ranks.is_main)
        checkpoint = distributed.broadcast(found)
        training = Training(run, ranks, tracker, open_split(data, "train"), open_split(data, "val"))
        if checkpoint:
            training.restore(checkpoint[1])
        if isinstance(tracker, Tracker):
            with store.atomic(run.folder / "parameters.md") as path:
                path.write_text("\n".join(parameter_table(training.model)) + "\n")
        with show(
            epochs=training.num_epochs, steps_per_epoch=len(training.batches), first_step=training.state.step,
            is_main=ranks.is_main,
        ) as progress:  # fmt: skip
            try:
                with distributed.impatient(config.timeout):
                    training.fit(progress)
            except Failure:
                training.keep_best()
                raise
            except Stopped:
                if ranks.is_main:
                    _say(f"stopped at step {training.state.step}; the checkpoint is written. Go on with:")
                    _say(f"python -m pipeline train --output_dir {run.folder} --resume true")
                raise
        if isinstance(tracker, Tracker) and export:
            from export.probing import FORMATS, Probes

            probes = stack.enter_context(Probes(FORMATS))  # these import their runtimes while the model is exported
        figures, draw = evaluate(run, ranks, data)
        if isinstance(tracker, Tracker):
            _say(f"best weights: epoch {training.state.best_epoch or training.state.epoch} of {training.state.epoch}")
            _summary(run, figures)
            if not export:
                draw()
            _close(run, tracker, figures)
            if export:
                _export_and_verify(run, tracker, data, probes, draw)
            _say(_where(run))
            if export:
                _say_where_served(tracker)
            _say(f"next: {_next(run, exported=export)}")


def _prepare_everywhere(config: RunConfig, ranks: Ranks) -> Path:
    """Prepare once on each host; return the folder on this one."""
    distributed.together(lambda: prepare(config), on=ranks.local_rank == 0)
    return prepared_folder(config)


def _begin(config: RunConfig, ranks: Ranks, data: Path, stack: ExitStack) -> tuple[Run, Tracker]:
    """Open the MLflow run and the run folder, on rank 0: nothing exists before this, and it refuses to overwrite."""
    manifest = read_manifest(data)
    commit, dirty = tracking.git_state()
    connection.configure(check=config.resume == "false")  # a run that goes on need not wait for a server
    dataset = None
    if config.resume == "true":
        run = store.open_run(Path(config.output_dir), check=False)
        _same_data(run, manifest)
        store.make_folder(run.folder, num_bytes=store.num_bytes(config, manifest))
        runs.nest_wrapper(run.mlflow_run_id)
        run = dataclasses.replace(run, config=config)
    else:
        runs.check_new(config.dataset)
        if config.output_dir:
            store.refuse_existing(Path(config.output_dir))
        parent = Path(config.output_dir or "runs")
        is_new = not parent.exists()
        store.make_folder(parent, num_bytes=store.num_bytes(config, manifest))
        try:
            run_id = runs.begin(dataset=config.dataset, output_dir=config.output_dir)
        except BaseException:
            if is_new:
                parent.rmdir()
            raise
        folder = Path(config.output_dir or f"runs/{config.model}-{run_id[:8]}")
        try:
            run = store.create(folder, config=config, mlflow_run_id=run_id, git_commit=commit, data=manifest)
        except BaseException as error:
            runs.give_up(run_id, "KILLED" if isinstance(error, Stopped) else "FAILED")
            raise
        source = f"pipeline.data.sources.{config.dataset}"
        dataset = {"name": config.dataset, "digest": manifest["data_sha256"], "source": source}
    tags = tracking.environment_tags(run, world_size=ranks.world_size, device=ranks.device.type, dirty=dirty)
    tracker = stack.enter_context(tracking.training_run(run, tags, dataset=dataset))
    computing = f"{ranks.world_size} x {ranks.device.type}, {run.config.precision}"
    _say(f"run folder {run.folder}, MLflow run {run.mlflow_run_id}, {computing}")
    return run, tracker


def _same_data(run: Run, manifest: Mapping[str, object]) -> None:
    if manifest["data_sha256"] != run.data["data_sha256"]:
        raise UserError(
            f"dataset={run.config.dataset}: the tensors prepared here are not those of the training (SHA-256 "
            f"{str(manifest['data_sha256'])[:12]}, not {run.data['data_sha256'][:12]}). Point --data_dir to the same raw "
            "files, and use the same versions (see README)."
        )


def evaluate(config: EvaluateConfig, run: Run, ranks: Ranks) -> None:
    """Evaluate a run's best weights on its test split, on all ranks, and write the figures into its MLflow run."""
    from pipeline.evaluate import evaluate as evaluate_pass

    data = _data_of(run, config, ranks)
    figures, draw = evaluate_pass(run, ranks, data)
    if ranks.is_main:
        draw()
        with tracking.attached(run) as tracker:
            _close(run, tracker, figures)
        _summary(run, figures)
        _say(_where(run))


def export(config: StageConfig, run: Run) -> None:
    """Write the artifacts of a run, and their sizes into its MLflow run."""
    with tracking.attached(run) as tracker:
        _export(run, tracker)
    _say(f"next: {_next(run, exported=False)}".replace(" export ", " verify "))


def verify(config: VerifyConfig, run: Run) -> None:
    """Hold a run's artifacts, or another .onnx file, against its model. Raises Failure where they disagree."""
    onnx = Path(config.onnx) if config.onnx else None
    if onnx and not onnx.is_file():
        raise UserError(f"onnx={onnx} is not a file. Give the path of an .onnx file.")
    if not onnx and not (run.folder / "export" / "model.onnx").is_file():
        raise UserError(f"run={run.folder} has no export/ yet. Make it: python -m pipeline export --run {run.folder}")
    data = _data_of(run, config, distributed.single_process())
    if onnx:  # somebody else's file: nothing of it belongs into the run
        with tracking.beside(run):
            return _verify(run, None, data, onnx=onnx)
    with tracking.attached(run) as tracker:
        _verify(run, tracker, data)
        _say_where_served(tracker)


def _data_of(run: Run, config: StageConfig, ranks: Ranks) -> Path:
    """Prepare the data that a run was trained on, from where it lies on this machine."""
    here = dataclasses.replace(run.config, data_dir=config.data_dir, cache_dir=config.cache_dir)
    data = _prepare_everywhere(here, ranks)
    _same_data(run, read_manifest(data))
    return data


def _export(run: Run, tracker: Tracker) -> None:
    from export.stage import export_run

    figures = export_run(run)
    _close(run, tracker, {k: v for k, v in figures.items() if isinstance(v, int | float)})
    names = ", ".join(sorted(p.name for p in (run.folder / "export").iterdir()))
    _say(f"exported to {run.folder / 'export'}: {names}")


def _export_and_verify(run: Run, tracker: Tracker, data: Path, probes: Probes, draw: Callable[[], None]) -> None:
    """Export and verify, and then draw the pictures, as the proof is what is waited for; also where it cannot be had."""
    try:
        _export(run, tracker)
    except Failure:
        draw()
        _close(run, tracker, {})
        raise
    _verify(run, tracker, data, probes=probes, meanwhile=_import_plots, draw=draw)


def _import_plots() -> None:
    """Import what drawing needs, when there is nothing else to do but to wait for the probes."""
    import sklearn.manifold  # noqa: F401

    import pipeline.plots  # noqa: F401


def _verify(
    run: Run, tracker: Tracker | None, data: Path, *, onnx: Path | None = None,
    probes: Probes | None = None, meanwhile: Callable[[], None] = lambda: None, draw: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    from export.verify import verify_run

    verdict = verify_run(run, data=data, onnx=onnx, probes=probes, meanwhile=meanwhile)
    report = run.folder / "export" / (f"parity-{onnx.stem}.md" if onnx else "parity.md")
    if verdict.passed:  # otherwise the last words say what differs
        _say(report.read_text().partition("\n## Each batch size")[0])
        _say(f"report: {report}")
    draw()
    if tracker:
        if verdict.passed and tracker.upload():
            example = open_split(data, "test").x[:7].numpy().copy()
            path, name = run.folder / "export" / "model.onnx", f"{run.config.model}-{run.config.dataset}"
            address, difference = onnx_model.log_onnx_model(run.mlflow_run_id, path, example, name=name)
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
        _close(run, tracker, verdict.figures)
    if verdict.problems:
        raise Failure("\n".join(["the artifacts do not answer as the model does:", *verdict.problems, f"See {report}."]))


def _close(run: Run, tracker: Tracker, figures: Mapping[str, float]) -> None:
    """Seal the folder after a stage, and mirror it and its figures to MLflow."""
    store.seal(run.folder)
    tracker.log_figures(figures)
    if text := _formula(run):
        tracker.set_tags({"formula": text})
    tracker.upload()


def _summary(run: Run, figures: Mapping[str, float]) -> None:
    _say("  ".join(f"{name} {value:.4f}" for name, value in figures.items() if "_class_" not in name))
    if text := _formula(run):
        _say(text)


def _say_where_served(tracker: Tracker) -> None:
    if address := tracker.outbox.value("tags", {}).get("model_uri"):
        _say(f"MLflow model: {address} (serve it: mlflow models serve -m {address} --env-manager local)")


def _where(run: Run) -> str:
    return f"run folder: {run.folder} (figures in test.json, pictures in plots/)"


def _formula(run: Run) -> str:
    path = run.folder / "formula.txt"
    return path.read_text().strip() if path.is_file() else ""


def _next(run: Run, *, exported: bool) -> str:
    return "mlflow ui" if exported else f"python -m pipeline export --run {run.folder}"


def _say(text: str) -> None:
    print(text, flush=True)
