"""Is what a command would make there already? The runs of ./runs are looked through, and the keys of their stages compared.

A run counts as the result only after each of its files still has the hash that the manifest names. What is left to do of a run
whose training is what is wanted is done in its folder; one that was exported by hand with other flags is left as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline import files, machine, manifest, stages
from pipeline.config import RUNTIME_FIELDS, RunConfig
from pipeline.data import prepare, source_of
from pipeline.errors import UserError
from pipeline.output import say
from pipeline.run import Run, parse_rows
from pipeline.stages import Key
from pipeline.tracking import connection
from pipeline.tracking.journal import Outbox

RUNS = Path("runs")


@dataclass(frozen=True)
class Found:
    """A run whose training is the wanted one, and the stages behind it that are left to do."""

    run: Run
    missing: list[str]

    @property
    def is_all(self) -> bool:
        """Whether nothing is left to do, and MLflow knows it."""
        outbox = Outbox(self.run.folder, self.run.mlflow_run_id)
        return not self.missing and outbox.is_told() and not outbox.is_behind()


def applies(config: RunConfig, flags: Mapping[str, str]) -> bool:
    """Tell whether another run may be taken as the result. Raises UserError for one of `flags` that has no effect."""
    is_new = config.resume == "false" and not config.output_dir
    if not is_new and (given := [name for name in ("cache", "explain") if name in flags]):
        raise UserError(
            f"{given[0]}={flags[given[0]]} has no effect with --output_dir, which asks for that run and no other. Leave "
            f"--{given[0]} out."
        )
    if config.explain and config.cache == "off":
        raise UserError("explain=true compares with runs that cache=off passes over. Leave one of the two out.")
    return is_new and config.cache == "on"


def look(
    config: RunConfig, stack: ExitStack, *, export: bool, num_ranks: int | None = None, waits: bool = True
) -> Found | None:  # fmt: skip
    """Return the run that a configuration means, if it is there. The lock of that training is held by `stack`.

    Another process that does the same training is waited for, or, without `waits`, not asked.
    """
    if not _is_prepared(config):
        prepare.prepare(config)
    keys = keys_of(config, prepare.read_manifest(prepare.prepared_folder(config)), num_ranks=num_ranks)
    stack.enter_context(_alone(config, keys, waits=waits))
    found = find(keys, export=export)
    if found and not found.is_all:
        left = f"to do: {', '.join(found.missing)}" if found.missing else "MLflow was not told all of it"
        say(f"trained already, in {found.run.folder}; {left}")
    return found


def glance(config: RunConfig, *, export: bool) -> Found | None:
    """Return the run that a configuration means, if nothing is left to do there. Nothing is written, waited for or said."""
    if not _is_prepared(config):
        return None
    try:
        keys = keys_of(config, prepare.read_manifest(prepare.prepared_folder(config)))
    except UserError:  # told by whoever looks closer
        return None
    found = find(keys, export=export, tells=lambda _: None)
    return found if found and found.is_all else None


def is_fetched(config: RunConfig) -> bool:
    """Tell whether the raw files of the data are here: nothing is downloaded to look for a result."""
    missing = source_of(config).missing
    return not (missing and missing(config.data_dir))


def _is_prepared(config: RunConfig) -> bool:
    if not is_fetched(config):
        return False
    try:
        return bool(prepare.read_manifest(prepare.prepared_folder(config))["spec"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def continued(config: RunConfig, found: Found) -> RunConfig:
    """Return the configuration by which what is missing of a run that was found is done."""
    asked = {name: getattr(config, name) for name in (*RUNTIME_FIELDS, *stages.EXPORT)}
    return dataclasses.replace(found.run.config, **asked | {"output_dir": str(found.run.folder), "resume": "true"})


def keys_of(config: RunConfig, prepared: Mapping[str, Any], *, num_ranks: int | None = None) -> dict[str, Key]:
    return stages.keys(
        config, prepared, num_ranks=num_ranks or machine.num_ranks(config.nproc, config.device),
        device=machine.kind(config.device), tracking=connection.place(),
    )  # fmt: skip


def find(keys: Mapping[str, Key], *, export: bool, tells: Callable[[str], None] = say) -> Found | None:
    """Return the newest run with these keys; tell why another one that seems so is none."""
    for folder, known in known_runs():
        if known["train"] != keys["train"]:
            continue
        try:
            run = Run.open(folder, check=False)
        except UserError as error:
            tells(f"not taken: {error}")
            continue
        if wrong := damage(folder, "train"):
            tells(f"not taken: {folder} was trained so, but {wrong}")
            continue
        by_hand = [stage for stage in ("export", "verify") if stage not in known and manifest.is_sealed(folder, stage)]
        if export and by_hand:
            tells(f"not taken: {folder} was trained so; its {by_hand[0]} was made by hand, and is left as it is")
            continue
        return Found(run, _missing(folder, known, keys, export=export))
    return None


def known_runs() -> list[tuple[Path, dict[str, Key]]]:
    """Return the run folders that know by what they were trained, the newest first, and the keys of their stages."""
    found = [(path.stat().st_mtime_ns, path.parent) for path in RUNS.glob(f"*/{stages.FILE}")]
    known = [(folder, stages.read(folder)) for _, folder in sorted(found, reverse=True)]
    return [(folder, each) for folder, each in known if "train" in each]


def damage(folder: Path, stage: str) -> str:
    """Return what keeps the files of a stage from being what it has written, or nothing."""
    try:
        if not manifest.is_sealed(folder, stage):
            return "it was not done, or was cut off"
        return next(manifest.damaged(folder, stage), "")
    except UserError:
        return "the manifest cannot be read"


def _missing(folder: Path, known: Mapping[str, Key], keys: Mapping[str, Key], *, export: bool) -> list[str]:
    """Return the stages behind a training that are not there, were damaged, or were made by something else."""
    missing: list[str] = []
    for stage in stages.LATER if export else ("evaluate",):
        own = stages.with_inputs(folder, stage, keys[stage])
        follows = (missing and stage == "report") or ("export" in missing and stage == "verify")
        if follows or known.get(stage) != own or damage(folder, stage) or not is_proven(folder, stage):
            missing.append(stage)
    return missing


def is_proven(folder: Path, stage: str) -> bool:
    """Tell a proof that has passed, or any other stage, from a proof that has failed, which is tried again."""
    if stage != "verify":
        return True
    report = files.read_json(folder / manifest.REPORTS[0])
    return bool(report["passed"] and not report.get("rejected"))


@contextmanager
def _alone(config: RunConfig, keys: Mapping[str, Key], *, waits: bool) -> Iterator[None]:
    """Hold the lock of a training, so that the same command at the same time waits for this one's result."""
    name = files.digest_of({"train": keys["train"], "runs": str(RUNS.absolute())})[:16]
    path = config.cache_dir.expanduser() / "trainings" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(files.locked(path, wait=0))
        except files.Locked:
            if waits:
                say("the same training is going on in another process: waiting for it (--cache off trains beside it) ...")
                stack.enter_context(files.locked(path))
        yield


def tell(found: Found) -> None:
    """Say what was found, and its figures."""
    folder = found.run.folder
    when = datetime.fromtimestamp((folder / stages.FILE).stat().st_mtime).strftime("%Y-%m-%d %H:%M")
    say(f"nothing has changed since run {folder} ({when}): nothing to do (--cache off does it again)")
    rows = parse_rows((folder / manifest.METRICS).read_bytes(), folder / manifest.METRICS)
    final = {name: value for row in rows if row["step"] == 0 for name, value in row.items()}
    figures = {n: v for n, v in final.items() if n.startswith(("test", "train", "baseline")) and "_class_" not in n}
    say("  ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    if (folder / manifest.REPORTS[1]).is_file() and manifest.is_sealed(folder, "verify"):
        say((folder / manifest.REPORTS[1]).read_text().partition("\n## Each batch size")[0])
    say(f"run folder: {folder}, MLflow run {found.run.mlflow_run_id}")
