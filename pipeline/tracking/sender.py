"""The thread that sends what a run has to tell to MLflow, and tries again when it could not."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline import manifest
from pipeline.output import say
from pipeline.tracking import connection, runs
from pipeline.tracking.journal import Journal, Outbox

_PAUSE = 2.0  # seconds between two looks at what waits
_LONGEST_PAUSE = 30.0  # after failures
_BATCH = 1000  # metrics that MLflow takes in one call
_SHARE = 0.02  # of the time in which a backlog is computed on: what it holds Python for, the training waits for
_LONGEST_REST = 3.0  # seconds: the first call imports, and curves and checkpoints must not wait for minutes after it
NOT_METRICS = ("step", "epoch", "time", "samples")  # what a row says of the metrics in it
_SLOTS = 2  # checkpoints kept at the server: one is whole while the other is replaced


def send(outbox: Outbox, journals: Sequence[Journal], *, rest: Callable[[float], None] = lambda worked: None) -> int:
    """Send everything that waits, the status last; return the number of metrics. Raises whatever MLflow raises.

    `rest` is called after each batch of metrics, with the seconds that this thread computed for it.
    """
    from mlflow import MlflowClient

    client = MlflowClient()
    for part in ("tags", "reopened", "name", "params", "dataset"):  # whose it is now, before it is RUNNING again
        _send_part(client, outbox, part)
    number = sum(_send_rows(client, outbox, journal, rest) for journal in journals)
    for part in ("checkpoint", "artifacts", "status"):
        _send_part(client, outbox, part)
    return number


def _send_part(client: Any, outbox: Outbox, part: str) -> None:
    if pending := outbox.pending(part):
        value, version = pending
        _SEND[part](client, outbox, value)
        outbox.sent(part, version)


def _send_rows(client: Any, outbox: Outbox, journal: Journal, rest: Callable[[float], None]) -> int:
    from mlflow.entities import Metric

    number, size = 0, journal.size()  # as it is now: a file that grows while this rests would never let the next part begin
    start = min(outbox.sent_bytes(journal.path.name), size)
    while start < size:
        rows, end = journal.rows(start)
        if end == start:  # half a line: a full disk took no more
            break
        metrics = [
            Metric(name, float(value), int(row["time"]), int(row["step"]))
            for row in rows
            for name, value in row.items()
            if name not in NOT_METRICS
        ]
        for first in range(0, len(metrics), _BATCH):
            started = time.thread_time()
            client.log_batch(outbox.run_id, metrics=metrics[first : first + _BATCH])
            rest(time.thread_time() - started)
        number += len(metrics)
        outbox.sent_up_to(journal.path.name, end)
        start = end
    return number


def _reopen(client: Any, outbox: Outbox, _: Any) -> None:
    client.update_run(outbox.run_id, status="RUNNING")


def _send_name(client: Any, outbox: Outbox, name: str) -> None:
    """Name the run like its folder, unless somebody has named it."""
    if runs.is_made_up(client.get_run(outbox.run_id).info.run_name or ""):
        client.update_run(outbox.run_id, name=name)


def _send_status(client: Any, outbox: Outbox, status: str) -> None:
    client.set_terminated(outbox.run_id, status)


def _send_params(client: Any, outbox: Outbox, params: dict[str, str]) -> None:
    """Log every field; those that `mlflow run` has logged stay as the user wrote them."""
    from mlflow.entities import Param

    known = client.get_run(outbox.run_id).data.params
    client.log_batch(outbox.run_id, params=[Param(k, v) for k, v in params.items() if k not in known])


def _send_tags(client: Any, outbox: Outbox, tags: dict[str, str]) -> None:
    from mlflow.entities import RunTag

    client.log_batch(outbox.run_id, tags=[RunTag(k, v) for k, v in tags.items()])


def _send_dataset(client: Any, outbox: Outbox, dataset: dict[str, str]) -> None:
    """Note the data set, named by the hash of its prepared tensors, as the run's input."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag

    kind: Any = MetaDataset  # mypy takes it for abstract; it is not
    entity = kind(CodeDatasetSource(tags={"source": dataset["source"]}), name=dataset["name"], digest=dataset["digest"][:36])
    tags = [InputTag("mlflow.data.context", "training")]
    client.log_inputs(outbox.run_id, datasets=[DatasetInput(entity._to_mlflow_entity(), tags)])


def _send_artifacts(client: Any, outbox: Outbox, _: Any) -> None:
    """Mirror the files that the run folder's manifest names, its journals, and the manifest last."""
    folder = outbox.folder
    _upload_journals(client, outbox)
    sealed = manifest.read(folder)[1]
    if manifest.PAGE not in sealed:
        _take_back(client, outbox.run_id, manifest.PAGE)  # of before a stage was done again
    for name in [*sealed, manifest.MANIFEST]:
        parent = Path(name).parent.as_posix()
        client.log_artifact(outbox.run_id, str(folder / name), None if parent == "." else parent)
        if parent == "rejected":
            _take_back(client, outbox.run_id, f"export/{Path(name).name}")


