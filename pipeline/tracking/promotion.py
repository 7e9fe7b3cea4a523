"""The way of a proven ONNX file to an alias of MLflow's registry: the gate, the move, and the way back.

What decides is the task's metric on the same test samples, by their SHA-256. Nothing is created before the gate says yes. As
MLflow cannot tell two who move one alias at once, `lease` lets one after the other in, and each is judged anew when it is in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pipeline import run as run_folder
from pipeline.errors import Failure, UserError
from pipeline.output import say
from pipeline.release import PromoteConfig, refuse_name
from pipeline.run import Run
from pipeline.task import task
from pipeline.tracking import connection, history, lease, proof, registry, runs
from pipeline.tracking.history import PROMOTION, ROLLBACK, Move
from pipeline.tracking.proof import Proof


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The version that is to be beaten, and what is proven of it, or why nothing is."""

    version: str
    is_current: bool  # the alias is on it, and was not taken away
    source: str = ""
    run_id: str = ""
    proof: Proof | None = None
    problem: str = ""


def ensure_registry() -> None:
    """Raise UserError where MLflow has no registry that several can use at once, or does not answer."""
    from mlflow import MlflowClient

    connection.configure()
    connection.ask(lambda: MlflowClient().search_registered_models(max_results=1))


def promote(run: Run, config: PromoteConfig) -> None:
    """Register a run's proven ONNX file, unless it is, and move the alias to it if it beats the version that has it.

    Raises Failure where it is not proven or does not win, and UserError where something is missing to tell.
    """
    name, alias = config.name or registry.model_name(run), config.alias
    if problem := refuse_name(name):
        raise UserError(f"{problem} Add --name NAME.")
    with run_folder.locked(run.folder):
        ensure_registry()
        runs.set_parent_run(run.mlflow_run_id)
        own = proof.of_run(run)
        _ensure_fast(run, own, config.max_latency_ms)
        address = proof.confirm(run, own)
        champion = _champion(name, alias)
        if champion and _is_same(champion, name, address, own):
            say(f"{name}@{alias} is version {champion.version} already, which is this file: nothing to do")
            return
        _judge(own, champion, config, name)  # creates nothing if it says no
        connection.ask(lambda: _create(name))
        with lease.held(name, alias) as lock:
            champion = _champion(name, alias, known=champion)
            overruled = _judge(own, champion, config, name)
            version = connection.ask(lambda: _version(name, address, own))
            if config.force.strip():
                connection.ask(lambda: _tag(name, version, f"forced.{alias}", f"{config.force.strip()} ({overruled})"))
            before = champion.version if champion and champion.is_current else ""
            _move(lock, Move(kind=PROMOTION, before=before, after=version, reason=config.force.strip()))
    _say_moved(name, alias, version, own, champion, overruled)


def rollback(config: PromoteConfig) -> None:
    """Give the alias back to the champion before this one, whose file is still the one that was promoted.

    Raises UserError where there is none, and Failure where somebody else moves the alias at the same time.
    """
    name, alias = config.name, config.alias
    ensure_registry()
    if connection.ask(lambda: _registered(name)) is None:
        raise UserError(f"name={name} is no registered model at {connection.shown()}. Look it up with `mlflow ui`.")
    now, moves = connection.ask(lambda: (_aliased(name, alias), history.read(name, alias)))
    version = next((each for each in history.before(moves, now) if _is_usable(name, each)), "")
    if not version:
        where = f"version {now}" if now else "no version"
        raise UserError(
            f"name={name}: {alias} is on {where}, and its history knows no champion before that could be used. Promote another "
            "run, or set the alias with MLflow."
        )
    with lease.held(name, alias) as lock:
        if connection.ask(lambda: (_aliased(name, alias), history.read(name, alias))) != (now, moves):
            raise Failure(
                f"{name}@{alias} was moved by somebody else meanwhile. Look at it, and roll back again if it is to be."
            )
        _move(lock, Move(kind=ROLLBACK, before=now, after=version))
    say(f"{name}@{alias} is version {version} again{f', and was version {now}' * bool(now)}")


def _ensure_fast(run: Run, own: Proof, limit: float) -> None:
    if limit and (found := proof.latency(run, own)) > limit:
        raise Failure(
            f"run={run.folder} is not promoted: model.onnx takes {found:.3g} ms at batch 1 on one thread (p95), and "
            f"max_latency_ms={limit:g}"
        )


def _champion(name: str, alias: str, *, known: Champion | None = None) -> Champion | None:
    """Return the version that has an alias, or had it last; None where none ever had. What is `known` is not fetched again."""
    now, moves = connection.ask(lambda: (_aliased(name, alias), history.read(name, alias)))
    version = now or next(iter(history.standing(moves)[-1:]), "")
    if not version:
        return None
    if known and (known.version, known.is_current) == (version, bool(now)):
        return known
    found = connection.ask(lambda: _found(name, version))
    if found is None:
        return Champion(version=version, is_current=False, problem="it was deleted")
    about: dict[str, Any] = {"version": version, "is_current": bool(now), "source": found.source, "run_id": found.run_id or ""}
    try:
        theirs = proof.of_mlflow(found.run_id or "")
    except Failure as error:
        return Champion(**about, problem=connection.redacted(f"{error}"))
    tagged = found.tags.get("evaluation_sha256")
    if tagged and tagged != theirs.digests[theirs.evaluation]:
        return Champion(**about, problem=f"its {theirs.evaluation} is not the one with which it was promoted")
    return Champion(**about, proof=theirs)


def _is_same(champion: Champion, name: str, address: str, own: Proof) -> bool:
    """Tell whether the alias is on a version with the same file."""
    if not champion.is_current or champion.run_id != own.run_id:
        return False
    return champion.source == address or proof.sha256_of(f"models:/{name}/{champion.version}") == own.digests[proof.ONNX]


