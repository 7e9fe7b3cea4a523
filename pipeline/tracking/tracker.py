"""What the stages hold of MLflow: a tracker for rank 0, a smaller one on every other host, and one that does nothing."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline import __version__, distributed, manifest, signals
from pipeline import run as run_folder
from pipeline.config import RunConfig
from pipeline.errors import Failure, UserError
from pipeline.output import say
from pipeline.resolve import applicable
from pipeline.run import Run
from pipeline.signals import Interrupted
from pipeline.tracking import connection, monitor, runs
from pipeline.tracking.journal import Journal, Outbox
from pipeline.tracking.sender import NOT_METRICS, Sender, send

Row = Mapping[str, Any]

_CLOSING = {"FINISHED": None, "FAILED": 20.0, "KILLED": 6.0}  # s to wait for a server; it says no sooner, if it says no


class NullTracker:
    """What a rank holds that does not track: takes everything, does nothing."""

    problem = ""  # why MLflow does not take the metrics, where that is fatal

    def log(self, row: Row) -> None: ...

    def checkpoint_written(self, step: int) -> None: ...

    def drain_rows(self) -> list[Row]:
        """Return the system metrics of this host that rank 0 has not been given yet."""
        return []

    def receive_rows(self, rows: Sequence[Row]) -> None:
        """Keep system metrics of other hosts."""


class HostTracker(NullTracker):
    """What the first rank of every host but rank 0's holds: it reads this host's system metrics, for rank 0 to send."""

    def __init__(self) -> None:
        self._rows: list[Row] = []
        connection.configure(check=False)
        self._monitor = monitor.start(self._rows.append)

    def drain_rows(self) -> list[Row]:
        rows = self._rows[:]
        del self._rows[: len(rows)]
        return rows

    def close(self) -> None:
        self._monitor.finish()


class Tracker(NullTracker):
    """Writes what a run has to tell to its folder, from where it is sent to its MLflow run, whatever that run's status."""

    def __init__(self, folder: Path, run_id: str, *, strict: bool = False, upload_checkpoints: bool = False) -> None:
        self.folder, self.run_id, self.strict = folder, run_id, strict
        self._upload_checkpoints = upload_checkpoints
        self.outbox = Outbox(folder, run_id)
        self.metrics, self.system = (Journal(folder / name) for name in manifest.JOURNALS)
        rows = self.metrics.all_rows()
        self.last_step = max((int(row["step"]) for row in rows), default=0)
        self._known = {(row["step"], name): value for row in rows for name, value in row.items() if name not in NOT_METRICS}
        self._sender = Sender(self.outbox, (self.metrics, self.system), strict=strict)

    @property
    def problem(self) -> str:  # type: ignore[override]
        return self._sender.problem if self.strict else ""

    def log(self, row: Row) -> None:
        """Write one line of metrics.jsonl. Figures that it holds already, of steps done again after a kill, are left out."""
        new = {k: v for k, v in row.items() if k in NOT_METRICS or (row["step"], k) not in self._known}
        self.last_step = max(self.last_step, int(row["step"]))
        if any(name not in NOT_METRICS for name in new):
            self.metrics.append(new)

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Write metrics of the finished model; those that stand there already are left out.

        They are of step 0: of no step, MLflow shows a bar with the value and not a dot.
        """
        now = time.time_ns() // 1_000_000
        new = {k: float(v) for k, v in metrics.items() if self._known.get((0, k)) != v}
        if new:
            self.metrics.append({"step": 0, "time": now} | new)
            self._known |= {(0, name): value for name, value in new.items()}

    def receive_rows(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.system.append(row)

    def set_tags(self, tags: Mapping[str, object]) -> None:
        self.outbox.enqueue("tags", self.outbox.value("tags", {}) | {k: str(v) for k, v in tags.items()})

    def checkpoint_written(self, step: int) -> None:
        if self._upload_checkpoints:
            self.outbox.enqueue("checkpoint", step)

    def upload(self) -> bool:
        """Send everything, with the files that the manifest names; return whether MLflow took it. Raises Failure if strict."""
        self.outbox.enqueue("artifacts", True)
        sent = self._sender.send_now()
        if self.strict and not sent:
            raise Failure(f"strict_tracking=true, and MLflow at {connection.shown()} fails: {self._sender.problem}")
        return sent

    def begin(self, config: RunConfig, tags: Mapping[str, object], *, dataset: Mapping[str, str] | None) -> None:
        """Have parameters, tags and the data set sent, and start to read system metrics.

        The parameters are those that have an effect, with what `auto` became on these ranks.
        """
        if dataset:
            became = {name: tags[tag] for name, tag in (("device", "device"), ("nproc", "world_size")) if tag in tags}
            idle = ("cuda_graph",) if tags.get("device") == "cpu" else ()
            params = {k: str(became.get(k, v)) for k, v in applicable(config).items() if k not in idle}
            self.outbox.enqueue("params", params)
            self.outbox.enqueue("name", self.folder.resolve().name)
            self.outbox.enqueue("dataset", dict(dataset))
            self.checkpoint_written(0)
        self.outbox.discard("status")
        self.outbox.enqueue("reopened", True)
        self.set_tags(tags)
        self._monitor = monitor.start(self.system.append, first_step=len(self.system.all_rows()))

    def end(self, status: str) -> None:
        """Have the last metrics and the status sent, and say so if they cannot be."""
        self._monitor.finish()
        self.outbox.enqueue("status", status)
        if not self._sender.send_now(_CLOSING[status]):
            say(
                f"MLflow at {connection.shown()} has not taken everything; it is kept in {self.folder}. Send it later: "
                f"python -m pipeline sync --run {self.folder}",
                error=True,
            )  # fmt: skip
            if self.strict and status == "FINISHED":
                raise Failure(f"strict_tracking=true, and MLflow fails: {self._sender.problem}")

    def close(self) -> None:
        self._sender.end()
        # the journals stay open: a sender that hangs may still read them


@contextmanager
def training_run(run: Run, tags: Mapping[str, object], *, dataset: Mapping[str, str] | None = None) -> Iterator[Tracker]:
    """Track a training in the MLflow run of its folder, which no other process may use meanwhile.

    At the end its status is FINISHED, KILLED after SIGTERM or SIGINT, or FAILED after any other error. `dataset` is given when
    the run is new.
    """
    with run_folder.locked(run.folder):
        c = run.config
        tracker = Tracker(run.folder, run.mlflow_run_id, strict=c.strict_tracking, upload_checkpoints=c.upload_checkpoints)
        tracker.begin(c, tags, dataset=dataset)
        status = "FAILED"
        try:
            yield tracker
            status = "FINISHED"
        except Interrupted as stop:  # the launcher stops the ranks that are left when one has failed
            cause = stop.__context__
            failed = cause is not None and not isinstance(cause, Interrupted)  # a second signal is no failure
            status = "FAILED" if failed or distributed.another_rank_failed() else "KILLED"
            raise
        finally:
            with signals.ignore_first_signal():
                try:
                    tracker.end(status)
                finally:
                    tracker.close()


@contextmanager
def beside(run: Run) -> Iterator[None]:
    """Hold a run's folder for a stage that has nothing to tell its MLflow run. No server is needed, but for `mlflow run`."""
    if os.environ.get("MLFLOW_RUN_ID"):
        connection.configure()
        runs.set_parent_run(run.mlflow_run_id)
    with run_folder.locked(run.folder):
        yield


