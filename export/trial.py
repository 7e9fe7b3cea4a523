"""Two batches through a network before it is trained: what would only be found when hours of training are to be exported.

It runs on the CPU and leaves torch's random numbers as they were. What has gone wrong is then looked for call by call, so that
the operator and its line can be named: a network without fault pays nothing for that.
"""

from __future__ import annotations

import io
import logging
import math
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from export.formats import onnx as onnx_format
from export.formats import pt2
from export.module import INPUT, ExportModule
from models.external import samples
from models.libraries import library_of
from models.plugin import describe
from pipeline.task import Task

if TYPE_CHECKING:
    from models.wrapper import Data, Model

_BATCH = 5  # few tensors of a network have a first axis that 5 divides, but those whose rows are samples
_DIFFERENT = 1e-4  # of scores, as a share of the largest where that is above 1
_WRONG = 1e-3  # of scores in onnxruntime; that they agree to the last digits is proven on the trained model
_HERE = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")
_OPERATOR = re.compile(r"the operator ([\w.]+) cannot")
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in \S+\n\s*(.+)')
_ANYWAY = "--check_export false trains it all the same."


def trial(
    name: str, build: Callable[[], Model], *, data: Data, task: Task, x: Tensor | None = None, num_ranks: int = 1,
    check_export: bool = True,
) -> list[str]:  # fmt: skip
    """Return what is wrong with the model called `name`, as sentences that begin `model=name `; none is as it should be.

    `build` makes the model anew, on the CPU, in training mode. `x` are at least 9 raw samples of the data (default: random).
    Always looked for: no weights that learn, answers that are not finite, a backward pass that fails, and with several ranks
    weights without a gradient, for which DDP would wait. With `check_export` also: other weights from the same seed (not for a
    library's networks), answers that differ from call to call or hang on the other samples of a batch, buffers that evaluation
    changes, and an ONNX file that cannot be made or answers otherwise. The first of these ends the search, as what follows
    would be due to it.
    """
    x = samples(data, 2 * _BATCH - 1) if x is None else x[: 2 * _BATCH - 1]
    assert len(x) == 2 * _BATCH - 1
    with torch.random.fork_rng(devices=[]):
        model = _drawn(build)
        problems = _training(model, x[:_BATCH], num_ranks)
        if not problems and check_export:
            model = _drawn(build)
            drawn_alike = iter(()) if library_of(name) else _building(model, build)
            found = next(chain(drawn_alike, _evaluation(model, x), _export(model, x, task)), "")
            problems = [f"{found} {_ANYWAY}"] if found else []
    return [f"model={name} {problem}" for problem in problems]


def _drawn(build: Callable[[], Model]) -> Model:
    torch.manual_seed(0)
    return build()


def _training(model: Model, x: Tensor, num_ranks: int) -> list[str]:
    """Answer in both modes and go back through the network once. It is of no use afterwards."""
    weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
    if not weights:
        return ["has no weights that learn. Give it nn.Parameter or layers, as attributes of the module."]
    with torch.no_grad():
        scores, _ = model.eval()(x)
    if problem := _not_finite(scores, "evaluation"):
        return [problem]
    try:
        scores, _ = model.train()(x)
        if not isinstance(scores, Tensor) or scores.shape[:1] != x.shape[:1]:
            return ["answers otherwise in training than in evaluation mode. Let forward return the same in both."]
        if problem := _not_finite(scores.detach(), "training"):
            return [problem]
        if not scores.requires_grad:
            return ["has no weights that learn: its scores do not hang on them. Do not detach them."]
        (scores * torch.linspace(1, 2, scores.numel()).reshape(scores.shape)).sum().backward()
    except Exception as error:  # somebody else's code raises what it likes
        return [f"cannot be trained: {describe(error, skip=_HERE)}."]
    if idle := [n.removeprefix("network.") for n, p in weights.items() if p.grad is None]:
        if len(idle) == len(weights):
            return ["has no weights that learn: its scores do not hang on them."]
        if num_ranks > 1:
            return [
                f"has {len(idle)} weights that its scores do not hang on ({', '.join(idle[:3])}), for whose gradients "
                f"{num_ranks} ranks would wait. Use them or take them out, or train with --nproc 1."
            ]
    return []


def _not_finite(scores: Tensor, mode: str) -> str:
    bad = int((~torch.isfinite(scores)).sum())
    return (
        f"gives {bad} of {scores.numel()} scores that are not finite, in {mode} mode and with fresh weights. Mend the network."
        if bad
        else ""
    )


def _building(model: Model, build: Callable[[], Model]) -> Iterator[str]:
    other = _drawn(build).state_dict()
    changed = [n.removeprefix("network.") for n, value in model.state_dict().items() if not torch.equal(value, other[n])]
    if changed:
        yield f"has other weights when it is built again from the same seed ({changed[0]}). Draw them with torch alone."


