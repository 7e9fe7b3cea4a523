"""The parity gate: each exported file, run in a fresh process, against the trained model run by torch.

The report is written whatever comes of it. A file that fails is also searched for the reason.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from onnx import ModelProto
from safetensors.numpy import load_file
from torch import Tensor

from export import compare, explain, report
from export.artifacts import FILES, FOLDER, METRICS
from export.formats import onnx as onnx_format
from export.isolated import NUM_THREADS
from export.module import OUTPUTS, ExportModule, deployed, metadata
from export.runner import BATCH_SIZES, CHUNK, FORMATS, Runner, RunResult
from pipeline import manifest
from pipeline import run as run_folder
from pipeline.config import UserError
from pipeline.data.loader import Split, evaluation_split, open_split
from pipeline.data.prepare import read_manifest

Array = NDArray[Any]
Outputs = dict[str, list[Array]]


@dataclass(frozen=True)
class Verdict:
    """`problems` are sentences that name what differs; `figures` are MLflow metrics; `report` is compare.json."""

    passed: bool
    problems: list[str]
    figures: dict[str, float]
    report: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Expected:
    """What every artifact of a run has to give."""

    run: run_folder.Run
    split_name: str  # test, or train
    split: Split
    module: ExportModule
    names: tuple[str, ...]
    metadata: dict[str, object]
    answers: Outputs
    complete: bool  # an export of ours, which carries all metadata


def verify_run(
    run: run_folder.Run, *, data: Path, onnx: Path | None = None,
    probes: Runner | None = None, meanwhile: Callable[[], None] = lambda: None,
) -> Verdict:  # fmt: skip
    """Hold a run's exported files, or another .onnx file, against its model on the test split of a prepared folder (or,
    where none was held out, on its training samples: the report says so).

    `probes` are those of all formats that were started before; `meanwhile` is called while they work, before they measure.
    Writes `export/parity.json` and `.md`, or `export/parity-<name>` where `onnx` is given; its figures are then under
    that name too, so that neither hides the run's own. The report is left unsealed. Raises UserError where a file is missing or
    is no ONNX file.
    """
    contents, graph = _read(run, onnx)
    name, module = evaluation_split(data), deployed(run)
    split = open_split(data, name)
    with probes or Runner(contents) as probes:
        probes.load(contents, split.x.numpy())
        meanwhile()
        with _threads(NUM_THREADS):  # the order in which numbers are added up depends on it
            answers = _answers(module, split.x)
        expected = _Expected(
            run=run, split_name=name, split=split, module=module, names=OUTPUTS[run.task], metadata=metadata(run),
            answers=answers, complete=onnx is None,
        )  # fmt: skip
        results = probes.results()
    if not results["onnx"].failure:
        results["onnx"].weights = onnx_format.initializers(graph)
    parts = {kind: _judge(kind, result, expected) for kind, result in results.items()}
    for kind, content in contents.items():
        about = {"file": onnx.name if onnx else FILES[kind], "sha256": hashlib.sha256(content).hexdigest()}
        parts[kind] = about | ({"opset": onnx_format.opset(graph)} if kind == "onnx" else {}) | parts[kind]
    values = _report(parts, expected, data_sha256=read_manifest(data)["data_sha256"])
    as_json, as_text = report_files(onnx)
    manifest.unseal(run, as_json, as_text)
    run_folder.write_json(run.folder / as_json, values)
    with run_folder.atomic(run.folder / as_text) as temporary:
        temporary.write_text(report.markdown(values))
    stem = re.sub("[^A-Za-z0-9_.-]", "_", f"parity-{onnx.stem}") if onnx else ""
    prefixes = {kind: f"{METRICS}/{stem or kind}" for kind in parts}
    return Verdict(values["passed"], values["problems"], report.figures(values, prefixes=prefixes), values)


def report_files(onnx: Path | None) -> tuple[str, str]:
    """Return the names of a report, as JSON and as text, relative to the run folder."""
    stem = f"{FOLDER}/parity-{onnx.stem}" if onnx else f"{FOLDER}/parity"
    return f"{stem}.json", f"{stem}.md"


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Have torch compute on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _read(run: run_folder.Run, onnx: Path | None) -> tuple[dict[str, bytes], ModelProto]:
    """Return the files' bytes by format, and the ONNX file's message."""
    if onnx:
        content, graph = onnx_format.read(onnx, what=f"onnx={onnx}")
        return {"onnx": content}, graph
    paths = {kind: run.folder / FOLDER / FILES[kind] for kind in FORMATS}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise UserError(
            f"run={run.folder} has no {', '.join(missing)} in its {FOLDER}/. "
            f"Make it: python -m pipeline export --run {run.folder}"
        )
    content, graph = onnx_format.read(paths["onnx"], what=str(paths["onnx"]))
    return {"onnx": content} | {kind: paths[kind].read_bytes() for kind in FORMATS[1:]}, graph


def _answers(module: ExportModule, x: Tensor) -> Outputs:
    """Return the outputs of eager torch for the cases that a probe works through."""
    batches = {str(size): [x[torch.arange(size) % len(x)]] for size in BATCH_SIZES} | {"all": list(x.split(CHUNK))}
    answers: Outputs = {}
    with torch.inference_mode():
        for case, parts in batches.items():
            columns = zip(*(module(part) for part in parts), strict=True)
            answers[case] = [torch.cat(column).numpy() for column in columns]
    return answers


def _judge(kind: str, result: RunResult, expected: _Expected) -> dict[str, Any]:
    """Return one artifact's part of the report: what was measured, then why it fails if it does."""
    names, want = expected.names, expected.answers
    if result.failure:
        return report.artifact(result, compare.Comparison(), problems=[result.failure])
    data = expected.run.data
    problems: list[str] = []
    if kind == "onnx":
        problems += explain.interface(result.facts, names=names, shape=data["input_shape"], dtype=data["input_dtype"])
        _order_by_name(result, names)
    problems += explain.origin(result.facts["metadata"], expected.metadata, complete=expected.complete)
    labels = expected.split.y.numpy()
    comparison = compare.compare(result.outputs, want, names=names, labels=labels, task=expected.run.task)
    if not comparison.agrees:
        problems += explain.swapped(result.outputs, want, names=names)
        problems += explain.unstandardized(result.outputs, _answers_to_raw_input(expected))
        problems += explain.weights(result.weights, load_file(expected.run.folder / run_folder.WEIGHTS))
    problems += explain.behavior(result, comparison, names=names, want=want, split=expected.split_name)
    return report.artifact(result, comparison, problems=problems)


