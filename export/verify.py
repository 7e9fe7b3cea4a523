"""The parity gate: each exported file, run in a fresh process, against the trained model run by torch.

The report is written whatever comes of it. A file that fails is also searched for the reason.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor

from export import compare, explain, gates, originals, rejected, report, temperature
from export.artifacts import FOLDER, METRICS
from export.explain import Input
from export.formats import FORMATS
from export.formats import onnx as onnx_format
from export.gates import Limits
from export.isolated import NUM_THREADS
from export.module import INPUT, ExportModule, export_module, input_shape, metadata
from export.runner import BATCH_SIZES, CHUNK, RunResult, ready
from pipeline import files, manifest
from pipeline.data.loader import Split, evaluation_split, open_split
from pipeline.data.prepare import read_raw, read_spec, split_digest
from pipeline.errors import UserError
from pipeline.run import Run
from pipeline.task import Task

Array = NDArray[Any]
Outputs = dict[str, list[Array]]


@dataclass(frozen=True)
class Verdict:
    """`problems` are sentences that name what differs; `metrics` are for MLflow; `report` is parity.json.

    `passed` speaks of the exact files; `rejected` says which derived ones missed their gate, and why.
    """

    passed: bool
    problems: list[str]
    rejected: list[str]
    metrics: dict[str, float]
    report: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class _Expected:
    """What every artifact of a run has to give."""

    run: Run
    task: Task
    split_name: str  # test, or train
    split: Split
    module: ExportModule
    metadata: dict[str, Any]
    outputs: Outputs
    complete: bool  # an export of ours, which carries all metadata
    limits: Limits


def verify_run(
    run: Run, *, data: Path, onnx: Path | None = None, kind: str = "onnx", limits: Limits | None = None, dataset: str = ""
) -> Verdict:
    """Hold a run's exported files, or another .onnx file, against its model on the test split of a prepared folder (or,
    where none was held out, on its training samples: the report says so). `dataset` is where own data lies now, if not where it
    lay in training. `kind` is the format that the other file is judged as. Derived files are held to `limits` (default: those
    that the run was exported with), and moved to `rejected/` where they miss one.

    Writes `export/parity.json` and `.md`, or `export/parity-<name>` where `onnx` is given; its metrics are then under
    that name too, so that neither hides the run's own. The report is left unsealed. Raises UserError where a file is missing or
    is no ONNX file.
    """
    contents, places = _read(run, onnx, kind)
    name, module = evaluation_split(data), export_module(run)
    module.temperature = temperature.kept(run).get(temperature.KEY, 1.0)
    split = open_split(data, name)
    with ready(contents) as runner:
        runner.load(contents, split.x.numpy(), columns=_columns(run, data))
        with _threads(NUM_THREADS):  # the order in which numbers are added up depends on it
            outputs = _eager_outputs(module, split.x)
        expected = _Expected(
            run=run, task=run.task, split_name=name, split=split, module=module, outputs=outputs,
            metadata=metadata(run, temperature=module.temperature),
            complete=onnx is None, limits=limits or rejected.limits(run),
        )  # fmt: skip
        results = runner.results()
    parts: dict[str, dict[str, Any]] = {}
    images = originals.find(run, data, name, dataset=dataset or run.config.dataset)
    for each in places:
        parts[each] = {"file": onnx.name if onnx else Path(places[each]).name}
        parts[each] |= {"sha256": hashlib.sha256(contents[each]).hexdigest()}
        if base := FORMATS[each].base:
            found = _compared(results, contents, each, base)
            parts[each] |= _judge_derived(results[each], expected, each, found)
        else:
            parts[each] |= _judge(results[each], expected)
        if "onnx" in (each, base) and not results[each].failure and images is not None:
            _judge_originals(parts[each], contents[each], expected, images)
    values = _report(parts, expected, data_sha256=read_spec(data).sha256, split_sha256=split_digest(data, name))
    as_json, as_text = report_files(onnx)
    if not onnx:
        run.unseal("verify")
        rejected.settle(run, {each: part for each, part in parts.items() if FORMATS[each].base})
    files.write_json(run.folder / as_json, values)
    with files.atomic(run.folder / as_text) as temporary:
        temporary.write_text(report.markdown(values))
    stem = re.sub("[^A-Za-z0-9_.-]", "_", f"parity-{onnx.stem}") if onnx else ""
    prefixes = {each: f"{METRICS}/{stem or each}" for each in parts}
    missed = [f"{part['file']}: {problem}" for part in values.get("rejected", {}).values() for problem in part["problems"]]
    return Verdict(values["passed"], values["problems"], missed, report.metrics(values, prefixes=prefixes), values)


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


def _read(run: Run, onnx: Path | None, kind: str) -> tuple[dict[str, bytes], dict[str, str]]:
    """Return the files' bytes by format, and those that are judged with the name of each file. Raises UserError.

    Beside another file of a derived format, the run's own ONNX file is read too, against which size and speed are told.
    """
    places = rejected.exported(run)
    if onnx:
        contents = {kind: _read_onnx(onnx, what=f"onnx={onnx}")}
        base = FORMATS[kind].base
        if base and (run.folder / places[base]).is_file():
            contents[base] = (run.folder / places[base]).read_bytes()
        return contents, {kind: str(onnx)}
    paths = {name: run.folder / place for name, place in places.items()}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        raise UserError(
            f"run={run.folder} has no {', '.join(missing)} in its {FOLDER}/. "
            f"Make it: python -m pipeline export --run {run.folder}"
        )
    is_onnx = {name: "onnx" in (name, FORMATS[name].base) for name in paths}
    contents = {n: _read_onnx(path, what=str(path)) if is_onnx[n] else path.read_bytes() for n, path in paths.items()}
    return contents, places


def _read_onnx(path: Path, *, what: str) -> bytes:
    try:
        return onnx_format.read(path, what=what)
    except ValueError as error:
        raise UserError(str(error)) from error


def _eager_outputs(module: ExportModule, x: Tensor) -> Outputs:
    """Return the outputs of eager torch for the cases that an isolated process works through."""
    batches = {str(size): [x[torch.arange(size) % len(x)]] for size in BATCH_SIZES} | {"all": list(x.split(CHUNK))}
    outputs: Outputs = {}
    with torch.inference_mode():
        for case, parts in batches.items():
            columns = zip(*(module(part) for part in parts), strict=True)
            outputs[case] = [torch.cat(column).numpy() for column in columns]
    return outputs


def _judge(result: RunResult, expected: _Expected) -> dict[str, Any]:
    """Return one artifact's part of the report: what was measured, then why it fails if it does."""
    names, want = expected.module.outputs, expected.outputs
    if result.failure:
        return report.artifact(result, compare.Comparison(), problems=[result.failure])
    problems: list[str] = []
    if "outputs" in result.facts:
        problems += explain.interface(result.facts, names=names, inputs=_inputs(expected.run))
        _order_by_name(result, names)
    problems += explain.origin(result.facts["metadata"], expected.metadata, complete=expected.complete)
    problems += temperature.wrong(result.facts["metadata"], expected.module.temperature)
    labels = expected.split.y.numpy()
    comparison = compare.compare(result.outputs, want, names=names, labels=labels, task=expected.task)
    if not comparison.agrees:
        problems += explain.swapped(result.outputs, want, names=names)
        problems += explain.unstandardized(result.outputs, _outputs_for_raw_input(expected))
        problems += explain.weights(result.weights, load_file(expected.run.folder / manifest.WEIGHTS))
    problems += explain.behavior(result, comparison, names=names, want=want, split=expected.split_name)
    return report.artifact(result, comparison, problems=problems)


