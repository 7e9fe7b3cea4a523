"""What each command does, from top to bottom in the order in which it happens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import models
from pipeline import data, distributed, environment, manifest, reuse, start
from pipeline.config import DataStageConfig, EvaluateConfig, ExportConfig, RunConfig, VerifyConfig, format_names, lossy_formats
from pipeline.data.loader import evaluation_split, open_split
from pipeline.data.prepare import read_raw, read_spec
from pipeline.distributed import Ranks
from pipeline.errors import Failure, UserError
from pipeline.evaluate import Evaluation, evaluate_run
from pipeline.fitting import fit
from pipeline.output import log_to, say
from pipeline.pages.report import publish
from pipeline.release import PromoteConfig, ReportConfig
from pipeline.resume import config_before_init, resolve_device, resolve_run, with_local_overrides
from pipeline.reuse import Found
from pipeline.run import Run
from pipeline.tracking import promotion, registry
from pipeline.tracking import tracker as tracking
from pipeline.tracking.tracker import NullTracker, Tracker

_TITLES = {"onnx": "ONNX", "torchscript": "TorchScript", "pt2": ".pt2", "onnx-int8": "int8", "onnx-fp16": "fp16"}


def train_on_this_rank(
    flags: Mapping[str, str], *, export: bool, config: RunConfig | None = None, found: Found | None = None
) -> int:  # fmt: skip
    """Train on this rank. What rank 0 decides counts for all; the others need neither its run folder nor its disk.

    `found` is the run in which this training was done already.
    """
    with ExitStack() as stack:
        ranks = stack.enter_context(distributed.process_group(resolve_device(config or config_before_init(flags))))
        if config is None:
            decided = distributed.run_on_main(lambda: resolve_run(flags, world_size=ranks.world_size), on=ranks.is_main)
            config = with_local_overrides(distributed.broadcast(decided), flags)
            if not environment.is_launched():  # our launcher has looked before it started this
                found = distributed.broadcast(
                    distributed.run_on_main(
                        lambda: reuse.look(config, stack, export=export, num_ranks=ranks.world_size, waits=False),
                        on=ranks.is_main and reuse.applies(config, flags),
                    )
                )
        promotes = export and config.promote
        try:
            folder = train(config, ranks, export=export, found=found)
        except Failure as error:
            if promotes:
                raise Failure(f"{error}\nNothing was promoted.") from error
            raise
    if folder and promotes:  # after the MLflow run has ended: what the gate says does not change how
        _promote(folder)
    return 0


def train(
    config: RunConfig, ranks: Ranks, *, export: bool, tags: Mapping[str, str] | None = None, found: Found | None = None
) -> Path | None:  # fmt: skip
    """Prepare, train and evaluate on all ranks; with `export`, export and verify on rank 0, all in one MLflow run.

    A resumed run does what it has not done yet, and one that was `found` what is missing. Returns the run folder on rank 0, and
    nothing on the others. More `tags` are for MLflow.
    """
    given = config
    if found:
        if found.is_all:
            return start.take(found, ranks)
        config = reuse.continued(config, found)
    elif distributed.broadcast(distributed.run_on_main(lambda: start.is_finished(config, export=export), on=ranks.is_main)):
        return Path(config.output_dir) if ranks.is_main else None
    folder = start.prepare_everywhere(config, ranks)
    if config.promote:
        distributed.run_on_main(lambda: _ensure_promotable(folder), on=ranks.is_main)
    if config.resume != "true":
        distributed.run_on_main(lambda: try_network(config, ranks, folder), on=ranks.is_main)
    with ExitStack() as stack:
        run, tracker = stack.enter_context(start.opened(config, ranks, folder, tags))
        if ranks.is_main:
            run = start.with_keys(run, given, ranks, folder, is_new=config.resume == "false")
        left = found.missing if found else start.missing_stages(run, export=export) if ranks.is_main else None
        missing = distributed.broadcast(left)
        if "train" in missing:
            again = f"python -m pipeline {'run' if export else 'train'} --output_dir {run.folder} --resume true"
            fit(run, config, ranks, tracker, folder, again=again)
        if ranks.is_main and "verify" in missing:
            from export import runner

            stack.enter_context(
                runner.warm(format_names(config.formats))
            )  # the processes that verify needs import their runtimes meanwhile
        evaluation = _evaluate(run, ranks, tracker, folder) if "evaluate" in missing else None
        if not isinstance(tracker, Tracker):
            return None
        try:  # the proof comes before the pictures, as it is what is waited for
            if "export" in missing:
                _export(run, tracker, folder)
            if "verify" in missing:
                _verify(run, tracker, folder)
        except Failure:
            _draw(run, evaluation)
            publish(run, tracker, folder)
            raise
        _draw(run, evaluation)
        if "report" in missing:
            publish(run, tracker, folder)
        else:
            tracker.upload()
        _say_where(run, tracker)
        say(f"next: {'mlflow ui' if export else f'python -m pipeline export --run {run.folder}'}")
        return run.folder


def evaluate(config: EvaluateConfig, run: Run, ranks: Ranks) -> None:
    """Evaluate a run's best weights on its test split (without one, on its training samples), into its MLflow run."""
    folder, _ = data_of(run, config, ranks)
    with ExitStack() as stack:
        attached = distributed.run_on_main(lambda: stack.enter_context(tracking.attached(run)), on=ranks.is_main)
        if attached:
            log_to(run.folder / manifest.LOG)
        evaluation = _evaluate(run, ranks, attached or NullTracker(), folder)
        if attached:
            _draw(run, evaluation)
            attached.upload()
            _say_where(run, attached)
            say(_next(run))


