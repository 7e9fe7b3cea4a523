"""The model as it is handed over: raw input to named outputs, and what every exported file says about itself.

Each format is made from this one module, so they cannot disagree about what a probability or an output's position is. All that
`export` takes from the description of a run's data, it takes here.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline import __version__
from pipeline.config import RUNTIME_FIELDS, to_json
from pipeline.data.resize import resize
from pipeline.errors import Failure
from pipeline.files import sha256
from pipeline.manifest import WEIGHTS
from pipeline.run import Run
from pipeline.task import Task

if TYPE_CHECKING:
    from models.wrapper import Model

INPUT = "input"
BATCH = "batch"


class ExportError(Failure):
    """A model that a format cannot express. The message names the format, the operator and what to do."""


class ExportModule(nn.Module):
    """(B, *input_shape), uint8 or float32, to a tuple of float32 tensors in the order of the task's `outputs`.

    multiclass and multilabel: logits (B, C), probabilities (B, C), features (B, F). binary: logits (B, 1), probabilities
    (B, 2) with one column a class, features (B, F). regression: prediction (B, K).

    With a `side`, images (B, C, H, W) of any size are first resized to it. `outputs` are the names of what it gives: `features`
    only where the network has any of its own. Probabilities are those of logits / `temperature`, which may be set later.
    """

    def __init__(self, model: Model, *, task: Task, side: int = 0) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.side = side
        self.temperature = 1.0
        self.outputs = tuple(name for name in task.outputs if name != "features" or model.has_features)

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        if self.side:
            input = resize(input, self.side)
        outputs = self.task.export_outputs(*self.model(input), temperature=self.temperature)
        return outputs[: len(self.outputs)]  # features come last


def export_module(run: Run) -> ExportModule:
    """Return a run's trained model, wrapped, on the CPU, in evaluation mode and without gradients. Raises UserError."""
    side = run.data.sample_shape[-1] if run.data.any_size else 0
    return ExportModule(run.load_model(), task=run.task, side=side).eval().requires_grad_(False)


def input_shape(run: Run) -> tuple[int | str, ...]:
    """Return the shape of one sample as an exported file declares it: of dynamic axes, their names."""
    shape = run.data.sample_shape
    return (shape[0], "height", "width") if run.data.any_size else shape


def example_input(run: Run) -> Tensor:
    """Return two zero samples. A size of one, or one that is the same twice, would be taken for a constant."""
    shape = run.data.sample_shape
    if run.data.any_size:
        shape = (shape[0], shape[1] + 3, shape[2] + 5)
    return torch.zeros(2, *shape, dtype=getattr(torch, run.data.dtype))


def metadata(run: Run, *, temperature: float = 1.0) -> dict[str, object]:
    """Return what an artifact tells of its origin, as JSON values, and of the temperature of its probabilities, if not 1."""
    return {
        "model": Path(run.config.model).name,  # of a user's file, no folders: what is handed over names no machine
        "task": run.data.task,
        "classes": list(run.data.classes),
        "input_shape": list(run.data.sample_shape),
        "input_dtype": run.data.dtype,
        "input_range": run.data.value_range and list(run.data.value_range),
        "mlflow_run_id": run.mlflow_run_id,
        "git_commit": run.git_commit,
        "data_sha256": run.data.sha256,
        "weights_sha256": sha256(run.folder / WEIGHTS),
        "trainyard_version": __version__,
        **({"targets": list(run.data.targets)} if run.data.targets else {}),
        **({"any_size": True} if run.data.any_size else {}),
        **({"columns": [column.to_json() for column in run.data.columns]} if run.data.columns else {}),
        **({"temperature": temperature} if temperature != 1 else {}),
    }


def configuration(run: Run) -> dict[str, object]:
    """Return what rebuilds the model around its weights, as JSON values, without the fields that name folders."""
    config = {name: value for name, value in to_json(run.config).items() if name not in RUNTIME_FIELDS}
    return {**metadata(run), "statistics": {"mean": list(run.data.mean), "std": list(run.data.std)}, "config": config}
