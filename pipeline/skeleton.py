"""The model of a configuration without its memory, to tell before anything is created that it cannot be trained here."""

from __future__ import annotations

import psutil
import torch

import models
from models.wrapper import Model
from pipeline import data, layers, losses
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.initial import load_initial
from pipeline.resolve import argument_problems
from pipeline.task import task

_COPIES = 9  # of the weights: as drawn, gradients, two of the optimizer's, the best, a checkpoint's snapshot of them
_MARGIN = 20_000_000  # bytes
_TRIED = 4  # samples on which an own loss is tried
_BATCH = 1000  # samples in one forward pass of an evaluation


def build_skeleton(config: RunConfig) -> Model:
    """Return the model on torch's meta device: shapes and names, no values.

    Raises UserError for arguments that its network does not take.
    """
    try:
        own = models.parameters(config.model)
    except models.PluginError as error:
        raise UserError(f"model={config.model} {error}") from error
    if config.model in models.MODELS and (problems := argument_problems(config.model_args, own, config.model)):
        raise UserError(*(f"model_args: {problem}" for problem in problems))
    spec = data.source_of(config).spec.resized(config.image_size)
    try:
        with torch.device("meta"):
            return models.build(config.model, spec, config.model_args)
    except models.PluginError as error:
        raise UserError(f"model={config.model} {error}") from error
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(f"model_args: {config.model} cannot be built with these arguments ({reason}). Change them.") from error


def num_weight_bytes(model: Model) -> int:
    """Return how much memory the weights take once."""
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def estimate_size(config: RunConfig) -> int:
    """Return about how many bytes a training writes: checkpoints, weights, exports, and a margin for pictures and rows.

    A checkpoint holds the weights, their average, the best ones, and at most twice as much of the optimizer's; three lie there
    at a time.
    """
    weights = num_weight_bytes(build_skeleton(config))
    return 3 * (4 + bool(config.ema_decay)) * weights + 8 * weights + _MARGIN


def refuse_impossible(config: RunConfig, *, num_ranks: int = 1) -> None:
    """Raise UserError where weights or settings of single layers do not fit this model, or `num_ranks` not in memory."""
    model = build_skeleton(config)
    load_initial(model, config)
    problems = layers.problems(model, config) + _wrong_loss(config)
    if (needed := _num_bytes(model, config) * num_ranks) > (there := psutil.virtual_memory().available):
        problems.append(
            f"model={config.model} with these settings needs about {needed / 1e9:,.1f} GB to train, and {there / 1e9:,.1f} GB "
            "are free. Use a smaller network (--model_args) or --batch_size, or fewer processes (--nproc)."
        )
    if problems:
        raise UserError(*problems)


def _wrong_loss(config: RunConfig) -> list[str]:
    """Return what is wrong with a loss that is the user's own: it is loaded, and tried on four samples."""
    if not losses.is_own(config.loss):
        return []
    try:
        found = losses.parameters(config.loss)
    except UserError as error:
        return list(error.messages)
    except (ValueError, TypeError, NameError) as error:  # no signature, or annotations that do not resolve
        return [f"loss={config.loss} has no signature that can be read ({error}). Name a function of scores and targets."]
    if problems := argument_problems(config.loss_args, found, config.loss):
        return [f"loss_args: {problem}" for problem in problems]
    spec = data.source_of(config).spec
    scores = torch.randn(_TRIED, spec.num_outputs, generator=torch.Generator().manual_seed(0))
    target = task(spec.task).some_targets(scores, len(spec.classes))
    problem = losses.wrong_losses(config.loss, config.loss_args, scores, target)
    return [f"loss={config.loss} {problem}"] if problem else []


def _num_bytes(model: Model, config: RunConfig) -> int:
    """Return about how much memory one rank takes: the weights in all their copies, and the features of its largest batch."""
    num_samples = min(max(config.batch_size, _BATCH), data.source_of(config).num_train)
    widest = max((parameter.shape[0] for parameter in model.parameters() if parameter.ndim), default=1)
    return (_COPIES + 2 * bool(config.ema_decay)) * num_weight_bytes(model) + 2 * 4 * num_samples * widest
