"""Cuts a stage off at each file that it writes, before the file gets its name and after it, and then does the stage again.

    python -m tests.faults.cutter FOLDER CACHE_DIR STAGE SIGNAL...

Imports once and forks for each start, as `tests.faults.killer` does. Prints one JSON line for each fault: the file, the how
many-th write of it, before or after, the signal, how the process ended, and what is otherwise in the end than in a folder whose
stage was never cut off: nothing, if all is well. The MLflow run is the same each time, so that the files can be the same.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import os
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pipeline import files, manifest, signals
from pipeline import run as run_folder
from pipeline.cli import main
from pipeline.run import Run
from tests.faults import inject

forked = partial(inject.forked, seconds=600)
CLOCKS = ("time", "train/samples_per_second")
TRAIN = ["--model", "polynomial", "--epochs", "2", "--output_dir", "run", "--resume", "auto"]
STAGES = {  # the command, and the commands that are done before it
    "train": (["train", *TRAIN], []),
    "run": (["run", *TRAIN], []),
    "evaluate": (["evaluate", "--run", "run"], ["train"]),
    "export": (["export", "--run", "run"], ["train", "export", "verify"]),
    "verify": (["verify", "--run", "run"], ["train", "export", "verify"]),
    "report": (["report", "--run", "run"], ["train", "export", "verify"]),
    "sync": (["sync", "--run", "run"], ["train"]),
}


class Hook:
    """In the place of `Path.replace`, by which every file gets its name: calls `due(name, number, after)` around each."""

    def __init__(self, due: Callable[[str, int, bool], None]) -> None:
        self._due, self._inner = due, Path.replace
        self._counts: Counter[str] = Counter()
        self.names: list[str] = []
        self.wrong: list[str] = []  # files that were written while the manifest said that they are whole

    def __enter__(self) -> Hook:
        hook = self

        def replace(path: Path, target: Any) -> Path:
            name = Path(target).name if Path(target).parent.name == "run" else f"{Path(target).parent.name}/{Path(target).name}"
            folder = Path(target).parents[name.count("/")]
            if name in manifest.read(folder)[1]:
                hook.wrong.append(name)
            hook._counts[name] += 1
            number = hook._counts[name]
            hook.names.append(name)
            hook._due(name, number, False)
            done = hook._inner(path, target)
            hook._due(name, number, True)
            return done

        Path.replace = replace  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *_: object) -> None:
        Path.replace = self._inner  # type: ignore[method-assign]


def rows(folder: Path) -> Counter[tuple[Any, ...]]:
    """Return each figure of a run's journal with how often it stands there, without what a clock says."""
    found = run_folder.parse_rows((folder / manifest.METRICS).read_bytes(), folder / manifest.METRICS)
    figures = [
        (row["step"], k, v)
        for row in found
        for k, v in row.items()
        if k not in CLOCKS and "latency" not in k and "speedup" not in k
    ]
    return Counter(figure for figure in figures if figure[1] not in ("step", "epoch"))


def _report(folder: Path) -> Any:
    path = folder / "export" / "parity.json"
    values = json.loads(path.read_text()) if path.exists() else {}
    for part in (values.get("artifacts", {}) | values.get("rejected", {})).values():
        part.pop("latency_ms_b1")
        part.get("gate", {}).pop("speedup", None)
    return values


def _page(folder: Path) -> str:
    """Return a run's report without the times in it, and without the address that MLflow gives a model anew each time."""
    path = folder / manifest.PAGE
    return re.sub(r'<span class="varies">.*?</span>', "", path.read_text()) if path.exists() else ""


def differences(folder: Path, whole: Path) -> list[str]:
    """Return what of a run is otherwise than in the run that was never cut off."""
    Run.open(folder)
    sealed, expected = (manifest.read(f)[1] for f in (folder, whole))
    found = list(sealed.keys() ^ expected.keys())
    found += [name for name in sealed.keys() & expected.keys() if "parity" not in name and name != manifest.PAGE and
              sealed[name] != expected[name]]  # fmt: skip
    found += [manifest.PAGE] * (_page(folder) != _page(whole))
    found += ["parity"] * (_report(folder) != _report(whole))
    found += [str(figure) for figure in (rows(folder) - rows(whole)) + (rows(whole) - rows(folder))]
    found += [f"leftover {p.relative_to(folder)}" for p in folder.rglob(".*") if p.name != ".lock"]
    parts = json.loads((folder / manifest.TRACKING).read_text())["parts"]
    found += [f"{name} waits" for name, part in parts.items() if part["sent"] < part["version"]]
    return found


