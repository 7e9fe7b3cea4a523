"""The command `report`: a run's page, written anew from what its stages have left, and put among its files in MLflow."""

from __future__ import annotations

from pipeline import distributed, manifest
from pipeline.commands import data_of
from pipeline.output import log_to
from pipeline.pages.report import publish
from pipeline.release import ReportConfig
from pipeline.run import Run
from pipeline.tracking import tracker as tracking


def report(config: ReportConfig, run: Run) -> None:
    """Write report.html of a run that was evaluated; a proof and a benchmark may be there or not. Raises UserError."""
    manifest.need(run.folder, "evaluate")
    with tracking.attached(run) as tracker:
        log_to(run.folder / manifest.LOG)
        publish(run, tracker, data_of(run, config, distributed.single_process())[0])
