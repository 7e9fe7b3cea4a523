"""What `benchmark` does, from top to bottom: the proven files of a run, the samples, the rounds, and what is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline import files, manifest
from pipeline.commands import data_of
from pipeline.distributed import single_process
from pipeline.errors import Failure, UserError
from pipeline.output import log_to, say
from pipeline.release import BenchmarkConfig
from pipeline.run import Run
from pipeline.tracking import tracker as tracking

if TYPE_CHECKING:
    from export.benchmark.samples import Inputs


def benchmark(config: BenchmarkConfig, run: Run) -> None:
    """Measure a run's model and its proven files, and keep the report in the run.

    Raises Failure, once everything is written, where a figure is not stated or a file does not work; UserError where no file
    was proven.
    """
    from export.benchmark import machine, report, rounds
    from export.benchmark.contenders import contenders
    from export.proven import proven_files

    proven = proven_files(run)
    taking_part = contenders(run, proven, formats=config.formats)
    cores = len(machine.cores())
    threads = sorted({number or cores for number in config.threads})
    if max(threads) > cores:
        raise UserError(
            f"threads={max(threads)}: this process may use {cores} cores. Give at most {cores}, or 0 for all of them."
        )
    with tracking.attached(run):  # a mistake about MLflow, or another process in the folder, is told before minutes are spent
        log_to(run.folder / manifest.LOG)
    inputs = _inputs(config, run)
    before = machine.load_before()
    say(f"before the start other processes take {before:.1f} of {cores} cores")
    if before > 0.2:
        say(
            "the machine is busy: what other processes disturb is measured again, and not stated if they go on",
            error=True,
        )
    found = rounds.measure(
        taking_part,
        inputs,
        threads=threads,
        batch_sizes=config.batch_sizes,
        rounds=config.rounds,
        seconds=config.seconds,
        tell=say,
    )
    values = report.values(
        run, taking_part, found, inputs, batch_sizes=config.batch_sizes, threads=threads, rounds=config.rounds,
        seconds=config.seconds, others_before=before,
    )  # fmt: skip
    text = report.markdown(values)
    with tracking.attached(run) as tracker:
        if proven_files(run) != proven:
            raise Failure(f"run={run.folder} was exported again while it was measured. Measure it again.")
        from pipeline.plots import benchmark as plots
        from pipeline.plots import style

        run.unseal("benchmark")
        as_json, as_text, picture = (run.folder / name for name in manifest.FILES["benchmark"])
        files.write_json(as_json, values)
        with files.atomic(as_text) as temporary:
            temporary.write_text(text)
        about = f"{values['model']} on {values['dataset']}, run {run.folder.name}"
        style.save(plots.latency_and_throughput(values), picture, about=about)
        tracker.log_metrics(report.metrics(values))
        missing = len(values["refused"]) + len(values["broken"])
        tracker.set_tags({"benchmark": f"{missing} not stated" if missing else "complete"})
        run.seal("benchmark")
        tracker.upload()
    say(text)
    say(f"report: {as_text}, picture: {picture}")
    say(f"next: python -m pipeline report --run {run.folder}")
    if values["broken"]:
        raise Failure("\n".join(["proven files cannot be measured:", *values["broken"], *values["refused"], f"See {as_text}."]))
    if values["refused"]:
        raise Failure(
            "\n".join(["not stated:", *values["refused"], f"Measure again when the machine is quiet. See {as_text}."])
        )


def _inputs(config: BenchmarkConfig, run: Run) -> Inputs:
    """Return as many samples as the largest batch has: of the test set, or random ones where the data cannot be had here.

    Raises UserError where the flags say where the data is, and it is not.
    """
    from export.benchmark import samples

    count, defaults = max(config.batch_sizes), BenchmarkConfig()
    try:
        return samples.prepared(data_of(run, config, single_process())[0], run.data, count=count)
    except UserError as error:
        if (config.dataset, config.data_dir) != (defaults.dataset, defaults.data_dir):
            raise
        say(f"the data of the run cannot be had here, so random samples are asked: {error}", error=True)
        return samples.random(run.data, count=count)