def _start(words: list[str], cache_dir: str, due: Callable[[str, int, bool], None], note: Path | None = None) -> None:
    signals.install()
    cache = [] if words[0] in ("export", "sync") else ["--cache_dir", cache_dir]
    with Hook(due) as hook:
        status = main([*words, *cache])
    if note:
        note.write_text(json.dumps({"names": hook.names, "wrong": hook.wrong, "modules": sorted(sys.modules)}))
    sys.exit(status)


def _never(name: str, number: int, after: bool) -> None: ...


def _forget_what_was_sent(folder: Path) -> None:
    """Have `sync` something to do: as if no server had answered while the training went on."""
    note = json.loads((folder / manifest.TRACKING).read_text())
    note["sent_bytes"] = {}
    for part in note["parts"].values():
        part["sent"] = 0
    files.write_json(folder / manifest.TRACKING, note)


def cut(base: Path, cache_dir: str, stage: str, signals: list[str]) -> Iterator[dict[str, Any]]:
    """Yield one row for each write x moment x signal; of `run`, whose writes are those of all stages, for a signal in turn."""
    words, before = STAGES[stage]
    (base / "base").mkdir(parents=True)
    os.chdir(base / "base")

    def begin_run() -> None:
        from pipeline.tracking import runs

        runs.configure()
        Path("id").write_text(runs.create_run())

    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{base}/mlflow.db"
    assert forked(begin_run) == 0
    os.environ["MLFLOW_RUN_ID"] = Path("id").read_text()
    for command in before:
        assert forked(lambda: _start(STAGES[command][0], cache_dir, _never)) == 0, command  # noqa: B023
    if stage == "sync":
        _forget_what_was_sent(Path("run"))

    shutil.copy(base / "mlflow.db", base / "mlflow.start")

    def fresh(name: str) -> Path:
        shutil.copy(base / "mlflow.start", base / "mlflow.db")  # a training does not go into the MLflow run of a finished one
        shutil.copytree(base / "base", base / name)
        os.chdir(base / name)
        return base / name / "run"

    whole = fresh("whole")
    assert forked(lambda: _start(words, cache_dir, _never, base / "names")) == 0
    observed = json.loads((base / "names").read_text())
    assert observed["wrong"] == [], observed["wrong"]
    for module in observed["modules"]:  # once, and not in every child
        with contextlib.suppress(Exception):  # some are none that can be imported by their name
            importlib.import_module(module)
    places = [(name, k + 1) for name, count in Counter(observed["names"]).items() for k in range(count)]
    in_turn = itertools.cycle(signals)
    for name, number in places:
        for after in (False, True):
            for kind in [next(in_turn)] if stage == "run" else signals:

                def strike(found: str, at: int, now: bool) -> None:
                    if (found, at, now) == (name, number, after):  # noqa: B023
                        os.kill(os.getpid(), getattr(signal, kind))  # noqa: B023

                folder = fresh("work")
                status = forked(lambda: _start(words, cache_dir, strike), errors=base / "errors")
                again = forked(lambda: _start(words, cache_dir, _never), errors=base / "errors")
                found = [f"exit {os.waitstatus_to_exitcode(again)}"] if again else differences(folder, whole)
                os.chdir(base)
                shutil.rmtree(base / "work")
                yield {"file": name, "number": number, "after": after, "signal": kind,
                       "status": os.waitstatus_to_exitcode(status), "otherwise": found}  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")
    for row in cut(Path(sys.argv[1]).resolve(), str(Path(sys.argv[2]).resolve()), sys.argv[3], sys.argv[4:]):
        print(json.dumps(row), flush=True)