def _compared(results: Mapping[str, RunResult], contents: Mapping[str, bytes], name: str, base: str) -> dict[str, Any]:
    """Return how large and how fast a derived file is, compared with the file that it was made from, where that is there."""
    if base not in results:
        return {}
    slow, fast = results[base].latency_ms, results[name].latency_ms
    return {"size_ratio": len(contents[name]) / len(contents[base]), "speedup": slow / fast if slow and fast else None}


def _judge_derived(result: RunResult, expected: _Expected, kind: str, found: dict[str, Any]) -> dict[str, Any]:
    """Return a derived file's part of the report: it is held to what it decides, not to each number."""
    names, want, task, split = expected.module.outputs, expected.outputs, expected.task, expected.split_name
    if result.failure:
        gate = gates.part(found, limits=expected.limits, metadata={})
        return report.artifact(result, compare.Comparison(), problems=[result.failure]) | {"gate": gate}
    problems = [*gates.is_what_it_is_called(result.facts, kind)]
    problems += explain.interface(result.facts, names=names, inputs=_inputs(expected.run))
    _order_by_name(result, names)
    problems += explain.origin(result.facts["metadata"], expected.metadata, complete=expected.complete)
    problems += temperature.wrong(result.facts["metadata"], expected.module.temperature)
    heat = temperature.said(result.facts["metadata"], expected.module.temperature)
    problems += gates.behavior(result, names=names, want=want, task=task, split=split, temperature=heat)
    labels = expected.split.y.numpy()
    comparison = compare.compare(result.outputs, want, names=names, labels=labels, task=task)
    if comparison.score:
        found |= gates.figures(result.outputs["all"][0], want["all"][0], labels, task)
        problems += gates.missed(found, expected.limits, task=task, split=split)
    gate = gates.part(found, limits=expected.limits, metadata=result.facts["metadata"])
    return report.artifact(result, comparison, problems=problems) | {"gate": gate}