def _judge(own: Proof, champion: Champion | None, config: PromoteConfig, name: str) -> str:
    """Return what was overruled by --force, or that nothing was. Raises Failure where a file does not win."""
    reason = _against(own, champion, config.min_gain)
    if not reason or config.force.strip():
        return f"overruled: {reason}" if reason else "nothing was to be overruled"
    stays = f"{name}@{config.alias} stays version {champion.version}: " if champion and champion.is_current else ""
    raise Failure(f"{stays}{reason}. Nothing is promoted; --force REASON does it all the same.")


def _against(own: Proof, champion: Champion | None, min_gain: float) -> str:
    """Return why the comparison speaks against a file, or nothing."""
    if own.split != "test":
        return "this run has no test samples, so its figures are of those that it was trained on"
    if not champion:
        return ""
    if not champion.proof:
        return f"version {champion.version} cannot be compared with: {champion.problem}"
    other, which = champion.proof, f"version {champion.version}"
    if (other.task, other.metric) != (own.task, own.metric):
        return f"{which} is judged by {other.metric} of a {other.task} task, and this run by {own.metric} of a {own.task} task"
    if other.samples_sha256 != own.samples_sha256 or other.split != own.split:
        return (
            f"{which} was tested on other samples (SHA-256 {other.samples_sha256[:12]}, not {own.samples_sha256[:12]}), so "
            "nobody knows which one is better"
        )
    if not champion.is_current and other.digests[proof.ONNX] == own.digests[proof.ONNX]:
        return ""  # it was the champion, until the alias was taken away
    gain = task(own.task).gain(own.value, over=other.value)
    if math.isfinite(gain) and gain > 0 and gain >= min_gain - 1e-12:
        return ""
    needed = f"a gain of {min_gain:g} is asked for (min_gain)" if min_gain else "it has to be better"
    figure = f"{own.metric} {own.value:.6g} on the same {own.num_samples} test samples"
    return f"{figure}, where {which} has {other.value:.6g}: {needed}"


def _move(lock: lease.Lease, move: Move) -> None:
    """Set the alias, see that it is set, and keep the move. Raises Failure where it is another's by then."""
    lock.check()
    connection.ask(lambda: _set(lock.name, lock.alias, move.after))
    if (now := connection.ask(lambda: _aliased(lock.name, lock.alias))) != move.after:
        raise Failure(f"{lock.name}@{lock.alias} was set to version {now or 'none'} by somebody else at the same moment.")
    connection.ask(lambda: history.note(lock.name, lock.alias, lock.number, move))
    lock.check()


def _say_moved(name: str, alias: str, version: str, own: Proof, champion: Champion | None, overruled: str) -> None:
    was = f"; before it: version {champion.version}" if champion else "; it is the first"
    if champion and champion.proof:
        was += f" with {champion.proof.value:.6g}"
    say(f"{name}@{alias} is version {version}: {own.metric} {own.value:.6g} on {own.num_samples} {own.split} samples{was}")
    if overruled.startswith("overruled"):
        say(overruled)
    say(f"serve it: python -m pipeline serve --onnx models:/{name}@{alias}")


def _is_usable(name: str, version: str) -> bool:
    """Tell whether a version is there with the file that was promoted, and say so if it is not."""
    found = connection.ask(lambda: _found(name, version))
    problem = "" if found else "it was deleted"
    if found:
        try:
            is_same = proof.sha256_of(f"models:/{name}/{version}") == found.tags.get("onnx_sha256")
            problem = "" if is_same else "its file is not the one that was promoted"
        except Failure as error:
            problem = connection.redacted(f"{error}")
    if problem:
        say(f"{name} version {version} is passed over: {problem}", error=True)
    return not problem


def _registered(name: str) -> Any:
    from mlflow import MlflowClient

    return _or_none(name, lambda: MlflowClient().get_registered_model(name))


def _found(name: str, version: str) -> Any:
    from mlflow import MlflowClient

    return _or_none(name, lambda: MlflowClient().get_model_version(name, version))


def _aliased(name: str, alias: str) -> str:
    """Return the version that has an alias, "" where none has."""
    from mlflow import MlflowClient

    found = _or_none(name, lambda: MlflowClient().get_model_version_by_alias(name, alias))
    return str(found.version) if found else ""


def _or_none(name: str, question: Any) -> Any:
    """Return what MLflow answers of a registered model, None where there is no such thing."""
    from mlflow import MlflowException

    try:
        return question()
    except MlflowException as error:
        if not connection.is_missing_model(error, name):
            raise
        return None


def _create(name: str) -> None:
    """Create a registered model, unless there is one of that name."""
    from mlflow import MlflowClient, MlflowException

    try:
        MlflowClient().create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _version(name: str, address: str, own: Proof) -> str:
    """Return the version of a logged model, which is created unless there is one."""
    from mlflow import MlflowClient

    client, tags, model = MlflowClient(), proof.as_tags(own), address.removeprefix("models:/")
    for found in client.search_model_versions(f"name='{name}' and run_id='{own.run_id}'"):
        if found.source == address:
            for key, value in tags.items() - found.tags.items():  # it was registered by hand, or evaluated anew
                client.set_model_version_tag(name, found.version, key, value)
            return str(found.version)
    return str(client.create_model_version(name, address, own.run_id, tags=tags, model_id=model).version)


def _tag(name: str, version: str, key: str, text: str) -> None:
    from mlflow import MlflowClient

    MlflowClient().set_model_version_tag(name, version, key, text)


def _set(name: str, alias: str, version: str) -> None:
    from mlflow import MlflowClient

    MlflowClient().set_registered_model_alias(name, alias, version)