def export(config: ExportConfig, run: Run) -> None:
    """Write the artifacts of a run, and their sizes into its MLflow run. What the flags say of formats counts for them."""
    given = {name: getattr(config, name) for name in ("formats", "max_metric_drop", "min_speedup", "calibrate")}
    asked: dict[str, Any] = {name: value for name, value in given.items() if value not in ("", "auto")}
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, **asked))
    is_lossy, defaults = bool(lossy_formats(run.config.formats)), ExportConfig()
    places, limits = ("dataset", "data_dir", "cache_dir"), ("max_metric_drop", "min_speedup")
    needs_data = is_lossy or run.config.calibrate != "none"
    only = (() if needs_data else places) + (() if is_lossy else limits)
    idle = [name for name in only if getattr(config, name) != getattr(defaults, name)]
    if run.config.calibrate != "none":
        from export import temperature

        temperature.refuse(run)
    if idle:
        raise UserError(
            f"{idle[0]}={getattr(config, idle[0])} has no effect on formats={run.config.formats}, which are "
            f"{'exact' if needs_data else 'made without samples and exact'}. Leave --{idle[0]} out, or use --formats "
            "onnx,onnx-int8."
        )
    folder = data_of(run, config, distributed.single_process())[0] if needs_data else None
    with tracking.attached(run) as tracker:
        log_to(run.folder / manifest.LOG)
        _export(run, tracker, folder)
    say(f"next: python -m pipeline verify --run {run.folder}")


def verify(config: VerifyConfig, run: Run) -> None:
    """Hold a run's artifacts, or another .onnx file, against its model. Raises Failure where they disagree."""
    from export.rejected import exported

    onnx = Path(config.onnx) if config.onnx else None
    if onnx and not onnx.is_file():
        raise UserError(f"onnx={onnx} is not a file. Give the path of an .onnx file.")
    if config.as_ and not onnx:
        raise UserError(
            f"as={config.as_} says what another file is, and none was given. Add --onnx FILE, or leave --as out: a run's own "
            "files are what their names say."
        )
    limited = [n for n in ("max_metric_drop", "min_speedup") if getattr(config, n) != "auto"]
    if limited and onnx and not config.as_:
        raise UserError(
            f"{limited[0]}={getattr(config, limited[0])} has no effect on onnx={onnx}, which is held to each number. Add "
            f"--as int8 or --as fp16, or leave --{limited[0]} out."
        )
    if onnx:  # somebody else's file: nothing of it belongs into the run that is tracked
        with tracking.beside(run):
            log_to(run.folder / manifest.LOG)
            kind = f"onnx-{config.as_}" if config.as_ else "onnx"
            limits = {name: getattr(config, name) for name in limited}
            return _verify(run, None, *data_of(run, config, distributed.single_process()), limits, onnx=onnx, kind=kind)
    with tracking.attached(run) as tracker:
        manifest.need(run.folder, "export")
        if limited and not any(lossy_formats(name) for name in exported(run)):
            raise UserError(
                f"{limited[0]}={getattr(config, limited[0])} has no effect on the files of run={run.folder}, which are exact. "
                f"Leave --{limited[0]} out, or make others: python -m pipeline export --run {run.folder} "
                "--formats onnx,onnx-int8"
            )
        log_to(run.folder / manifest.LOG)
        limits = {name: getattr(config, name) for name in limited}
        _verify(run, tracker, *data_of(run, config, distributed.single_process()), limits)
        _say_where_served(tracker)
    say(_next(run))