def _judge_originals(part: dict[str, Any], content: bytes, expected: _Expected, images: originals.Images) -> None:
    """Add what came of the images before they were resized to an artifact's part of the report."""
    part["originals"], problems = originals.judge(
        content, images,
        channels=expected.run.data.sample_shape[0], want=expected.outputs["all"][0], labels=expected.split.y.numpy(),
        task=expected.task, limits=expected.limits if "gate" in part else None,
    )  # fmt: skip
    part["problems"] += problems


def _columns(run: Run, data: Path) -> dict[str, Array] | None:
    """Return the columns of a table's samples by the names of an ONNX file's inputs; None for other data."""
    if not run.data.columns:
        return None
    raw = read_raw(data)
    return {column.input_name: raw[column.name] for column in run.data.columns}


def _inputs(run: Run) -> list[Input]:
    """Return what an ONNX file of a run takes: images or vectors, or the columns of a table."""
    spec = run.data
    if spec.columns:
        return [Input(c.input_name, "object" if c.kind == "category" else "float64", (1,)) for c in spec.columns]
    return [Input(INPUT, spec.dtype, input_shape(run))]


def _order_by_name(result: RunResult, names: tuple[str, ...]) -> None:
    """Bring the outputs of a file that names them, where they are asked for by name, into the order of `names`."""
    found = [output["name"] for output in result.facts["outputs"]]
    if sorted(found) == sorted(names):
        order = [found.index(name) for name in names]
        result.outputs = {case: [arrays[i] for i in order] for case, arrays in result.outputs.items()}


def _outputs_for_raw_input(expected: _Expected) -> Outputs:
    """Return what the network gives without its standardization; nothing where it has none."""
    plain = copy.deepcopy(expected.module)
    if (plain.model.mean == 0).all() and (plain.model.std == 1).all():
        return {}
    plain.model.mean.zero_()
    plain.model.std.fill_(1.0)
    return _eager_outputs(plain, expected.split.x)


def _report(parts: Mapping[str, dict[str, Any]], expected: _Expected, *, data_sha256: str, split_sha256: str) -> dict[str, Any]:
    run, split = expected.run, expected.split
    missed = {name: part for name, part in parts.items() if expected.complete and "gate" in part and part["problems"]}
    kept = {name: part for name, part in parts.items() if name not in missed}
    problems = [f"{part['file']}: {problem}" for part in kept.values() for problem in part["problems"]]
    own = expected.outputs["all"][0]
    reference = {
        "runtime": "torch eager, float32, CPU",
        "version": torch.__version__,
        "metric": report.nan_to_none(compare.score(own, own, split.y.numpy(), expected.task).value),
    }
    return {
        "passed": not problems, "problems": problems, "model": expected.metadata["model"], "task": run.data.task,
        "dataset": run.data.name, "split": expected.split_name, "num_samples": len(split),
        "metric": expected.task.metric,
        "data_sha256": data_sha256, "split_sha256": split_sha256, "weights_sha256": expected.metadata["weights_sha256"],
        "reference": reference,
        "tolerance": {"rtol": compare.RTOL, "atol": compare.ATOL, "allowed": compare.allowed(expected.task), "argmax_flips": 0},
        "batch_sizes": list(BATCH_SIZES), "num_threads": NUM_THREADS,
        "artifacts": kept,
        **({"rejected": missed} if missed else {}),
    }  # fmt: skip
