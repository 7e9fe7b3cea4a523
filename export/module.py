"""The model as it is handed over: raw input to named outputs, and what every exported file says about itself.

Each format is made from this one module, so they cannot disagree about what a probability or an output's position is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipeline import __version__
from pipeline.config import Failure
from pipeline.data.prepare import sha256
from pipeline.run import WEIGHTS, Run

if TYPE_CHECKING:
    from models.wrapper import Model

INPUT = "input"
BATCH = "batch"
METADATA = "metadata.json"  # its name inside the TorchScript and .pt2 archives
_CLASSIFIER = ("logits", "probabilities", "features")
OUTPUTS = {"multiclass": _CLASSIFIER, "binary": _CLASSIFIER, "regression": ("prediction",)}


class ExportError(Failure):
    """A model that a format cannot express. The message names the format, the operator and what to do."""


class ExportModule(nn.Module):
    """(B, *input_shape), uint8 or float32, to a tuple of float32 tensors in the order of `OUTPUTS[task]`.

    multiclass: logits (B, C), probabilities (B, C), features (B, F). binary: logits (B, 1), probabilities
    (B, 2) with one column a class, features (B, F). regression: prediction (B, 1).
    """

    def __init__(self, model: Model, *, task: str) -> None:
        super().__init__()
        self.model = model
        self.task = task

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        output, features = self.model(input)
        if self.task == "regression":
            return (output,)
        if self.task == "binary":
            return output, torch.sigmoid(torch.cat([-output, output], dim=1)), features  # [1 - p, p]
        return output, torch.softmax(output, dim=1), features


def deployed(run: Run) -> ExportModule:
    """Return a run's trained model, wrapped, on the CPU, in evaluation mode and without gradients. Raises UserError."""
    return ExportModule(run.load_model(), task=run.task).eval().requires_grad_(False)


def example_input(run: Run) -> Tensor:
    """Return two zero samples. A batch of one would be taken for a constant."""
    return torch.zeros(2, *run.data["input_shape"], dtype=getattr(torch, run.data["input_dtype"]))


def metadata(run: Run) -> dict[str, object]:
    """Return what an artifact tells of its origin, as JSON values."""
    return {
        "model": run.config.model,
        "task": run.task,
        "classes": run.data["classes"],
        "input_shape": run.data["input_shape"],
        "input_dtype": run.data["input_dtype"],
        "input_range": run.data["input_range"],
        "mlflow_run_id": run.mlflow_run_id,
        "git_commit": run.git_commit,
        "data_sha256": run.data["data_sha256"],
        "weights_sha256": sha256(run.folder / WEIGHTS),
        "trainyard_version": __version__,
    }