def _evaluation(model: Model, x: Tensor) -> Iterator[str]:
    """Yield what is wrong with the answers in evaluation mode."""
    model.eval()
    first, other = x[:_BATCH], torch.cat([x[:1], x[_BATCH:]])
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        scores, again = model(first)[0], model(first)[0]
        if (gap := _gap(scores, again)) > _DIFFERENT:
            place = _first_difference(_calls(model, first), _calls(model, first), lambda call: call.whole)
            yield (
                f"is not deterministic in evaluation mode: two calls differ by {gap:.1g}{place}. Let randomness hang on "
                "self.training."
            )
        if changed := [name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])]:
            buffer = changed[0].removeprefix("network.")
            yield f"changes its buffer {buffer} in evaluation mode. Let that hang on self.training."
        if (gap := _gap(scores[:1], model(other)[0][:1])) > _DIFFERENT:
            place = _first_difference(_calls(model, first), _calls(model, other), lambda call: call.row)
            yield (
                f"mixes the samples of a batch: a sample's scores differ by {gap:.1g} beside other samples{place}. Compute "
                "along other axes than the first."
            )
        try:
            alone = model(x[:1])[0]
            problem = "" if alone.shape == scores[:1].shape else f"gives scores {tuple(alone.shape)} for it"
            gap = 0.0 if problem else _gap(scores[:1], alone)
        except Exception as error:  # somebody else's code raises what it likes
            problem, gap = describe(error, skip=_HERE), 0.0
        if problem:
            yield f"cannot answer a single sample: {problem}. Keep the first axis (no squeeze() without an axis)."
        if gap > _DIFFERENT:
            yield f"mixes the samples of a batch: a sample's scores differ by {gap:.1g} when it is alone."


def _gap(a: Tensor, b: Tensor) -> float:
    """Return by how much scores differ, as a share of the largest where that is above 1."""
    gap = ((a - b).abs().max() / max(1.0, float(a.abs().max()))).item() if a.shape == b.shape else math.inf
    return gap if math.isfinite(gap) else math.inf


@dataclass(frozen=True)
class _Call:
    """A call of a torch function: where, and sums over its result: over all of it, and over the rows of the first sample."""

    name: str
    line: str
    whole: tuple[float, ...]
    row: tuple[float, ...]


class _Recorder(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        value = result[0] if isinstance(result, (tuple, list)) and result else result
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            frames = [f for f in traceback.extract_stack() if not f.filename.startswith(_HERE)]
            line = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}: `{frames[-1].line}`" if frames else ""
            rows = value[: len(value) // _BATCH] if value.ndim and len(value) % _BATCH == 0 else value
            self.calls.append(_Call(resolve_name(func) or func.__name__, line, _sums(value), _sums(rows)))
        return result


def _sums(value: Tensor) -> tuple[float, ...]:
    value = value.detach().double()
    return value.sum().item(), value.abs().sum().item(), value.square().sum().item()


def _calls(model: Model, x: Tensor) -> list[_Call]:
    with _Recorder() as recorder:
        model(x)
    return recorder.calls


def _first_difference(a: Sequence[_Call], b: Sequence[_Call], key: Callable[[_Call], tuple[float, ...]]) -> str:
    """Return `, first in <operator> (<line>)` for the first call whose results differ, or nothing."""
    for one, other in zip(a, b, strict=False):
        close = (math.isclose(u, v, rel_tol=1e-5, abs_tol=1e-6) for u, v in zip(key(one), key(other), strict=True))
        if one.name != other.name or not all(close):
            return f", first in {one.name.removeprefix('torch.')} ({one.line})"
    return ""


def _export(model: Model, x: Tensor, task: Task) -> Iterator[str]:
    """Yield what is wrong with the model as an ONNX file: it is made, and answers batches of two sizes."""
    import onnxruntime

    module = ExportModule(model, task=task).eval().requires_grad_(False)
    with torch.no_grad():
        expected = {count: module(x[:count]) for count in (2, _BATCH)}
    try:
        with _quiet():
            program = pt2.capture(module, x[:2])
        content = onnx_format.build(program, {}, outputs=task.outputs[: len(expected[2])])
    except ValueError as error:
        place = _where(module, x[:2], str(error))
        yield f"cannot be exported: {str(error).replace(' cannot be exported', f' has no translation{place}')}"
        return
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    for count, wanted in expected.items():
        try:
            answer = torch.from_numpy(session.run(None, {INPUT: x[:count].numpy()})[0])
        except Exception as error:  # onnxruntime's errors have no base class of their own
            first = str(error).splitlines()[0] if str(error) else type(error).__name__
            yield f"is exported to an ONNX file that cannot answer {count} samples: {first}."
            return
        if (gap := _gap(wanted[0], answer)) > _WRONG:
            yield f"answers otherwise as an ONNX file: scores of {count} samples differ by {gap:.1g}."
            return


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from printing the graph that it could not finish: the sentence names the line."""
    log = logging.getLogger("torch")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        log.setLevel(level)


def _where(module: ExportModule, x: Tensor, problem: str) -> str:
    """Return ` (<file>:<line>: <text>)` for the operator that a problem names, or nothing."""
    found = _OPERATOR.search(problem)
    if not found:
        return ""
    program = torch.export.export(module, (x.clone(),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for graph in (program.graph, program.run_decompositions().graph):
        for node in graph.nodes:
            if node.op == "call_function" and str(node.target).startswith(found[1]):
                frames = [f for f in _FRAME.findall(node.meta.get("stack_trace", "")) if not f[0].startswith(_HERE)]
                if frames:
                    file, line, text = frames[-1]
                    return f" ({Path(file).name}:{line}: `{text.strip()}`)"
    return ""
