"""A trial: an ordinary training in a run folder of its own, below the search's MLflow run, that never sees the test set."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path

from pipeline import distributed, manifest, output, resume, start
from pipeline.distributed import Ranks
from pipeline.fitting import fit
from pipeline.progress import Progress
from pipeline.search.loop import PRUNED, Job
from pipeline.train import Validated, Watch


def train(
    job: Job, watch: Watch, *, folder: Path, ranks: Ranks, tags: Mapping[str, str], again: str, progress: Progress | None
) -> str:
    """Train, or go on with it, and seal the training; return PRUNED where `watch` has ended it, or else "".

    What it says goes to its run.log alone. Nothing is evaluated, exported or drawn.
    """
    flags = dict(job.flags) | {"output_dir": str(folder), "resume": "auto"}
    decided = distributed.run_on_main(lambda: resume.resolve_run(flags, world_size=ranks.world_size), on=ranks.is_main)
    config = resume.with_local_overrides(distributed.broadcast(decided), {k: v for k, v in flags.items() if k != "resume"})
    is_done = ranks.is_main and config.resume == "true" and manifest.is_whole(folder, "train")
    if distributed.broadcast(is_done):  # the worker that has trained it was gone before it could tell the study
        return ""
    ended: list[str] = []

    def noted(found: Validated) -> bool:
        stops = watch(found)
        ended.extend([PRUNED] * stops)
        return stops

    with output.only_logged():
        data = start.prepare_everywhere(config, ranks)
        with start.opened(config, ranks, data, tags) as (run, tracker):
            fit(run, config, ranks, tracker, data, again=again, watch=noted, progress=progress or Progress())
        output.end_log()
    if ranks.device.type == "cuda":
        gc.collect()  # what a training has held of the GPU, before the next one asks for its own
    return ended[0] if ended else ""
