"""The end of a search: its pictures, what each trial was, and the best one trained anew, exported and proven as `run` does it.

One worker makes the winner, in a study of its own with a single trial: who is killed at it gives it back like any other.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import commands, distributed, files, resume
from pipeline.config import RUNTIME_FIELDS
from pipeline.distributed import Ranks
from pipeline.errors import Failure
from pipeline.flags import program
from pipeline.output import say
from pipeline.plots import search as pictures
from pipeline.plots.style import save
from pipeline.search import space
from pipeline.search.loop import Job, Worker
from pipeline.search.plan import Plan
from pipeline.search.queue import PROBLEM, Queue
from pipeline.search.show import described
from pipeline.search.storage import asking
from pipeline.tracking import parent
from pipeline.train import Watch

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

REPORT = "search.json"
PICTURES = ("importances", "parallel_coordinates")


def make(
    plan: Plan, queue: Queue | None, storage: BaseStorage | None, ranks: Ranks, flags: Mapping[str, str], run_id: str
) -> None:  # fmt: skip
    """Draw, write and say what came of all trials, and train the best anew, unless another worker does or has done so."""
    best = distributed.broadcast(distributed.run_on_main(lambda: _report(plan, queue), on=ranks.is_main))
    number, values = best
    folder = plan.folder / f"winner-{number:04d}"
    whole = space.flags_of(flags, values)
    tags = {parent.CHILD: run_id, "search.study": plan.study, "search.winner": str(number)}

    def perform(job: Job, watch: Watch) -> str:
        if ranks.is_main:
            say(f"training the winner anew, in {folder} ...")
        given = dict(whole) | {"output_dir": str(folder), "resume": "auto"}
        decided = distributed.run_on_main(lambda: resume.resolve_run(given, world_size=ranks.world_size), on=ranks.is_main)
        commands.train(distributed.broadcast(decided), ranks, export=True, tags=tags)
        return ""

    own = None
    if storage:
        with asking(plan.storage):
            own = Queue(storage, f"{plan.study}.{folder.name}", folder=lambda _: folder)
    Worker(
        queue=own, ranks=ranks, storage=plan.storage, most=1, values=lambda _: whole, perform=perform,
        waits=partial(say, "the winner is in other hands: waiting for it ..."),
    ).work()  # fmt: skip
    if ranks.is_main:
        words = [word for name, text in whole.items() if name not in RUNTIME_FIELDS for word in (f"--{name}", text)]
        command = shlex.join([*program().split(), "run", *words])
        parent.tell(run_id, {}, tags={"search.winner": str(number), "search.command": command[:5000]})
        say(f"the winner is trial {number} of {plan.study}, trained anew and proven in {folder}. The same by hand:\n{command}")


def best_of(plan: Plan, trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """Return the best trial of those that had all their epochs, the first one of equal ones."""
    from optuna.trial import TrialState

    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    sign = 1 if plan.is_larger_better else -1
    return max(complete, key=lambda trial: sign * (trial.value if trial.value is not None else -sign * math.inf), default=None)


def texts_of(plan: Plan, trial: FrozenTrial) -> dict[str, str]:
    """Return the values of a trial as the texts that it was trained with."""
    return {d.name: str(trial.params[d.name]) if d.choices else d.written(trial.params[d.name]) for d in plan.space}


def files_of(plan: Plan) -> list[tuple[Path, str]]:
    """Return the files of a search that are there, and in which folder of its MLflow run each belongs."""
    wanted = [(plan.folder / REPORT, ""), *((plan.folder / "plots" / f"{name}.png", "plots") for name in PICTURES)]
    return [(path, folder) for path, folder in wanted if path.is_file()]


def _report(plan: Plan, queue: Queue | None) -> tuple[int, dict[str, str]]:
    """Write and draw what came of the trials; return the best one's number and values. Raises Failure where there is none."""
    assert queue
    with asking(plan.storage):
        trials = queue.trials()
        best = best_of(plan, trials)
        if best is None or best.value is None:
            problems = {trial.user_attrs.get(PROBLEM, "ended early") for trial in trials}
            raise Failure(f"none of {len(trials)} trials had a result: {'; '.join(sorted(problems)[:3])}")
        shares = _importances(queue, plan)
    rows = [_row(plan, trial) for trial in trials]
    files.write_json(plan.folder / REPORT, {
        "study": plan.study, "metric": plan.metric, "space": [dimension.text for dimension in plan.space],
        "best": {"number": best.number, "value": best.value, "values": texts_of(plan, best)},
        "importances": shares, "trials": rows,
    })  # fmt: skip
    scales = {d.name: d.choices or ("log" if d.is_log else "linear") for d in plan.space}
    known = [row for row in rows if len(row["values"]) == len(plan.space)]
    drawn = pictures.parallel_coordinates(known, scales, metric=plan.metric, is_larger_better=plan.is_larger_better)
    about = f"study {plan.study}"
    save(pictures.importances(shares, metric=plan.metric, num_trials=len(rows)), plan.folder / "plots" / f"{PICTURES[0]}.png",
         about=about)  # fmt: skip
    save(drawn, plan.folder / "plots" / f"{PICTURES[1]}.png", about=about)
    beside = f", the recipe itself {trials[0].value:.4f}" if best is not trials[0] and _is_recipe(plan, trials[0]) else ""
    say(f"best of {len(rows)} trials: trial {best.number}, {plan.metric} {best.value:.4f}{beside}: {described(best.params)}")
    say(f"all trials: {plan.folder / REPORT}, pictures in {plan.folder / 'plots'}")
    return best.number, texts_of(plan, best)


def _is_recipe(plan: Plan, trial: FrozenTrial) -> bool:
    """Tell whether a trial is the recipe's, and has a result."""
    return trial.state.name == "COMPLETE" and texts_of(plan, trial) == plan.recipe


def _row(plan: Plan, trial: FrozenTrial) -> dict[str, Any]:
    folder = plan.folder / f"trial-{trial.number:04d}"
    has_all = all(dimension.name in trial.params for dimension in plan.space)
    value = trial.value if trial.value is not None and math.isfinite(trial.value) else None
    return {
        "number": trial.number, "state": trial.state.name.lower(), "is_complete": trial.state.name == "COMPLETE",
        "value": value, "epochs": max(trial.intermediate_values, default=0), "values": texts_of(plan, trial) if has_all else {},
        "seconds": trial.duration.total_seconds() if trial.duration else None, "problem": trial.user_attrs.get(PROBLEM, ""),
        "mlflow_run_id": parent.child_id(folder),
    }  # fmt: skip


def _importances(queue: Queue, plan: Plan) -> dict[str, float]:
    """Return the share of each searched flag; nothing where too few trials differ."""
    import optuna
    from optuna.trial import TrialState

    values = {trial.value for trial in queue.trials() if trial.state == TrialState.COMPLETE}
    if len(values) < 4:
        return {}
    found = optuna.importance.get_param_importances(queue.study)
    return {name: float(share) for name, share in found.items()}