def _ensure_promotable(folder: Path) -> None:
    """Raise UserError where a run on prepared data could not be promoted in the end."""
    if evaluation_split(folder) != "test":
        raise UserError(
            "promote=true needs samples that are held out for a test, as these decide. Leave --test_split 0 out, or --promote."
        )
    promotion.ensure_registry()


def _promote(folder: Path) -> None:
    """Promote a run that is done. Raises Failure where it is not: the run stays as it is."""
    try:
        promotion.promote(Run.open(folder), PromoteConfig(run=str(folder)))
    except (Failure, UserError) as error:
        raise Failure(f"the run {folder} is done; it was not promoted:\n{error}") from error


def try_network(config: RunConfig, ranks: Ranks, folder: Path) -> None:
    """Try a network that is not built in on a few samples. Raises UserError for one that training or export would fail on."""
    if models.find(config.model).is_builtin:
        return
    from export.trial import trial

    run = Run(folder=Path(), config=config, mlflow_run_id="", git_commit="", data=read_spec(folder))
    what = "trying the network on a few samples" + (", and its export ..." if config.check_export else " ...")
    say(what)
    x = open_split(folder, "train").x
    problems = trial(
        config.model,
        lambda: models.build(config.model, run.data, config.model_args, preprocess=config.preprocess),
        data=run.data, task=run.task, x=x[:9].clone() if len(x) >= 9 else None, num_ranks=ranks.world_size,
        check_export=config.check_export,
    )  # fmt: skip
    if problems:
        raise UserError(*problems)
    for note in models.notes(config.model, run.data):
        say(note)


def data_of(run: Run, config: DataStageConfig | ReportConfig, ranks: Ranks) -> tuple[Path, str]:
    """Prepare the data that a run was trained on; return the folder, and where the data lies here. Raises UserError."""
    dataset = run.config.dataset
    is_own = dataset not in data.matching()
    if config.data_dir != DataStageConfig().data_dir and (is_own or not data.find(dataset).files):
        raise UserError(f"data_dir={config.data_dir} has no effect on dataset={dataset}. Leave --data_dir out.")
    if config.dataset and not is_own:
        raise UserError(f"dataset={config.dataset}: the run was trained on {dataset}, which is no file. Leave --dataset out.")
    dataset = data.address(config.dataset) or dataset
    here = dataclasses.replace(run.config, dataset=dataset, data_dir=config.data_dir, cache_dir=config.cache_dir)
    folder = start.prepare_everywhere(here, ranks)
    start.ensure_same_data(run, read_spec(folder))
    return folder, dataset


def _evaluate(run: Run, ranks: Ranks, tracker: NullTracker, folder: Path) -> Evaluation:
    """Evaluate on all ranks; rank 0 says and logs what came out."""
    if ranks.is_main:
        run.unseal("evaluate")
    evaluation = evaluate_run(run, ranks, folder)
    if isinstance(tracker, Tracker):
        say("  ".join(f"{name} {value:.4f}" for name, value in evaluation.metrics.items() if "_class_" not in name))
        if text := _formula(run):
            say(text)
        metrics = dict(evaluation.metrics)
        if run.data.columns:
            from pipeline.baseline import baselines

            say("baselines of scikit-learn on the same split ...")
            metrics |= (found := baselines(run, folder))
            say("  ".join(f"{name} {value:.4f}" for name, value in found.items()) or "none: no samples are held out for a test")
        _log(run, tracker, metrics)
    return evaluation


def _draw(run: Run, evaluation: Evaluation | None) -> None:
    """Draw the pictures of an evaluation, if there was one."""
    if evaluation:
        from pipeline.plots.draw import draw

        say("drawing the pictures ...")
        draw(evaluation)
        run.seal("evaluate")


