"""A training on all ranks, with what a person sees of it: from its first weights or a checkpoint to the seal of its files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import distributed, files
from pipeline.checkpoint import newest_checkpoint
from pipeline.config import RunConfig
from pipeline.data.loader import open_split
from pipeline.distributed import Ranks
from pipeline.errors import Failure
from pipeline.initial import initial_state
from pipeline.layers import parameter_table
from pipeline.output import say
from pipeline.run import Run
from pipeline.signals import Interrupted
from pipeline.tracking.tracker import NullTracker

if TYPE_CHECKING:
    from pipeline.progress import Progress
    from pipeline.train import Watch


def fit(
    run: Run, config: RunConfig, ranks: Ranks, tracker: NullTracker, folder: Path, *,
    again: str, watch: Watch = lambda found: False, progress: Progress | None = None,
) -> None:  # fmt: skip
    """Train on all ranks, from the newest checkpoint on if there is one, and no longer than `watch` lets it.

    `again` is the command that goes on where a signal has stopped it.
    """
    from pipeline.progress import show
    from pipeline.train import Training

    if ranks.is_main:
        run.unseal("train")
    found = distributed.run_on_main(
        lambda: newest_checkpoint(run.folder, run_id=run.mlflow_run_id), on=config.resume == "true" and ranks.is_main
    )
    checkpoint = distributed.broadcast(found)
    drawn = None if checkpoint else distributed.run_on_main(lambda: initial_state(run), on=ranks.is_main)
    initial = distributed.broadcast(drawn)
    train = open_split(folder, "train", most_gb=config.local_cache_gb)
    training = Training(run, ranks, tracker, train, open_split(folder, "val"), initial=initial)
    if checkpoint:
        training.restore(checkpoint[1])
    if ranks.is_main and run.config.optimizer == "muon" and not training.has_matrices():
        say("muon finds no matrix between the first and the last layer here: every step is AdamW's")
    if ranks.is_main:
        with files.atomic(run.folder / "parameters.md") as path:
            path.write_text("\n".join(parameter_table(training.model)) + "\n")
    with show(
        epochs=training.num_epochs, steps_per_epoch=len(training.batches), first_step=training.state.step,
        is_main=ranks.is_main and progress is None,
    ) as shown:  # fmt: skip
        try:
            with distributed.collective_timeout(config.collective_timeout):
                training.fit(progress or shown, watch)
        except Failure:
            training.keep_best()
            raise
        except Interrupted:
            if ranks.is_main:
                say(f"stopped at step {training.state.step}; the checkpoint is written. Go on with:")
                say(again)
            raise
    if ranks.is_main:
        run.seal("train")
        say(f"best weights: epoch {training.state.best_epoch or training.state.epoch} of {training.state.epoch}")
