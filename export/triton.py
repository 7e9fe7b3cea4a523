"""A run's proven ONNX file in a Triton server's model repository: the file, its configuration, and the names of its classes.

    REPOSITORY/NAME/config.pbtxt, labels.txt, 1/model.onnx

The configuration counts for all versions of a model, so a further one is added only where it takes and gives the same; what
somebody has changed in it meanwhile stays. Without torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.proven import ProvenFile, proven_file
from pipeline import files, manifest
from pipeline.errors import UserError
from pipeline.release import TritonConfig
from pipeline.run import Run
from pipeline.tracking import registry

FILE, CONFIG, LABELS = "model.onnx", "config.pbtxt", "labels.txt"
_MAX_BATCH, _DELAY_US = 32, 100
_REMEDY = "Give another --name, or take that folder away."
_VERSION = re.compile("[1-9][0-9]*", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_TYPES = {  # of ONNX, by number, as Triton calls them
    1: "TYPE_FP32", 2: "TYPE_UINT8", 3: "TYPE_INT8", 4: "TYPE_UINT16", 5: "TYPE_INT16", 6: "TYPE_INT32", 7: "TYPE_INT64",
    8: "TYPE_STRING", 9: "TYPE_BOOL", 10: "TYPE_FP16", 11: "TYPE_FP64", 12: "TYPE_UINT32", 13: "TYPE_UINT64",
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """An input or output as Triton declares it: `dims` without the batch, -1 where a size may vary."""

    name: str
    data_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Settings:
    """How a model is served, and `why`: sentences that stand above it."""

    max_batch_size: int
    instances: int
    threads: int
    kind: str
    why: tuple[str, ...]


def add(config: TritonConfig, run: Run) -> str:
    """Add a run's file to the repository, as the next version of its model; return what was done.

    Raises UserError where there is no such proven file, or where the model of that name takes or gives something else.
    """
    name = config.name or re.sub("[^A-Za-z0-9_.-]+", "-", registry.model_name(run)).strip("-.")
    if not _NAME.fullmatch(name):
        raise UserError(f"name={name} is no name of a folder that Triton takes. Give --name letters, digits, -, _ and . alone.")
    file, folder = proven_file(run, config.format), Path(config.repository) / name
    inputs, outputs = interface(file.content)
    settings = choose(run, config.format, file, optimize_for=config.optimize_for)
    labels = _labels(run, outputs)
    interface_text = _interface_text(inputs, outputs, labels=bool(labels))
    version, same, is_empty = _next_version(folder, file)
    if same:
        return f"{folder / str(same) / FILE} is this file already. Nothing was written."
    is_new = version == 1 and not (folder / CONFIG).exists()
    if not is_new:
        _refuse_another(folder, interface_text)
    if (folder / LABELS).is_file() and (folder / LABELS).read_bytes() != labels.encode():
        raise UserError(f"{folder / LABELS} names other classes than this model has. {_REMEDY}")
    told = [f"{folder / str(version) / FILE}: {config.format}, SHA-256 {file.sha256[:12]}, of run {run.folder}"]
    try:
        if is_new:
            if labels:
                _write(folder / LABELS, labels.encode())
            _write(folder / CONFIG, _text(name, run, file, settings, interface_text).encode())
        (folder / str(version)).mkdir(exist_ok=is_empty)  # another process may have been faster
        _write(folder / str(version) / FILE, file.content)  # last: a version without its file is none
    except FileExistsError as error:
        raise UserError(f"{folder / str(version)} was made by another process meanwhile. Do it again.") from error
    if is_new:
        told += [f"{folder / CONFIG}: max_batch_size {settings.max_batch_size}, {settings.instances} x {settings.kind}, "
                 f"{settings.threads or 'all'} thread(s) each", *settings.why]  # fmt: skip
    else:
        told.append(f"{folder / CONFIG} was there, fits, and stays as it is")
    return "\n".join(told)


def interface(content: bytes) -> tuple[list[Tensor], list[Tensor]]:
    """Return the inputs and outputs of an ONNX file, less its batch axis."""
    import onnx

    graph = onnx.load_model_from_string(content).graph
    constants = {tensor.name for tensor in graph.initializer}
    return [_tensor(v) for v in graph.input if v.name not in constants], [_tensor(v) for v in graph.output]


def _tensor(value: Any) -> Tensor:
    found = value.type.tensor_type
    _, *dims = found.shape.dim
    return Tensor(value.name, _TYPES[found.elem_type], tuple(d.dim_value if d.HasField("dim_value") else -1 for d in dims))


def choose(run: Run, name: str, file: ProvenFile, *, optimize_for: str) -> Settings:
    """Return how a file is best served, by the figures of the run's benchmark that are of this very file."""
    sealed = manifest.read(run.folder)[1]
    path = run.folder / manifest.BENCHMARK
    report = files.read_json(path) if manifest.BENCHMARK in sealed and files.sha256(path) == sealed[manifest.BENCHMARK] else {}
    rows = _stated(report, name, file)
    if not rows:
        why = f"no benchmark states figures of {name}" if report else "the run has no benchmark"
        return Settings(_MAX_BATCH, 1, 0, "KIND_AUTO", (
            f"{why}: max_batch_size {_MAX_BATCH}, one instance, and as many threads as onnxruntime takes. Better: "
            f"python -m pipeline benchmark --run {run.folder}",
        ))  # fmt: skip
    cores = report["machine"]["cores"]
    largest = max(row["batch"] for row in rows)
    if optimize_for == "latency":
        least = min(row["batch"] for row in rows)
        best = min((row for row in rows if row["batch"] == least), key=lambda row: row["p50_ms"])
        why = f"{best['p50_ms']:.3g} ms (p50) for a batch of {least}, the least that was measured"
        batch = largest
    else:
        best = max(rows, key=lambda row: row["samples_per_s"] * _instances(row, cores))
        rate = best["samples_per_s"] * _instances(best, cores)
        why = f"about {rate:,.0f} samples a second in batches of {best['batch']}".replace(",", " ")
        batch = best["batch"]
        if _instances(best, cores) > 1:
            why += f", if {_instances(best, cores)} instances do not hinder each other: they were measured one at a time"
    kind = "KIND_GPU" if best["format"].endswith("-cuda") else "KIND_CPU"
    where = f"{report['machine']['processor']}, {cores} core(s)"
    return Settings(
        batch, _instances(best, cores), best["threads"], kind, (f"for {optimize_for}, by the benchmark on {where}: {why}",)
    )


