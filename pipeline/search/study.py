"""One worker's search from its beginning to the proven winner. Rank 0 speaks with the study and with MLflow; all ranks train.

What trials have in common is settled once for all workers: the MLflow run above them, and what `precision=auto` is. Who comes
later is held against it, and refused where it would be another search.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models
from pipeline import __version__, commands, distributed, files, losses, resume, start
from pipeline.config import RUNTIME_FIELDS, to_json
from pipeline.data import source_of
from pipeline.data.prepare import read_spec
from pipeline.data.spec import DataSpec
from pipeline.distributed import Ranks
from pipeline.errors import UserError
from pipeline.output import say
from pipeline.recipe import num_epochs
from pipeline.resolve import resolve
from pipeline.run import ensure_writable
from pipeline.search import space, trial, winner
from pipeline.search.loop import Job, Worker
from pipeline.search.plan import Plan
from pipeline.search.queue import PROBLEM, Queue
from pipeline.search.show import Shown, described, show
from pipeline.search.storage import asking, open_storage
from pipeline.signals import Interrupted
from pipeline.skeleton import refuse_impossible
from pipeline.tracking import connection, parent, runs
from pipeline.train import Watch

if TYPE_CHECKING:
    import optuna
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial

MARKER = winner.REPORT  # in the folder of a search: which study it is of, and in the end what came out
_POLL = 0.5  # s between two looks whether another worker has settled what is common
_SHORT = 12  # digits of a hash that are told


def search_on_this_rank(plan: Plan) -> int:
    """Search on this rank, and return 0. Raises UserError, Failure or Interrupted; the same command then goes on."""
    with distributed.process_group(resume.resolve_device(plan.config)) as ranks:
        data = start.prepare_everywhere(plan.config, ranks)
        opened = distributed.run_on_main(lambda: _open(plan, data, ranks), on=ranks.is_main)
        settled: Mapping[str, Any] = distributed.broadcast(opened[1] if opened else None)
        flags = dict(plan.fixed) | {"precision": settled["precision"]}
        queue = _queue(plan, opened[0]) if opened else None
        with _tracked(plan, queue, settled["mlflow_run_id"]):
            if ranks.is_main:
                _say_where_it_begins(plan)
            with show(plan.trials, plan.metric) as shown:
                _worker(plan, queue, ranks, flags, settled["mlflow_run_id"], shown).work()
            winner.make(plan, queue, opened[0] if opened else None, ranks, flags, settled["mlflow_run_id"])
    return 0


def _open(plan: Plan, data: Path, ranks: Ranks) -> tuple[BaseStorage, Mapping[str, Any]]:
    """Open the search's folder and its study, on rank 0. Raises UserError for another search's, and leaves nothing then."""
    spec = read_spec(data)
    if not spec.counts.get("val"):
        raise UserError(
            f"dataset={plan.config.dataset} has no validation samples, and by these a search compares its trials. Add some: "
            "--val_split 0.1, or rows of the split val."
        )
    commands.try_network(plan.config, ranks, data)
    connection.configure()
    with _marked(plan):
        storage = open_storage(plan.storage)
        with asking(plan.storage):
            settled = _settle(plan, storage, spec, data, ranks)
        _refuse_another(plan, settled["identity"], identity(plan, spec))
    parent.join(settled["mlflow_run_id"])
    return storage, settled


@contextmanager
def _marked(plan: Plan) -> Iterator[None]:
    """Make the folder that is this search's, and take it away again if the block fails and nothing else is in it."""
    path, others = plan.folder / MARKER, []
    if plan.folder.exists():
        others = sorted(p.name for p in plan.folder.iterdir() if not p.name.startswith("."))
    if path.exists():
        try:
            study = files.read_json(path)["study"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"output_dir={plan.folder} has a {MARKER} that cannot be read. Give another folder.") from error
        if study != plan.study:
            raise UserError(f"output_dir={plan.folder} is of study={study}. Give another folder, or --study {study}.")
        yield
        return
    if others:
        raise UserError(
            f"output_dir={plan.folder} holds something else ({', '.join(others[:3])}). A search needs a folder of its own: "
            "give one that is empty or that does not exist yet."
        )
    ensure_writable(plan.folder)
    files.write_json(path, {"study": plan.study})
    try:
        yield
    except BaseException:
        if sorted(p.name for p in plan.folder.iterdir()) == [MARKER]:
            path.unlink()
            plan.folder.rmdir()
        raise


def _settle(plan: Plan, storage: BaseStorage, spec: DataSpec, data: Path, ranks: Ranks) -> Mapping[str, Any]:
    """Return what is common to all workers; the first one decides it, as a study of a single trial that it takes."""
    from optuna.trial import TrialState

    queue = Queue(storage, f"{plan.study}.setup")
    while True:
        if taken := queue.take(1):
            try:
                with queue.lease(taken).kept():
                    config = start.settle_precision(plan.config, ranks, data, spec)
                    own = identity(plan, spec)
                    run_id = parent.begin(
                        dataset=spec.name, name=plan.folder.resolve().name, tags={"search.study": plan.study},
                        params={"space": " ".join(own["space"]), "trials": str(plan.trials), "storage": plan.storage,
                                **{name: str(own[name]) for name in ("model", "metric", "pruner", "data_sha256")}},
                    )  # fmt: skip
                    settled = {"identity": own, "mlflow_run_id": run_id, "precision": config.precision,
                               "trainyard_version": __version__}  # fmt: skip
                    taken.set_user_attr("settled", settled)
                    queue.study.tell(taken, 0.0)
                return settled
            except BaseException:
                queue.give_back(taken.number)
                raise
        if found := [t for t in queue.trials() if t.state == TrialState.COMPLETE]:
            decided: Mapping[str, Any] = found[0].user_attrs["settled"]
            return decided
        time.sleep(_POLL)


