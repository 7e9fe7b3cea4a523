"""What a run has proven of its `model.onnx`: figures of its sealed files, held against each other and against MLflow.

Only sealed files are believed. What stands in MLflow as a number or a tag can be edited by hand there; it has to agree.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import files, manifest
from pipeline.errors import Failure, UserError
from pipeline.files import sha256
from pipeline.run import Run
from pipeline.task import Task, task
from pipeline.tracking import connection, registry

ONNX, PARITY, BENCHMARK = "export/model.onnx", manifest.REPORTS[0], manifest.FILES["benchmark"][0]
_ENDED = ("FINISHED", "FAILED")  # what is sealed holds, also where another file missed its gate, which fails a run
_CLOSE = 1e-3  # of two computations of one metric: the share by which they may differ


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What the sealed files of a run say of its ONNX file: `value` of the task's `metric`, on samples with a SHA-256.

    `digests` are those of the manifest.
    """

    run_id: str
    task: str
    metric: str
    value: float
    split: str
    num_samples: int
    samples_sha256: str
    digests: Mapping[str, str]

    @property
    def evaluation(self) -> str:
        """The file with the figure: test.json."""
        return f"{self.split}.json"


def read(folder: Path) -> Proof:
    """Return what the files in a folder prove. They have the hashes of the manifest there: this is not looked at again.

    Raises Failure where they prove nothing: a file that failed, another file, figures that are none or not of one model.
    """
    run_id, digests = manifest.read(folder)
    try:
        data = files.read_json(folder / "config.json")["data"]
        report: dict[str, Any] = files.read_json(folder / PARITY)
        kind, split = task(data["task"]), report["split"]
        if split not in ("test", "train"):
            raise ValueError(f"{split!r} is no split that a model is evaluated on")
        evaluation = files.read_json(folder / f"{split}.json")
        problem = _failed(report) or _of_others(report, digests, data) or _no_figures(report, evaluation, kind, split)
        if problem:
            raise ValueError(problem)
        return Proof(
            run_id=run_id, task=kind.name, metric=kind.metric, value=float(evaluation[kind.metric]), split=split,
            num_samples=int(report["num_samples"]), samples_sha256=_samples(report), digests=digests,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = connection.first_line(error)
        what = said if type(error) is ValueError else f"its files cannot be read ({type(error).__name__}: {said})"
        raise Failure(what) from error


def _failed(report: Mapping[str, Any]) -> str:
    """Return why a parity report proves nothing of the ONNX file, or nothing."""
    onnx = report["artifacts"].get("onnx")
    if report["passed"] is not True or report["problems"] or not onnx or onnx["problems"]:
        told = [*report["problems"], *(onnx or {}).get("problems", [])]
        return f"its exported files did not pass ({told[0] if told else 'as parity.json says'})"
    if onnx["argmax_flips"] not in ((0,) if task(report["task"]).has_decisions else (None,)):
        return f"its model.onnx decides {onnx['argmax_flips']} samples otherwise than the trained model, as parity.json says"
    return ""


def _of_others(report: Mapping[str, Any], digests: Mapping[str, str], data: Mapping[str, Any]) -> str:
    """Return of what else a parity report is than of these files, or nothing."""
    if report["artifacts"]["onnx"]["sha256"] != digests.get(ONNX):
        return "its parity.json is of another model.onnx than the one that is there: it is older than the export, or was edited"
    if report["weights_sha256"] != digests.get(manifest.WEIGHTS):
        return "its parity.json is of other weights than those that are there"
    if report["data_sha256"] != data["sha256"] or report["task"] != data["task"]:
        return "its parity.json is of other data than the run was trained on"
    return ""


def _no_figures(report: Mapping[str, Any], evaluation: Mapping[str, Any], kind: Task, split: str) -> str:
    """Return why the figures of a run are none, or not those of one model, or nothing."""
    name, count = kind.metric, report["num_samples"]
    found = {
        f"{split}.json": evaluation.get(name), "parity.json": report["artifacts"]["onnx"]["metric"],
        "parity.json (torch)": report["reference"]["metric"],
    }  # fmt: skip
    for file, value in found.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            return f"its {name} in {file} is {value!r}, which is no number that can be compared"
    first, *others = found.values()
    allowed = max(_CLOSE * abs(first), 1.5 / count if kind.has_decisions else 0.0)  # a GPU may decide one sample otherwise
    if any(abs(value - first) > allowed for value in others):
        return f"its {name} is {first!r} in {split}.json, and {others[0]!r} in parity.json: one of them was not measured on it"
    return ""


def _samples(report: Mapping[str, Any]) -> str:
    if not report.get("split_sha256"):
        raise ValueError(
            "its parity.json does not say which samples it is of, as it is of an earlier version: verify the run again"
        )
    return str(report["split_sha256"])


def of_run(run: Run) -> Proof:
    """Return what a run folder proves, whose files are those of its manifest.

    Raises UserError where a stage is missing, and Failure where the files prove nothing.
    """
    for stage in ("evaluate", "export", "verify"):
        manifest.need(run.folder, stage)
    try:
        proof = read(run.folder)
        if proof.evaluation not in proof.digests:
            raise Failure(f"its {proof.evaluation} is not sealed: evaluate the run again")
        written = registry.onnx_metadata(run.folder / ONNX)
        expected = {
            "mlflow_run_id": run.mlflow_run_id, "data_sha256": run.data.sha256, "task": run.data.task,
            "weights_sha256": proof.digests[manifest.WEIGHTS],
        }  # fmt: skip
        wrong = [name for name, value in expected.items() if written.get(name) != value]
        if wrong:
            raise Failure(f"its model.onnx says {wrong[0]}={str(written.get(wrong[0]))[:64]}, so it is of another run")
    except Failure as error:
        raise Failure(f"run={run.folder} is not promoted: {error}") from error
    return proof


def of_mlflow(run_id: str) -> Proof:
    """Return what the sealed files of a run prove which MLflow has. Raises Failure where they prove nothing."""
    import mlflow

    if problem := connection.ask(lambda: _not_there(run_id)):
        raise Failure(problem)
    with tempfile.TemporaryDirectory(prefix="trainyard-") as temporary:
        folder = Path(temporary)

        def fetch(name: str) -> Path:
            target = (folder / name).parent
            target.mkdir(exist_ok=True)
            return Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, dst_path=str(target)))

        try:
            fetch(manifest.MANIFEST)
            owner, digests = manifest.read(folder)
            if owner != run_id:
                raise Failure(f"its manifest.json is of run {owner[:80]}")
            for name in ("config.json", PARITY, *(each for each in manifest.EVALUATIONS if each in digests)):
                if sha256(fetch(name)) != digests.get(name):
                    raise Failure(f"its {name} is not the file that was sealed")
        except (UserError, Failure) as error:
            raise Failure(connection.redacted(f"{error}")) from error
        except Exception as error:  # whatever a server, a proxy or a store raises
            raise Failure(f"its sealed files cannot be fetched ({connection.first_line(error)})") from error
        return read(folder)


