"""MLflow: one run for each training, on rank 0 alone. The only file that imports mlflow.

Figures are gathered in memory and sent in batches when `flush` is called, never from within a step.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import __version__, distributed, store
from pipeline.config import RunConfig, UserError, to_json
from pipeline.stopping import Stopped
from pipeline.store import Run

if TYPE_CHECKING:
    import numpy as np

_BATCH = 1000  # metrics that MLflow takes in one call
_NOT_METRICS = ("step", "epoch", "time")


class NullTracker:
    """What ranks above 0 hold: takes everything, does nothing."""

    run_id = ""

    def log(self, row: Mapping[str, float]) -> None: ...

    def write(self) -> None: ...

    def flush(self) -> None: ...

    def log_figures(self, figures: Mapping[str, float]) -> None: ...

    def set_tags(self, tags: Mapping[str, object]) -> None: ...

    def upload(self, folder: Path) -> None: ...


class Tracker(NullTracker):
    """Writes into one MLflow run, whatever its status, through MLflow's client."""

    def __init__(self, run_id: str) -> None:
        from mlflow import MlflowClient

        self.run_id = run_id
        self._client = MlflowClient()
        self._unwritten: list[Mapping[str, float]] = []
        self._unsent: list[Mapping[str, float]] = []
        self._journal: Path | None = None
        self._step = 0

    def open_journal(self, path: Path, *, step: int) -> None:
        """Write all rows to `path` (metrics.jsonl) too; rows after `step` that are there are taken back, to be done again."""
        self._journal, self._step = path, step
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        with store.atomic(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] <= step))

    def log(self, row: Mapping[str, float]) -> None:
        """Keep one line of metrics.jsonl for the next `write` and `flush`."""
        self._unwritten.append(row)

    def write(self) -> None:
        """Append the rows kept so far to metrics.jsonl."""
        rows, self._unwritten = self._unwritten, []
        if self._journal:
            with self._journal.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
        self._unsent += rows

    def flush(self) -> None:
        """Send the rows kept so far to MLflow."""
        from mlflow.entities import Metric

        self.write()
        rows, self._unsent = self._unsent, []
        metrics = [
            Metric(key, float(value), int(row["time"]), int(row["step"]))
            for row in rows
            for key, value in row.items()
            if key not in _NOT_METRICS
        ]
        for start in range(0, len(metrics), _BATCH):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + _BATCH])
        self._step = max([self._step, *(int(row["step"]) for row in rows)])

    def log_figures(self, figures: Mapping[str, float]) -> None:
        """Send figures of the finished model, at the step of the last row."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        metrics = [Metric(key, float(value), now, self._step) for key, value in figures.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def log_config(self, config: RunConfig) -> None:
        """Log every field as a parameter; those that `mlflow run` has logged stay as the user wrote them."""
        from mlflow.entities import Param

        known = self._client.get_run(self.run_id).data.params
        params = [Param(k, str(v)) for k, v in to_json(config).items() if k not in known]
        self._client.log_batch(self.run_id, params=params)

    def log_dataset(self, name: str, *, digest: str, source: str) -> None:
        """Note the data set, named by the hash of its prepared tensors, as the active run's input."""
        import mlflow
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.meta_dataset import MetaDataset

        dataset: Any = MetaDataset  # mypy takes it for abstract; it is not
        dataset = dataset(CodeDatasetSource(tags={"source": source}), name=name, digest=digest[:36])
        mlflow.log_input(dataset, context="training")

    def set_tags(self, tags: Mapping[str, object]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(self.run_id, tags=[RunTag(k, str(v)) for k, v in tags.items()])

    def upload(self, folder: Path) -> None:
        """Mirror the files that the run folder's manifest names, and the manifest last, to the artifact store."""
        for name in [*store.sealed_files(folder), "manifest.json"]:
            parent = Path(name).parent.as_posix()
            self._client.log_artifact(self.run_id, str(folder / name), None if parent == "." else parent)

    def log_onnx_model(self, path: Path, example: np.ndarray) -> float:
        """Log the ONNX file as an MLflow model, load it back and return the largest difference of its answers.

        `example` (B, *input_shape) becomes the input example; the answers are held against onnxruntime on the file itself.
        """
        import mlflow
        import numpy as np
        import onnx
        import onnxruntime
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        expected = dict(zip(names, session.run(names, {"input": example}), strict=True))
        schema: list[Any] = [TensorSpec(v.dtype, (-1, *v.shape[1:]), k) for k, v in expected.items()]
        signature = ModelSignature(Schema([TensorSpec(example.dtype, (-1, *example.shape[1:]), "input")]), Schema(schema))
        import mlflow.onnx

        with _active(self.run_id):
            info = mlflow.onnx.log_model(
                onnx.load(path),  # a copy of its own: log_model changes what it is given
                name="model",
                signature=signature,
                input_example={"input": example},
                pip_requirements=[f"{m.__name__}=={m.__version__}" for m in (onnx, onnxruntime, np)],
                onnx_execution_providers=["CPUExecutionProvider"],
                save_as_external_data=False,
            )
        answers = mlflow.pyfunc.load_model(info.model_uri).predict({"input": example})
        return max(float(np.abs(answers[name] - value).max()) for name, value in expected.items())


@contextmanager
def _active(run_id: str) -> Iterator[None]:
    """Make a run MLflow's active one for a while, and leave its status as it was."""
    import mlflow

    active = mlflow.active_run()
    if active is not None and active.info.run_id == run_id:
        yield
        return
    client = mlflow.MlflowClient()
    status = client.get_run(run_id).info.status
    mlflow.start_run(run_id=run_id)
    try:
        yield
    finally:
        mlflow.end_run(status)


def configure() -> None:
    """Choose the store explicitly, and have a dead server answer in seconds. Raises UserError if it does not answer."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "5")
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # or a logged model would carry uv.lock and its hosts
    os.environ.setdefault("MLFLOW_LOG_UV_FILES", "false")
    os.environ.setdefault("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)  # it misses pip, which uv environments do without
    import mlflow
    from mlflow.exceptions import MlflowException

    uri = os.environ["MLFLOW_TRACKING_URI"]
    mlflow.set_tracking_uri(uri)
    try:
        if wrapper := os.environ.get("MLFLOW_RUN_ID"):
            mlflow.MlflowClient().get_run(wrapper)
        else:
            mlflow.MlflowClient().search_experiments(max_results=1)
    except MlflowException as error:
        if os.environ.get("MLFLOW_RUN_ID") and uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
            raise UserError(
                f"MLFLOW_TRACKING_URI={uri} is relative, and `mlflow run` started this in another folder. Give an absolute "
                "path (sqlite:////...), or unset it."
            ) from error
        raise UserError(
            f"MLFLOW_TRACKING_URI={uri} does not answer ({str(error).splitlines()[0][:200]}). Start the server, or unset "
            "the variable to track in ./mlflow.db."
        ) from error


@contextmanager
def training_run(config: RunConfig, *, run_id: str = "") -> Iterator[Tracker]:
    """Open the MLflow run of a training: the one named (resume), the one that `mlflow run` opened, or a new one.

    At the end its status is FINISHED, KILLED after SIGTERM or SIGINT, or FAILED after any other error.
    """
    import mlflow

    configure()
    if run_id:
        _nest_wrapper(run_id)
    status = "FAILED"
    active = mlflow.start_run(run_id=run_id or None, log_system_metrics=True)
    tracker = Tracker(active.info.run_id)
    try:
        tracker.log_config(config)
        yield tracker
        tracker.flush()
        status = "FINISHED"
    except Stopped:
        status = "FAILED" if distributed.another_rank_failed() else "KILLED"
        raise
    except Exception:
        tracker.flush()  # a stopped run goes on from its checkpoint and logs the rest again; a failed one does not
        raise
    finally:
        mlflow.end_run(status)


def attach(run: Run) -> Tracker:
    """Return a tracker that writes a later stage's figures into the training's run."""
    configure()
    _nest_wrapper(run.mlflow_run_id)
    return Tracker(run.mlflow_run_id)


def _nest_wrapper(run_id: str) -> None:
    """Show the run that `mlflow run` opened for this stage under the training's run, and write nothing else into it."""
    wrapper = os.environ.pop("MLFLOW_RUN_ID", None)
    if wrapper and wrapper != run_id:
        from mlflow import MlflowClient

        MlflowClient().set_tag(wrapper, "mlflow.parentRunId", run_id)


def find_run(text: str) -> Run:
    """Return the run that `--run` names: a run folder, or an MLflow run id whose artifacts are fetched if not here.

    They are laid in `runs/<model>-<first 8 of the id>`. Raises UserError where there is no such run.
    """
    if not text:
        raise UserError("run: nothing was given. Add --run FOLDER or --run MLFLOW_RUN_ID.")
    if Path(text).exists() or os.sep in text:
        return store.open_run(Path(text))
    configure()
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        found = mlflow.MlflowClient().get_run(text)
    except MlflowException as error:
        raise UserError(
            f"run={text} is neither a folder nor a run at {mlflow.get_tracking_uri()}. "
            "Look it up with `mlflow ui`, or set MLFLOW_TRACKING_URI to where it was trained."
        ) from error
    folder = Path(found.data.tags.get("output_dir", ""))
    here = Path("runs") / f"{found.data.params.get('model', 'run')}-{text[:8]}"
    for candidate in (folder, here):
        if (candidate / "manifest.json").is_file():
            run = store.open_run(candidate)
            if run.mlflow_run_id == text:
                return run
    return _fetch(text, here)


def _fetch(run_id: str, folder: Path) -> Run:
    import mlflow
    from mlflow.exceptions import MlflowException

    if folder.exists():
        raise UserError(f"run={run_id} would be fetched into {folder}, which holds something else. Move that away.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        mlflow.artifacts.download_artifacts(run_id=run_id, dst_path=str(temporary))
        store.open_run(temporary)  # whole and unchanged, before it gets its name
        temporary.chmod(0o755)
        temporary.rename(folder)
    except MlflowException as error:
        raise UserError(f"run={run_id} has no artifacts that can be fetched: {str(error).splitlines()[0]}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return store.open_run(folder)


def git_state() -> tuple[str, bool]:
    """Return the commit of this source tree and whether it has uncommitted changes; ("", False) outside git."""
    root = Path(__file__).resolve().parents[1]

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


def environment_tags(config: RunConfig, run: Run, *, world_size: int, device: str, dirty: bool) -> dict[str, Any]:
    """Return the tags that tell where a run's files came from."""
    return {
        "git_commit": run.git_commit or "unknown", "git_dirty": str(dirty).lower(), "data_sha256": run.data["data_sha256"],
        "host": socket.gethostname(), "world_size": world_size, "device": device,
        "restarts": distributed.num_restarts(),
        "output_dir": run.folder.resolve(), "trainyard_version": __version__,
    }  # fmt: skip