def _export(run: Run, tracker: Tracker, folder: Path | None) -> None:
    from export.artifacts import export_run, written_files

    *first, last = [_TITLES.get(name, name) for name in format_names(run.config.formats)]
    say(f"exporting to {', '.join(first)}{' and ' * bool(first)}{last} ...")
    sizes = export_run(run, data=folder)
    names = written_files(run)
    _log(run, tracker, sizes)  # before the seal: what is sealed is not done again
    run.note("export")
    manifest.seal(run.folder, run.mlflow_run_id, *(f"export/{name}" for name in names))
    tracker.upload()
    say(f"exported to {run.folder / 'export'}: {', '.join(names)}")


def _verify(
    run: Run, tracker: Tracker | None, folder: Path, dataset: str = "", limits: Mapping[str, float] | None = None, *,
    onnx: Path | None = None, kind: str = "onnx",
) -> None:  # fmt: skip
    """Prove the files, say how it ended, and log the ONNX file as an MLflow model. Raises Failure where one disagrees.

    A file that misses its gate hinders the others in nothing. `limits` are those that are given otherwise than at the export.
    """
    from export import rejected
    from export.verify import report_files, verify_run

    say("verifying each file in a process of its own ...")
    verdict = verify_run(
        run, data=folder, onnx=onnx, kind=kind, dataset=dataset,
        limits=dataclasses.replace(rejected.limits(run), **(limits or {})),
    )  # fmt: skip
    written = report_files(onnx)
    report = run.folder / written[1]
    metrics, problems = dict(verdict.metrics), list(verdict.problems)
    if verdict.passed:  # otherwise the last words say what differs
        say(report.read_text().partition("\n## Each batch size")[0])
        say(f"report: {report}")
    if tracker:
        if verdict.passed and tracker.upload():
            difference = _log_model(run, tracker, folder)
            metrics["verify/pyfunc/max_abs_diff"] = difference
            if difference > 0:
                problems.append(f"MLflow's pyfunc differs from onnxruntime by up to {difference:.1e}")
        elif verdict.passed:
            say(
                f"the ONNX file is not logged as an MLflow model: do it later with python -m pipeline verify --run {run.folder}"
            )
        tracker.set_tags({"parity": "failed" if problems else "passed"})
        _log(run, tracker, metrics)
        run.seal("verify")  # none of somebody else's file
        tracker.upload()
    if problems:
        raise Failure("\n".join(["exported files disagree with the model:", *problems, *verdict.rejected, f"See {report}."]))
    if verdict.rejected:
        where = run.folder / rejected.REJECTED
        raise Failure("\n".join([f"moved to {where}, as a gate was missed:", *verdict.rejected, f"See {report}."]))


def _log_model(run: Run, tracker: Tracker, folder: Path) -> float:
    """Log the ONNX file as an MLflow model, load it back, and return by how much its outputs differ."""
    example = {"input": open_split(folder, evaluation_split(folder)).x[:7].numpy().copy()}
    if run.data.columns:
        raw = read_raw(folder)
        example = {column.input_name: raw[column.name][:7, None] for column in run.data.columns}
    path = run.folder / "export" / "model.onnx"
    say("logging the ONNX file as an MLflow model ...")
    address, difference = registry.log_onnx_model(run.mlflow_run_id, path, example, name=registry.model_name(run))
    tracker.set_tags({"model_uri": address})
    say(f"MLflow model logged and loaded back with pyfunc: max abs diff {difference:.1e}")
    return difference


def _log(run: Run, tracker: Tracker, metrics: Mapping[str, float]) -> None:
    """Write the metrics of a stage into the run's journal, from where they go to MLflow."""
    tracker.log_metrics(metrics)
    if text := _formula(run):
        tracker.set_tags({"formula": text})


def _formula(run: Run) -> str:
    path = run.folder / manifest.FORMULA
    return path.read_text().strip() if path.is_file() else ""


def _say_where(run: Run, tracker: Tracker) -> None:
    report = next(name for name in manifest.EVALUATIONS if (run.folder / name).exists())
    say(f"run folder: {run.folder} (metrics in {report}, pictures in plots/)")
    _say_where_served(tracker)


def _say_where_served(tracker: Tracker) -> None:
    if address := tracker.outbox.value("tags", {}).get("model_uri"):
        say(f"MLflow model: {address} (serve it: mlflow models serve -m {address} --env-manager local)")


def _next(run: Run) -> str:
    return f"next: python -m pipeline report --run {run.folder}"