def _stated(report: Mapping[str, Any], name: str, file: ProvenFile) -> list[dict[str, Any]]:
    """Return the rows of a benchmark that state figures of a file, on the CPU or on CUDA."""
    names = {each for each in (name, f"{name}-cuda") if report.get("files", {}).get(each, {}).get("sha256") == file.sha256}
    return [row for row in report.get("rows", ()) if row["format"] in names and row["p50_ms"] and row["samples_per_s"]]


def _instances(row: Mapping[str, Any], cores: int) -> int:
    """Return how many such calls the cores compute at once; a GPU takes one after the other."""
    return 1 if row["format"].endswith("-cuda") else max(1, cores // row["threads"])


def _labels(run: Run, outputs: Sequence[Tensor]) -> str:
    """Return the names of the classes, one a line, if an output has one column for each."""
    names = run.data.classes or run.data.targets
    has_one_each = any(tensor.name == "probabilities" and tensor.dims == (len(names),) for tensor in outputs)
    return "".join(f"{' '.join(name.splitlines())}\n" for name in names) if names and has_one_each else ""


def _interface_text(inputs: Sequence[Tensor], outputs: Sequence[Tensor], *, labels: bool) -> str:
    lines = []
    for field, tensors in (("input", inputs), ("output", outputs)):
        for tensor in tensors:
            is_labelled = labels and field == "output" and tensor.name == "probabilities"
            dims = ", ".join(map(str, tensor.dims))
            named = f" label_filename: {_quoted(LABELS)}" if is_labelled else ""
            lines.append(f"{field} {{ name: {_quoted(tensor.name)} data_type: {tensor.data_type} dims: [{dims}]{named} }}")
    return "\n".join(lines) + "\n"


def _text(name: str, run: Run, file: ProvenFile, settings: Settings, interface_text: str) -> str:
    """Return a configuration as Triton's text has it; its schema is Triton's own `model_config.proto`."""
    about = [
        f"Of run {run.mlflow_run_id}, {file.file} with SHA-256 {file.sha256}.",
        *(f"Settings: {why}." for why in settings.why),
    ]
    lines = [
        *(f"# {' '.join(line.split())}" for line in about),
        f"name: {_quoted(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {settings.max_batch_size}",
        interface_text.rstrip(),
        f"instance_group {{ count: {settings.instances} kind: {settings.kind} }}",
    ]
    if settings.max_batch_size > 1:
        lines.append(f"dynamic_batching {{ max_queue_delay_microseconds: {_DELAY_US} }}")
    for key, value in (("intra_op_thread_count", settings.threads), ("inter_op_thread_count", 1)):
        lines.append(f'parameters {{ key: "{key}" value: {{ string_value: "{value}" }} }}')
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """Return a text as protobuf's text format has it: what is not ASCII as the escaped bytes of UTF-8."""
    return '"' + "".join(
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in text.encode()
    ) + '"'  # fmt: skip


def _next_version(folder: Path, file: ProvenFile) -> tuple[int, int, bool]:
    """Return the number of the next version, that of the newest one if it is this file already (or else 0), and whether the
    next one's folder is there, empty, as one that was cut off has left it.
    """
    numbers = [int(path.name) for path in folder.iterdir() if _VERSION.fullmatch(path.name)] if folder.is_dir() else []
    if not numbers:
        return 1, 0, False
    newest = folder / str(max(numbers))
    if newest.is_dir() and not any(newest.iterdir()):
        return max(numbers), 0, True
    is_same = (newest / FILE).is_file() and files.sha256(newest / FILE) == file.sha256
    return max(numbers) + 1, max(numbers) if is_same else 0, False


def _refuse_another(folder: Path, interface_text: str) -> None:
    """Raise UserError unless a model that is there has the same inputs and outputs, as this module writes them."""
    try:
        there = (folder / CONFIG).read_text()
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} has no {CONFIG} that can be read, so its versions are of something else. {_REMEDY}"
        ) from error
    lines = [line for line in there.splitlines() if re.match(r"\s*(input|output)\b", line)]
    wanted = interface_text.splitlines()
    if lines != wanted:
        differs = next((line for line in wanted if line not in lines), lines[0] if lines else "")
        raise UserError(
            f"{folder / CONFIG} is of a model with other inputs or outputs, or was written anew: {differs[:200]!r} stands "
            f"in one alone. {_REMEDY}"
        )


def _write(path: Path, content: bytes) -> None:
    with files.atomic(path) as temporary:
        temporary.write_bytes(content)