def _take_back(client: Any, run_id: str, name: str) -> None:
    """Remove a file that was sent before and holds no more, where the store can: the manifest names it no more in any case."""
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from requests import HTTPError  # of a server that keeps the files: who may write need not be one who may delete

    parent = Path(name).parent.as_posix()
    if name in {item.path for item in client.list_artifacts(run_id, None if parent == "." else parent)}:
        with suppress(MlflowException, NotImplementedError, HTTPError):
            get_artifact_repository(client.get_run(run_id).info.artifact_uri).delete_artifacts(name)


def _upload_journals(client: Any, outbox: Outbox) -> None:
    with tempfile.TemporaryDirectory(dir=outbox.folder, prefix=".upload.") as temporary:
        for name in (*manifest.JOURNALS, manifest.LOG):
            copy = Path(temporary) / name  # a file that grows while it is sent is longer than was announced
            if (outbox.folder / name).exists():
                shutil.copyfile(outbox.folder / name, copy)
                client.log_artifact(outbox.run_id, str(copy))


def _send_checkpoint(client: Any, outbox: Outbox, step: int) -> None:
    """Upload a checkpoint and what a resumed run needs beside it; its hash goes last, as it does not count without."""
    client.log_artifact(outbox.run_id, str(outbox.folder / "config.json"))
    for name in manifest.CODE.values():
        if (code := outbox.folder / name).is_dir():
            client.log_artifacts(outbox.run_id, str(code), name)
    _upload_journals(client, outbox)
    if step:
        step = _send_slot(client, outbox)
    client.set_tag(outbox.run_id, "checkpoint_step", str(step))


def _send_slot(client: Any, outbox: Outbox) -> int:
    """Upload the newest checkpoint that is whole in place of the older one that is there; return its step."""
    slot = int(outbox.value("slot", 0))
    with tempfile.TemporaryDirectory(dir=outbox.folder, prefix=".upload.") as temporary:
        note = max((outbox.folder / "checkpoints").glob("step-*.json"))
        copies = [Path(temporary) / f"slot-{slot}{suffix}" for suffix in (".pt", ".json")]
        for copy in copies:  # links, so that a newer checkpoint may take their place meanwhile
            os.link(note.with_suffix(copy.suffix), copy)
        for copy in copies:
            client.log_artifact(outbox.run_id, str(copy), "checkpoints")
    outbox.enqueue("slot", (slot + 1) % _SLOTS)
    return int(note.stem.removeprefix("step-"))


_SEND: dict[str, Any] = {
    "reopened": _reopen, "name": _send_name, "params": _send_params, "dataset": _send_dataset, "tags": _send_tags,
    "checkpoint": _send_checkpoint, "artifacts": _send_artifacts, "status": _send_status,
}  # fmt: skip


class Sender:
    """Sends every few seconds what waits. A failure is told once, and tried again after longer and longer pauses.

    Where there is more to send than a small share of the processor allows, it waits until somebody asks for all of it.
    """

    def __init__(self, outbox: Outbox, journals: Sequence[Journal], *, strict: bool = False) -> None:
        self._then = "strict_tracking=true ends the training" if strict else "training goes on"
        self.problem = ""  # why the last attempt failed
        self._outbox, self._journals = outbox, journals
        self._condition = threading.Condition()
        self._asked = self._answered = 0
        self._ended = self._first_done = False
        self._pause = _PAUSE
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def send_now(self, timeout: float | None = None) -> bool:
        """Have all that waits sent, in one attempt, and tell whether it was; False too if it takes more than `timeout` s."""
        with self._condition:
            self._asked += 1
            asked = self._asked
            self._condition.notify_all()
            assert not self._ended
            return self._condition.wait_for(lambda: self._answered >= asked, timeout) and not self.problem

    def end(self) -> None:
        with self._condition:
            self._ended = True
            self._condition.notify_all()

    def _rest(self, worked: float) -> None:
        """Pause after work, unless somebody waits for all to be sent."""
        with self._condition:
            self._condition.wait_for(lambda: self._ended or self._asked > self._answered, min(worked / _SHARE, _LONGEST_REST))

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._ended or self._asked > self._answered, self._pause)
                if self._ended:
                    return
                asked = self._asked
            problem = self._attempt()
            with self._condition:
                self.problem, self._answered = problem, asked
                self._pause = min(2 * self._pause, _LONGEST_PAUSE) if problem else _PAUSE
                self._condition.notify_all()

    def _attempt(self) -> str:
        try:
            number = send(self._outbox, self._journals, rest=self._rest)
            if not self._first_done:
                runs.close_abandoned(but=self._outbox.run_id)
                self._first_done = True
        except Exception as error:  # whatever a server, a proxy or a store raises: it is told, and must not end the training
            problem = f"{type(error).__name__}: {connection.first_line(error)}"
            if not self.problem:
                say(
                    f"MLflow at {connection.shown()} does not take the metrics ({problem}); {self._then}, and they "
                    f"wait in {self._outbox.folder}",
                    error=True,
                )  # fmt: skip
            return problem
        if self.problem:
            say(f"MLflow answers again; {number} metrics were sent", error=True)
        return ""
