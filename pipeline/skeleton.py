"""The model of a configuration without its memory, to tell before anything is created that it cannot be trained here."""

from __future__ import annotations

import psutil
import torch

from models import build_model
from models.wrapper import Model
from pipeline.checks import input_shape, layer_of, layer_values
from pipeline.config import RunConfig, UserError, to_json
from pipeline.data.catalog import DATASETS

_COPIES = 8  # of the weights: gradients, two of the optimizer's, the best ones, and the snapshot that a checkpoint is made of
_BATCH = 1000  # samples in one forward pass of an evaluation


def build_skeleton(config: RunConfig) -> Model:
    """Return the model on torch's meta device: shapes and names, no values."""
    data = DATASETS[config.dataset]
    shape = input_shape(config.model, config.dataset)
    fill = [0.0] * shape[0]
    with torch.device("meta"):
        return build_model(
            config.model, input_shape=shape, num_outputs=data.num_outputs, preprocess={"mean": fill, "std": fill},
            options=to_json(config),
        )  # fmt: skip


def refuse_impossible(config: RunConfig, *, num_ranks: int = 1) -> None:
    """Raise UserError where no layer would learn, a named one is not in this model, or `num_ranks` do not fit in memory."""
    model = build_skeleton(config)
    problems = []
    layers = list(dict.fromkeys(layer_of(name) for name, _ in model.named_parameters()))
    rates = layer_values(config.layer_lr)
    for field in ("layer_lr", "layer_weight_decay"):
        text = getattr(config, field)
        if missing := [layer for layer in layer_values(text) if layer not in layers]:
            problems.append(
                f"{field}={text} names {', '.join(missing)}, which this form of model={config.model} lacks. Its layers are: "
                f"{', '.join(layers)}."
            )
    if all(rates.get(layer) == 0 for layer in layers):
        problems.append(f"layer_lr={config.layer_lr} freezes every layer, so that nothing would learn. Leave one out.")
    if (needed := _num_bytes(model, config) * num_ranks) > (there := psutil.virtual_memory().available):
        problems.append(
            f"model={config.model} with these settings needs about {needed / 1e9:,.1f} GB to train, and {there / 1e9:,.1f} GB "
            "are free. Use a smaller --hidden or --batch_size, or fewer processes (--nproc)."
        )
    if problems:
        raise UserError(*problems)


def _num_bytes(model: Model, config: RunConfig) -> int:
    """Return about how much memory one rank takes: the weights in all their copies, and the features of its largest batch."""
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    num_samples = min(max(config.batch_size, _BATCH), DATASETS[config.dataset].num_train)
    widest = max((parameter.shape[0] for parameter in model.parameters() if parameter.ndim), default=1)
    return _COPIES * weights + 2 * 4 * num_samples * widest