def _not_there(run_id: str) -> str:
    """Return why a run cannot be asked for its files, or nothing."""
    from mlflow import MlflowClient, MlflowException

    try:
        info = MlflowClient().get_run(run_id).info
    except MlflowException as error:
        if not connection.is_unseen(error):
            raise
        return f"its run {run_id or 'is not named, and'} is not at {connection.shown()}"
    deleted = f"its run {run_id} was deleted (mlflow runs restore --run-id {run_id})"
    return deleted if info.lifecycle_stage == "deleted" else ""


def confirm(run: Run, proof: Proof) -> str:
    """Hold a proven run against what MLflow has of it; return the address of its logged model, whose file is the proven one.

    Raises Failure where they differ.
    """
    try:
        if problem := connection.ask(lambda: _not_there(run.mlflow_run_id)):
            raise Failure(problem)
        return _confirmed(run, proof)
    except Failure as error:
        raise Failure(f"run={run.folder} is not promoted: {error}") from error


def _confirmed(run: Run, proof: Proof) -> str:
    from mlflow import MlflowClient

    entry = connection.ask(lambda: MlflowClient().get_run(run.mlflow_run_id))
    status, tags, metrics = entry.info.status, entry.data.tags, entry.data.metrics
    if status not in _ENDED:
        raise Failure(f"its MLflow run is {status}. Let it end, or finish it: --output_dir {run.folder} --resume true")
    again = f"Send what is missing (python -m pipeline sync --run {run.folder}), or verify it again."
    for name, value in {"data_sha256": run.data.sha256, "parity": "passed"}.items():
        if tags.get(name) != value:
            raise Failure(f"MLflow's tag {name} says {tags.get(name, 'nothing')[:64]}, and its files {value}. {again}")
    theirs = of_mlflow(run.mlflow_run_id).digests
    for name in ("config.json", manifest.WEIGHTS, proof.evaluation, ONNX, PARITY):
        if theirs.get(name) != proof.digests[name]:
            raise Failure(f"MLflow's manifest.json has another {name} than the run folder. {again}")
    name = f"{'test' if proof.split == 'test' else 'train/final'}/{proof.metric}"
    if not math.isclose(metrics.get(name, math.nan), proof.value, rel_tol=1e-9):
        raise Failure(
            f"MLflow's {name} is {metrics.get(name)}, and the sealed {proof.evaluation} says {proof.value!r}. {again}"
        )
    address = tags.get("model_uri", "")
    verify = f"Verify it again: python -m pipeline verify --run {run.folder}"
    if not re.fullmatch("models:/m-[0-9a-f]+", address):
        raise Failure(f"its ONNX file is not in MLflow as a model (the tag model_uri is {address[:80]!r}). {verify}")
    if sha256_of(address) != proof.digests[ONNX]:
        raise Failure(f"{address} in MLflow holds another file than the model.onnx that is proven. {verify}")
    return address


