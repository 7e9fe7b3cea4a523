"""An exported .onnx file that answers: all that has to be known of it stands in the file itself.

The decision is taken from the scores, as in training: probabilities of a sure model round to the same 1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data.columns import Column
from pipeline.errors import UserError
from pipeline.values import shown

Array = NDArray[Any]

_NEEDED = {"task": str, "classes": list, "input_shape": list, "input_dtype": str}  # what older files have, too
_OUTPUTS = {
    "multiclass": ("logits", "probabilities"), "binary": ("logits", "probabilities"),
    "multilabel": ("logits", "probabilities"), "regression": ("prediction",),
}  # fmt: skip
_DECIDE: Mapping[str, Callable[[Array], Array]] = {  # as `Task.decide` does it with torch; a regression decides nothing
    "multiclass": lambda scores: scores.argmax(axis=1),
    "binary": lambda scores: (scores[:, 0] > 0).astype(np.int64),
    "multilabel": lambda scores: (scores > 0).astype(np.int64),
}
_REMEDY = "Give a file that `export` wrote: export/model.onnx of a run."


class Unanswered(RuntimeError):
    """The model cannot take these samples. The text is onnxruntime's first line."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What the model says of N samples: `values` are probabilities (N, C), or predictions (N, T) of a regression, float32.

    `decided` has the classes: (N,) int64, or (N, C) of 0 and 1 for multilabel; None for a regression. `is_finite` (N,) is false
    where an answer is no number.
    """

    values: Array
    decided: Array | None
    is_finite: Array


class Tensor(NamedTuple):
    """An input or an output of a file: its name, its type and its sizes, as onnxruntime tells them (None or a name varies)."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A loaded file. `names` are those of the classes or labels, or of the targets (may be empty for one target).

    `columns` are the raw columns that a model for tables takes, in the order of its inputs.
    """

    path: Path
    session: Any
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    task: str
    names: tuple[str, ...]
    input_shape: tuple[int, ...]
    dtype: str
    any_size: bool
    columns: tuple[Column, ...]

    @property
    def is_image(self) -> bool:
        return len(self.input_shape) == 3 and self.input_shape[0] in (1, 3) and self.dtype == "uint8"

    @property
    def has_decisions(self) -> bool:
        """Whether an answer is a class or labels, and no number."""
        return self.task in _DECIDE

    @property
    def decisive(self) -> tuple[str, ...]:
        """The outputs from which answers are read."""
        return _OUTPUTS[self.task]

    def answer(self, inputs: Sequence[Array]) -> Answers:
        """Answer a batch: the one input (B, ...), or one (B, 1) for each of the columns. Raises Unanswered."""
        return self.read(self.run(self.decisive, inputs), len(inputs[0]))

    def run(self, outputs: Sequence[str], inputs: Sequence[Array]) -> list[Array]:
        """Return these outputs for a batch as `answer` takes it. Raises Unanswered."""
        try:
            return self.session.run(outputs, {tensor.name: values for tensor, values in zip(self.inputs, inputs, strict=True)})
        except Exception as error:  # onnxruntime's errors have no base class
            raise Unanswered(_first_line(error)) from error

    def read(self, outputs: Sequence[Array], count: int) -> Answers:
        """Return what the outputs of `decisive` say of `count` samples. Raises Unanswered."""
        scores, values = outputs[0], outputs[-1]
        wanted = len(self.names) or values.shape[-1]
        if values.ndim != 2 or values.shape != (count, wanted):
            raise Unanswered(f"it gives {values.shape} for {count} samples, not {wanted} values for each")
        finite = np.isfinite(values).all(axis=1) & np.isfinite(scores).reshape(len(scores), -1).all(axis=1)
        is_finite: Array = np.asarray(finite)
        decide = _DECIDE.get(self.task)
        decided = decide(scores) if decide else None
        return Answers(values=values, decided=decided, is_finite=is_finite)


def load(path: Path, *, threads: int = 0) -> Model:
    """Return the model that an exported file holds; it computes a batch on `threads`, or on all cores (0).

    Raises UserError for a file that is none, or does not say what it is.
    """
    what = f"onnx={shown(str(path))}"
    if not path.is_file():
        raise UserError(f"{what} is not a file. Give the path of an .onnx file.")
    session = _session(path, what, threads)
    found = metadata(session)
    if lacking := [key for key in _NEEDED if key not in found]:
        raise UserError(f"{what} does not say of itself what it is: its metadata lacks {', '.join(lacking)}. {_REMEDY}")
    wrong = [key for key, kind in _NEEDED.items() if not isinstance(found[key], kind)]
    if not wrong and found["task"] not in _OUTPUTS:
        wrong = ["task"]
    if wrong:
        said = ", ".join(f"{key}={shown(json.dumps(found[key]))}" for key in wrong)
        raise UserError(f"{what} says of itself {said}, which is not understood. {_REMEDY}")
    try:
        model = _model(path, session, found)
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{what} says of itself what is not understood ({_first_line(error)}). {_REMEDY}") from error
    _check(model, what)
    return model


def metadata(session: Any) -> dict[str, Any]:
    """Return what a loaded file says of itself, by name."""
    return {key: _value(text) for key, text in session.get_modelmeta().custom_metadata_map.items()}


def _session(path: Path, what: str, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what goes wrong is told by ourselves
    # Its arena stays on: it keeps the memory of the largest batch, but without it glibc before 2.38 does not reuse the aligned
    # blocks that are freed, and memory grows with each image.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores decode the next images
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"{what} cannot be loaded by onnxruntime ({_first_line(error)}). {_REMEDY}") from error


def _model(path: Path, session: Any, found: Mapping[str, Any]) -> Model:
    has_decisions = found["task"] in _DECIDE
    names = (found["classes"] if has_decisions else []) or found.get("targets") or []
    if not all(isinstance(name, str) for name in names) or (has_decisions and not names):
        raise ValueError("its classes are not given as texts")
    if not found["input_shape"] or not all(isinstance(size, int) and size > 0 for size in found["input_shape"]):
        raise ValueError(f"input_shape={found['input_shape']}")
    if found["input_dtype"] not in ("uint8", "float32"):
        raise ValueError(f"input_dtype={shown(found['input_dtype'])}")
    inputs, outputs = (
        tuple(Tensor(each.name, each.type, tuple(each.shape)) for each in side)
        for side in (session.get_inputs(), session.get_outputs())
    )
    return Model(
        path=path, session=session, inputs=inputs, outputs=outputs, task=found["task"], names=tuple(names),
        input_shape=tuple(found["input_shape"]),
        dtype=found["input_dtype"], any_size=found.get("any_size") is True,
        columns=tuple(Column.from_json(values) for values in found.get("columns") or ()),
    )  # fmt: skip


def _check(model: Model, what: str) -> None:
    """Raise UserError where the graph is not what the metadata says."""
    outputs = [tensor.name for tensor in model.outputs]
    if lacking := [name for name in _OUTPUTS[model.task] if name not in outputs]:
        raise UserError(f"{what} has no output {' or '.join(lacking)}, which a {model.task} model gives. {_REMEDY}")
    num_inputs, wanted = len(model.inputs), len(model.columns) or 1
    if num_inputs != wanted:
        raise UserError(f"{what} has {num_inputs} inputs, and its metadata speaks of {wanted}. {_REMEDY}")


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # somebody else's entry
        return None


def _first_line(error: BaseException) -> str:
    """Return what onnxruntime says first, without its own numbers of the error."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return shown(line.rpartition("] : ")[2].rstrip("."))
