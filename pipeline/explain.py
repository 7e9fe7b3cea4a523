"""`--explain`: for each stage, whether it would be done, and what has changed since the run that is most like it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline import stages
from pipeline.config import RunConfig
from pipeline.data import prepare
from pipeline.output import say
from pipeline.reuse import RUNS, damage, is_fetched, is_proven, keys_of, known_runs
from pipeline.stages import Key

_SHOWN = 4  # changes that a line names
_SAME = "same"
_BEFORE = {
    "evaluate": ("train",),
    "export": ("train",),
    "verify": ("train", "export"),
    "report": ("train", "evaluate", "export", "verify"),
}


def explain(config: RunConfig, *, export: bool) -> None:
    """Say for each stage whether it would be done, and what has changed since the run that is most like it."""
    if not is_fetched(config):
        say(f"the raw files of {config.dataset} are not in {config.data_dir}: all is to be done")
        return
    folder, identity = prepare.locate(config)
    prepared = {"identity": identity, "spec": {"sha256": ""}}
    is_prepared = prepare.is_intact(folder)
    if is_prepared:
        prepared = prepare.read_manifest(folder)
    wanted = keys_of(config, prepared)
    names = ("prepare", "train", *(stages.LATER if export else ("evaluate",)))
    rows: dict[str, str] = {}
    if (found := _most_alike(wanted)) is None:
        say(f"no run in {RUNS.absolute()} was made by {config.model} on {identity['dataset']}")
        rows = dict.fromkeys(names, "to be done")
    else:
        run, known = found
        say(f"compared with {run}:")
        if not is_prepared:
            wanted["train"]["inputs"]["data"] = known["train"]["inputs"]["data"]
        changes = stages.differences(known["train"], wanted["train"])
        rows["train"] = _told(changes, damage(run, "train"))
        for stage in names[2:]:
            if follows := [each for each in _BEFORE[stage] if rows[each] != _SAME]:
                rows[stage] = f"again: follows {follows[0]}"
                continue
            changes = stages.differences(known.get(stage, {}), stages.with_inputs(run, stage, wanted[stage]))
            why = damage(run, stage) or "its proof failed" * (not is_proven(run, stage))
            rows[stage] = _told(changes if stage in known else [], why or "it was made by hand" * (stage not in known))
        changes = stages.differences(known.get("prepare", {}), identity)
    rows["prepare"] = _SAME if is_prepared else _told(changes if found else [], "its tensors are not there")
    if not is_prepared and rows["train"] == _SAME:
        rows["train"] = "same, if the tensors will be"
    for stage in names:
        say(f"  {stage:9} {rows[stage]}")


def _told(changes: Sequence[str], else_why: str) -> str:
    more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    return f"again: {'; '.join(changes[:_SHOWN])}{more}" if changes else f"again: {else_why}" if else_why else _SAME


def _most_alike(wanted: Mapping[str, Key]) -> tuple[Path, dict[str, Key]] | None:
    """Return the run of the same model and data set with the fewest changes, the newest of equal ones, and its keys."""
    alike: list[tuple[int, int, Path, dict[str, Key]]] = []
    for folder, known in known_runs():
        arguments = known["train"]["arguments"]
        if all(arguments.get(name) == wanted["train"]["arguments"][name] for name in ("model", "dataset")):
            alike.append((len(stages.differences(known["train"], wanted["train"])), len(alike), folder, known))
    if not alike:
        return None
    *_, folder, known = min(alike, key=lambda each: each[:2])
    return folder, known