def _order_by_name(result: RunResult, names: tuple[str, ...]) -> None:
    """Bring the outputs of an ONNX file, which are asked for by name, into the order of `names`."""
    found = [output["name"] for output in result.facts["outputs"]]
    if sorted(found) == sorted(names):
        order = [found.index(name) for name in names]
        result.outputs = {case: [arrays[i] for i in order] for case, arrays in result.outputs.items()}


def _answers_to_raw_input(expected: _Expected) -> Outputs:
    """Return what the network gives without its standardization; nothing where it has none."""
    plain = copy.deepcopy(expected.module)
    if (plain.model.mean == 0).all() and (plain.model.std == 1).all():
        return {}
    plain.model.mean.zero_()
    plain.model.std.fill_(1.0)
    return _answers(plain, expected.split.x)


def _report(parts: Mapping[str, dict[str, Any]], expected: _Expected, *, data_sha256: str) -> dict[str, Any]:
    run, split = expected.run, expected.split
    problems = [f"{part['file']}: {problem}" for part in parts.values() for problem in part["problems"]]
    own = expected.answers["all"][0]
    reference = {
        "runtime": "torch eager, float32, CPU",
        "version": torch.__version__,
        "metric": report.nan_to_none(compare.score(own, own, split.y.numpy(), run.task).value),
    }
    return {
        "passed": not problems, "problems": problems, "model": run.config.model, "task": run.task,
        "dataset": run.config.dataset, "split": expected.split_name, "num_samples": len(split),
        "metric": report.METRIC[run.task],
        "data_sha256": data_sha256, "weights_sha256": expected.metadata["weights_sha256"], "reference": reference,
        "tolerance": {"rtol": compare.RTOL, "atol": compare.ATOL, "argmax_flips": 0},
        "batch_sizes": list(BATCH_SIZES), "num_threads": NUM_THREADS,
        "artifacts": dict(parts),
    }  # fmt: skip
