"""Who takes part: the trained model as torch runs it, and each proven file in its runtime, also on CUDA where there is one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from export.benchmark.rounds import Contender
from export.proven import ProvenFile
from pipeline import manifest
from pipeline.errors import UserError
from pipeline.files import sha256
from pipeline.release import MEASURED
from pipeline.run import Run

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_OF_TORCH = ("torch", "torch-compile")


def contenders(run: Run, proven: Mapping[str, ProvenFile], *, formats: str) -> list[Contender]:
    """Return what is measured: what `formats` names, or both of torch and each proven file. Raises UserError for another."""
    there = (*_OF_TORCH, *proven)
    wanted = formats.split(",") if formats else [name for name in MEASURED if name in there]
    if missing := [name for name in wanted if name not in there]:
        raise UserError(
            f"formats={formats}: run={run.folder} has no proven file of {missing[0]}. Measure {', '.join(there)}, or make one: "
            f"python -m pipeline export --run {run.folder} --formats {','.join(['onnx', *(n for n in missing if n != 'onnx')])}"
        )
    return [each for name in wanted for each in _made(run, proven, name)]


def _made(run: Run, proven: Mapping[str, ProvenFile], name: str) -> Iterator[Contender]:
    if name in _OF_TORCH:
        weights = run.folder / manifest.WEIGHTS
        yield Contender(
            name, {"kind": name, "run": str(run.folder.resolve())}, manifest.WEIGHTS, sha256(weights), weights.stat().st_size,
            must=name == "torch",
        )  # fmt: skip
        return
    file = proven[name]
    is_onnx = name.partition("-")[0] == "onnx"
    for provider in _providers() if is_onnx else ("",):
        yield Contender(
            name if provider in ("", _CPU) else f"{name}-cuda",
            {"kind": "onnx", "provider": provider} if is_onnx else {"kind": name},
            file.file, file.sha256, len(file.content), content=file.content, takes_columns=is_onnx and bool(run.data.columns),
            must=provider != _CUDA,
        )  # fmt: skip


def _providers() -> tuple[str, ...]:
    """Return the execution providers that are measured: the CPU, and CUDA where this onnxruntime was built with it."""
    import onnxruntime

    return (_CPU, _CUDA) if _CUDA in onnxruntime.get_available_providers() else (_CPU,)
