"""The command `search`: on how many ranks, in this process or in workers that it starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pipeline import environment
from pipeline.config import SearchConfig
from pipeline.search import space, storage
from pipeline.search.plan import make_plan


def search(
    config: SearchConfig, flags: Mapping[str, str], *, words: Sequence[str], announce: Callable[[str], None]
) -> int:  # fmt: skip
    """Search in this process, or start the workers that do; `words` are the command line. Returns the exit status."""
    plan = make_plan(config, flags, words)
    storage.need_optuna()
    text = " ".join(dimension.text for dimension in plan.space)
    announce(f"search of {text}: {plan.trials} trials of {plan.config.model}, by {plan.metric}, study {plan.study}")
    from pipeline import distributed, resume
    from pipeline.search import study

    if environment.is_worker():
        environment.refuse_decided(flags)
        return study.search_on_this_rank(plan)
    device = resume.resolve_device(plan.config)
    nproc = distributed.resolve_nproc(plan.config.nproc, device)
    space.resolve_first(plan.fixed, plan.space, world_size=nproc)
    if nproc == 1 and not plan.config.max_restarts:
        return study.search_on_this_rank(plan)
    from pipeline.data.prepare import prepare

    prepare(plan.config)  # a mistake in the data is told before any worker starts
    return distributed.launch(["pipeline", "search", *words, "--device", device], nproc, max_restarts=plan.config.max_restarts)
