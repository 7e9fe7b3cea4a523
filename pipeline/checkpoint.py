"""Checkpoints: snapshot, write in the background, and find the newest one that is whole.

A checkpoint counts only once its hash file lies beside it, written after it, so that a kill at any moment loses nothing that
was saved before.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from pipeline.errors import Failure, UserError
from pipeline.files import atomic, read_json, sha256, write_json
from pipeline.manifest import LAST_WEIGHTS, WEIGHTS
from pipeline.output import say
from pipeline.run import save_weights


def snapshot(value: Any) -> Any:
    """Return a copy of nested dicts, lists and tuples with every tensor copied to the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: snapshot(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(snapshot(entry) for entry in value)
    return value


def best_of(content: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
    """Return the weights of a checkpoint that a run ends with: validation's best, or without one the average, or the last."""
    return content["best_weights"] or content.get("ema") or content["model"]


class Writer:
    """Writes one checkpoint at a time in a thread of its own; as a context, waits for the last one at the end.

    `written` is called with the step of each one that is whole. A write that fails is told at once and costs nothing else:
    training goes on, and the checkpoint before it is kept. If the very last one fails, leaving the context raises Failure.
    """

    def __init__(self, written: Callable[[int], None] = lambda step: None) -> None:
        self._written = written
        self._thread: threading.Thread | None = None
        self._problem = ""

    def start(self, folder: Path, step: int, content: Mapping[str, Any]) -> None:
        """Write weights and checkpoint of a snapshot that nobody else changes."""
        self._wait()
        self._thread = threading.Thread(target=self._write, args=(folder, step, content))
        self._thread.start()

    def _write(self, folder: Path, step: int, content: Mapping[str, Any]) -> None:
        self._problem = ""
        try:
            run_id = content.get("mlflow_run_id", "")
            save_weights(folder / LAST_WEIGHTS, content["model"], run_id=run_id)
            save_weights(folder / WEIGHTS, best_of(content), run_id=run_id)
            save_checkpoint(folder, step, content)
            self._written(step)
        except Exception as error:  # a full disk raises an error of its own in each library: none may pass for a save
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            self._problem = f"the checkpoint of step {step} cannot be written into {folder} ({reason})"
            say(f"{self._problem}; the one before it is kept, and training goes on", error=True)

    def _wait(self) -> None:
        if self._thread:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._wait()
        if self._problem and kind is None:
            raise Failure(f"{self._problem}. Free some space or fix the permissions, then rerun with --resume true.")


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any], *, keep: int = 2) -> Path:
    """Write `checkpoints/step-<step>.pt`, and its hash and the run that it is of beside it; remove all but the newest `keep`.

    A checkpoint counts only once its hash file is there, so a kill in between loses nothing.
    """
    path = folder / "checkpoints" / f"step-{step:09d}.pt"
    with atomic(path) as temporary:
        torch.save(dict(state), temporary)
    note = {"step": step, "sha256": sha256(path), "mlflow_run_id": state.get("mlflow_run_id", "")}
    write_json(path.with_suffix(".json"), note)
    for old in sorted(path.parent.glob("step-*.pt"))[:-keep]:
        old.with_suffix(".json").unlink(missing_ok=True)
        old.unlink()
    return path


def newest_checkpoint(folder: Path, *, run_id: str = "") -> tuple[Path, dict[str, Any]] | None:
    """Return the newest checkpoint that is whole, or None if none was ever finished; says which ones it skipped.

    Raises UserError if there are finished checkpoints and none of them is valid, or if one is of another MLflow run.
    """
    finished = 0
    names = {path.with_suffix(".pt") for path in (folder / "checkpoints").glob("step-*.*")}
    for path in sorted(names, reverse=True):
        if not path.with_suffix(".json").exists():  # the process ended before it was complete
            say(f"checkpoint {path} was never finished and is skipped")
            continue
        finished += 1
        try:
            note = read_json(path.with_suffix(".json"))
            if note != {"step": int(path.stem.removeprefix("step-")), "sha256": sha256(path), "mlflow_run_id": run_id}:
                _refuse_stranger(path, note["mlflow_run_id"], run_id)
                raise ValueError("its SHA-256 differs")
            content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            _refuse_stranger(path, content.get("mlflow_run_id", ""), run_id)
            return path, content
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, AttributeError, pickle.UnpicklingError) as error:
            say(f"checkpoint {path} is damaged and skipped ({str(error).splitlines()[0]})")
    if finished:
        raise UserError(f"output_dir={folder}: none of its {finished} checkpoints is valid. Start a new run in another folder.")
    return None


def _refuse_stranger(path: Path, owner: object, run_id: str) -> None:
    if owner != run_id:
        raise UserError(
            f"checkpoint {path} is of MLflow run {str(owner)[:80] or 'none'}, and not of {run_id or 'none'}, whose folder it "
            "lies in. Take out what was put there by mistake."
        )