def sha256_of(address: str) -> str:
    """Return the SHA-256 of the one .onnx file of a model in MLflow. Raises Failure where there is none, or not one."""
    import mlflow

    with tempfile.TemporaryDirectory(prefix="trainyard-") as temporary:
        try:
            mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=temporary)
        except Exception as error:  # whatever a server, a proxy or a store raises
            raise Failure(f"{address} cannot be fetched from MLflow ({connection.first_line(error)})") from error
        found = sorted(Path(temporary).rglob("*.onnx"))
        if len(found) != 1:
            raise Failure(f"{address} in MLflow holds {len(found)} .onnx files, not one")
        return sha256(found[0])


def latency(run: Run, proof: Proof) -> float:
    """Return the 95th percentile of the latency of a run's model.onnx in ms, batch 1 on one thread, as `benchmark` measured it.

    Raises UserError where that was not measured, and Failure where it is no number.
    """
    how = f"Measure it: python -m pipeline benchmark --run {run.folder}"
    if BENCHMARK not in proof.digests:
        raise UserError(f"max_latency_ms: run={run.folder} has no benchmark. {how}")
    try:
        report = files.read_json(run.folder / BENCHMARK)
        rows = [r for r in report["rows"] if (r["format"], r["batch"], r["threads"]) == ("onnx", 1, 1)]
        measured = report["files"]["onnx"]["sha256"] if rows else ""
        figure, reason = (rows[0]["p95_ms"], rows[0]["reason"]) if rows else (None, "")
    except (OSError, ValueError, KeyError, TypeError) as error:
        said = f"{type(error).__name__}: {connection.first_line(error)}"
        raise UserError(f"max_latency_ms: run={run.folder} has a {BENCHMARK} that cannot be read ({said}). {how}") from error
    if not rows:
        raise UserError(f"max_latency_ms: the benchmark of run={run.folder} has no onnx at batch 1 on one thread. {how}")
    if figure is None:
        why = reason or "there were fewer than 20 calls: give it more --seconds"
        raise UserError(f"max_latency_ms: the benchmark of run={run.folder} states no p95 of model.onnx ({why}). {how}")
    if measured != proof.digests[ONNX]:
        raise Failure(f"run={run.folder} is not promoted: its benchmark is of another model.onnx. {how}")
    value = float(figure)
    if not math.isfinite(value) or value <= 0:
        raise Failure(f"run={run.folder} is not promoted: its latency is {value}, which is no time. {how}")
    return value


def as_tags(proof: Proof) -> dict[str, str]:
    """Return what a version in the registry tells of its proof."""
    return {
        "onnx_sha256": proof.digests[ONNX], "parity_sha256": proof.digests[PARITY],
        "evaluation_sha256": proof.digests[proof.evaluation], "samples_sha256": proof.samples_sha256,
        "task": proof.task, proof.metric: json.dumps(proof.value), "num_samples": str(proof.num_samples),
    }  # fmt: skip
