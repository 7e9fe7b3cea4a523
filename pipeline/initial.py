"""What a training begins with: the weights as they were drawn, those of a file, or those that a network's library has."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

import models
from models.weights import load_state, load_weights, pretrained
from models.wrapper import Model
from pipeline.config import RunConfig
from pipeline.errors import UserError
from pipeline.output import say
from pipeline.run import Run


def initial_state(run: Run) -> dict[str, Tensor] | None:
    """Return the state that a new training of `run` begins with, and say what is not as one would expect; None: as drawn.

    Raises UserError for weights that cannot be had or do not fit.
    """
    if not run.config.weights and not run.config.pretrained:
        return None
    model = run.build_model()
    for note in load_initial(model, run.config, run=run):
        say(note)
    return dict(model.state_dict())


def load_initial(model: Model, config: RunConfig, *, run: Run | None = None) -> list[str]:
    """Put the weights that a configuration names into a model; return sentences. Without a run, a file is only checked."""
    try:
        if config.weights:
            return load_weights(model, Path(config.weights))
        if config.pretrained and run:
            return load_state(model, pretrained(config.model, run.data))
    except models.PluginError as error:
        given = f"weights={config.weights}" if config.weights else f"model={config.model}"
        raise UserError(f"{given} {error}") from error
    return []