def identity(plan: Plan, spec: DataSpec) -> dict[str, Any]:
    """Return what makes two searches the same one, as JSON values: not where and how they are computed."""
    searched = {dimension.name for dimension in plan.space}
    apart = RUNTIME_FIELDS | {"model", "loss", "dataset", "precision" if plan.config.precision == "auto" else ""} | searched
    fields = {name: value for name, value in to_json(plan.config).items() if name not in apart}
    for name in ("model_args", "loss_args"):
        fields[name] = {k: v for k, v in fields[name].items() if f"{name}.{k}" not in searched}
    sources = {"model": models.source_of(plan.config.model), "loss": losses.source_of(plan.config.loss)}
    return {
        "model": models.label(plan.config.model), "metric": plan.metric, "pruner": plan.pruner,
        "space": [dimension.text for dimension in plan.space], "data_sha256": spec.sha256,
        "code_sha256": {name: source.sha256 for name, source in sources.items() if source}, "config": fields,
    }  # fmt: skip


def _refuse_another(plan: Plan, theirs: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    flat, mine = ({**each, **each["config"]} for each in (theirs, own))
    names = [name for name in {**flat, **mine} if name != "config" and flat.get(name) != mine.get(name)]

    def told(value: Any) -> str:
        text = " ".join(value) if isinstance(value, list) else str(value)
        return text[:_SHORT] if len(text) == 64 and " " not in text else text

    if names:
        raise UserError(*(
            f"study={plan.study} was made with {name}={told(flat.get(name))}, and this is {name}={told(mine.get(name))}. Give "
            "the same, or another --study."
            for name in names
        ))  # fmt: skip


def _queue(plan: Plan, storage: BaseStorage) -> Queue:
    import optuna

    epochs = num_epochs(vars(plan.config), source_of(plan.config))
    pruners: Mapping[str, Any] = {
        "median": lambda: optuna.pruners.MedianPruner(),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(max_resource=epochs),
        "none": lambda: optuna.pruners.NopPruner(),
    }
    with asking(plan.storage):
        return Queue(
            storage, plan.study, direction="maximize" if plan.is_larger_better else "minimize", pruner=pruners[plan.pruner](),
            seed=plan.config.seed, folder=lambda number: folder_of(plan, number),
            first={dimension.name: dimension.param(plan.recipe[dimension.name]) for dimension in plan.space if plan.recipe},
        )  # fmt: skip


def _say_where_it_begins(plan: Plan) -> None:
    if plan.recipe:
        say(f"trial 0 is the recipe itself: {described(plan.recipe)}")
    elif plan.missing:
        say(f"the recipe itself is no trial: its {plan.missing} is not in --space")


def folder_of(plan: Plan, number: int) -> Path:
    return plan.folder / f"trial-{number:04d}"


def _worker(
    plan: Plan, queue: Queue | None, ranks: Ranks, flags: Mapping[str, str], run_id: str, shown: Shown
) -> Worker:  # fmt: skip
    progress: dict[int, Any] = {}

    def values(taken: optuna.Trial) -> Mapping[str, str]:
        asked = space.flags_of(flags, {dimension.name: dimension.ask(taken) for dimension in plan.space})
        refuse_impossible(resolve(asked, world_size=ranks.world_size))
        return asked

    def perform(job: Job, watch: Watch) -> str:
        tags = {parent.CHILD: run_id, "search.study": plan.study, "search.trial": str(job.number)}
        return trial.train(
            job, watch, folder=folder_of(plan, job.number), ranks=ranks, tags=tags, again=plan.again,
            progress=progress.get(job.number),
        )  # fmt: skip

    def began(number: int) -> None:
        progress[number] = shown.began(number)

    def ended(told: FrozenTrial) -> None:
        assert queue
        best = winner.best_of(plan, queue.trials())
        done = sum(each.state.is_finished() for each in queue.trials())
        shown.ended(told, best=best, num_ended=done, problem=told.user_attrs.get(PROBLEM, ""))
        metrics = {} if told.value is None else {"search/value": told.value}
        metrics |= {} if best is None else {"search/best": best.value or 0.0}
        parent.tell(run_id, metrics, step=told.number, tags=runs.owner())

    return Worker(
        queue=queue, ranks=ranks, storage=plan.storage, most=plan.trials, values=values, perform=perform, metric=plan.metric,
        began=began, ended=ended, waits=partial(say, "the last trials are in other hands: waiting for them ..."),
    )  # fmt: skip


@contextmanager
def _tracked(plan: Plan, queue: Queue | None, run_id: str) -> Iterator[None]:
    """Have the search's MLflow run end as the block does; while others work, it goes on."""
    try:
        yield
    except BaseException as error:
        if queue:
            is_stop = isinstance(error, Interrupted)
            if is_stop:
                say(f"stopped; what was found is kept. Go on with:\n{plan.again}")
            if not queue.others_work():
                parent.end(run_id, "KILLED" if is_stop else "FAILED")
        raise
    if queue:
        parent.end(run_id, "FINISHED", files=winner.files_of(plan))