@contextmanager
def attached(run: Run) -> Iterator[Tracker]:
    """Write a later stage's metrics into the training's run."""
    connection.configure()
    runs.set_parent_run(run.mlflow_run_id)
    with run_folder.locked(run.folder):
        tracker = Tracker(run.folder, run.mlflow_run_id)
        try:
            yield tracker
        finally:
            tracker.close()


def is_told(run: Run) -> bool:
    """Tell whether how a training ended was noted, as the last thing that a training does."""
    return Outbox(run.folder, run.mlflow_run_id).is_told()


def send_rest(run: Run) -> None:
    """Send what MLflow has not taken of a run that has ended; says so if it still does not take it."""
    if Outbox(run.folder, run.mlflow_run_id).is_behind():
        try:
            sync(run.folder)
        except (Failure, UserError) as ours:
            say(str(ours), error=True)


def sync(folder: Path) -> int:
    """Send what a run could not send while it ran; return the number of metrics. Raises Failure where MLflow refuses it."""
    run = Run.open(folder, check=False)
    with run_folder.locked(folder):
        connection.configure()
        outbox = Outbox(folder, run.mlflow_run_id)
        if outbox.value("reopened") and not outbox.value("status"):
            outbox.enqueue("status", "KILLED")  # nobody holds the folder, and nobody said how it ended
        try:
            return send(outbox, [Journal(folder / name) for name in manifest.JOURNALS])
        except Exception as error:  # whatever a server, a proxy or a store raises
            raise Failure(f"MLflow at {connection.shown()} has not taken everything: {connection.first_line(error)}") from error


def git_state() -> tuple[str, bool]:
    """Return the commit of this source tree and whether it has uncommitted changes; ("", False) outside git."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    if not (root / ".git").exists():
        return "", False
    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):  # no git here, or no commit yet
        return "", False


def environment_tags(run: Run, *, world_size: int, device: str, dirty: bool) -> dict[str, Any]:
    """Return the tags that tell where a run's files came from."""
    return {
        "git_commit": run.git_commit or "unknown", "git_dirty": str(dirty).lower(), "data_sha256": run.data.sha256,
        **runs.owner(), "world_size": world_size, "device": device,
        "restarts": distributed.num_restarts(), "job_id": os.environ.get("TORCHELASTIC_RUN_ID", ""),
        "output_dir": run.folder.resolve(), "trainyard_version": __version__,
    }  # fmt: skip
