"""The run folder: what a training leaves behind, and the only hand-off between stages.

Every file appears under its name only when it is complete. `manifest.json`, written last, holds the SHA-256 of each, and a
stage checks what it is about to read against it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models import build_model
from pipeline import __version__
from pipeline.config import RunConfig, UserError, from_json, to_json
from pipeline.data.catalog import DATASETS
from pipeline.data.prepare import digest_of, read_json, sha256
from pipeline.output import say

if TYPE_CHECKING:
    from torch import Tensor

    from models.preprocess import Model

WEIGHTS = "weights.safetensors"
LAST_WEIGHTS = "last.safetensors"
METRICS = "metrics.jsonl"
SYSTEM = "system.jsonl"
JOURNALS = (METRICS, SYSTEM)  # they grow, so no manifest holds them
LOG = "run.log"  # what the run has said; it grows too
TRACKING = "tracking.json"
EVALUATIONS = ("test.json", "train.json")  # of a split each
_LOCK = ".lock"
_LOCK_WAIT = 5.0  # s: the process that a launcher has just ended may still hold it
_MARGIN = 20_000_000  # bytes
_DATA_KEYS = ("task", "classes", "input_shape", "input_dtype", "input_range", "statistics", "data_sha256")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder's `config.json`: its parameters, where it is tracked, and what its data looked like."""

    folder: Path
    config: RunConfig
    mlflow_run_id: str
    git_commit: str
    data: Mapping[str, Any]

    @property
    def task(self) -> str:
        return DATASETS[self.config.dataset].task

    def build_model(self) -> Model:
        """Return the model of this run with fresh weights, on the CPU."""
        from models.preprocess import statistics

        stats = self.data["statistics"]
        return build_model(
            self.config.model,
            input_shape=tuple(self.data["input_shape"]),
            num_outputs=DATASETS[self.config.dataset].num_outputs,
            preprocess=statistics(
                self.config.preprocess, mean=stats["mean"], std=stats["std"], input_range=self.data["input_range"]
            ),
            options=to_json(self.config),
        )

    def load_model(self, weights: str = WEIGHTS) -> Model:
        """Return the trained model in evaluation mode, float32, on the CPU. Raises UserError where it does not fit."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        model = self.build_model()
        try:
            model.load_state_dict(load_file(self.folder / weights))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(
                f"{self.folder / weights} does not hold the weights of model={self.config.model}: {error}"
            ) from error
        return model.eval()


def holds_run(folder: Path) -> bool:
    return (folder / "config.json").exists() or (folder / "manifest.json").exists()


def refuse_existing(folder: Path) -> None:
    """Raise UserError if `folder` already holds a run."""
    if holds_run(folder):
        raise UserError(f"output_dir={folder} already holds a run. Give another folder, or go on with that run: --resume true.")


def create(folder: Path, *, config: RunConfig, mlflow_run_id: str, git_commit: str, data: Mapping[str, Any]) -> Run:
    """Make a run folder and write its `config.json`.

    Raises UserError if the folder already holds a run or cannot be written.
    """
    refuse_existing(folder)
    run = Run(
        folder=folder,
        config=config,
        mlflow_run_id=mlflow_run_id,
        git_commit=git_commit,
        data={key: data[key] for key in _DATA_KEYS},
    )
    values = {
        "trainyard_version": __version__, "mlflow_run_id": mlflow_run_id, "git_commit": git_commit, "data": run.data,
        "config": to_json(config),
    }  # fmt: skip
    make_folder(folder)
    write_json(folder / "config.json", values | {"sha256": digest_of(values)})
    return run


def make_folder(folder: Path, *, num_bytes: int = 0) -> None:
    """Make a folder that can be written into, on a disk with `num_bytes` left. Raises UserError if that is not to be had."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise UserError(f"output_dir={folder} cannot be written ({error.strerror}). Give a folder that can.") from error
    if free < num_bytes:
        raise UserError(
            f"output_dir={folder}: its disk has {free / 1e6:.0f} MB left, and this training writes about {num_bytes / 1e6:.0f} "
            "MB. Make room, or give a folder on another disk."
        )


def num_bytes(config: RunConfig, data: Mapping[str, Any]) -> int:
    """Return about how much a training writes: checkpoints, weights, exports, and a margin for pictures and rows.

    A checkpoint holds the weights, the best ones, and at most twice as much of the optimiser's; three lie there at a time.
    """
    model = Run(folder=Path(), config=config, mlflow_run_id="", git_commit="", data=data).build_model()
    weights = sum(value.nbytes for value in model.state_dict().values())
    return 3 * 4 * weights + 8 * weights + _MARGIN


def open_run(folder: Path, *, check: bool = True) -> Run:
    """Return the run in `folder`. `check` holds every file against the manifest (a run that never ended has none).

    Raises UserError if the folder holds no run, or a file that is missing or was changed.
    """
    try:
        values = read_json(folder / "config.json")
        if values.pop("sha256") != digest_of(values):
            raise ValueError("its SHA-256 differs, so it was changed")
        run = Run(
            folder=folder,
            config=from_json(values["config"]),
            mlflow_run_id=values["mlflow_run_id"],
            git_commit=values["git_commit"],
            data=values["data"],
        )
    except FileNotFoundError:
        raise UserError(
            f"run={folder} is not a run folder: it has no config.json. Give a folder that `train` wrote, or an MLflow run id."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"run={folder} has a config.json that cannot be read: {error}") from error
    if check:
        _check(folder)
    return run


def _check(folder: Path) -> None:
    if not (folder / "manifest.json").is_file():
        raise UserError(f"run={folder} has no manifest.json: its training did not end. Finish it: --resume true.")
    try:
        digests = read_json(folder / "manifest.json")["sha256"]
        if not (isinstance(digests, dict) and digests.get("config.json") and all(map(_is_below, digests))):
            raise ValueError("it does not name the files of a run")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"run={folder} has a manifest.json that cannot be read: {error}") from error
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"run={folder}: {name} is missing. Fetch it again, or repeat the stage that makes it.")
        if sha256(path) != digest:
            raise UserError(f"run={folder}: {name} is not the file that was written (its SHA-256 differs). Fetch it again.")


def _is_below(name: str) -> bool:
    """Tell whether a manifest's name of a file stays within the run folder."""
    return not Path(name).is_absolute() and ".." not in Path(name).parts


def parse_rows(lines: bytes, path: Path) -> list[dict[str, Any]]:
    """Return the rows of a journal's lines; one that is damaged is passed over, and told."""
    rows = []
    for line in lines.splitlines():
        try:
            row = json.loads(line)
            row["step"] + row["time"]
            rows.append(row)
        except (ValueError, KeyError, TypeError, RecursionError):
            say(f"{path}: a line is damaged and passed over ({line[:40].decode(errors='replace')}...)", error=True)
    return rows


def seal(folder: Path) -> None:
    """Write `manifest.json` over all files of the run that do not change any more; checkpoints carry hashes of their own."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    changing = {"manifest.json", TRACKING, LOG, *JOURNALS}
    kept = [n for n in names if n not in changing and not n.startswith("checkpoints/") and not Path(n).name.startswith(".")]
    write_json(folder / "manifest.json", {"sha256": {name: sha256(folder / name) for name in kept}})


def sealed_files(folder: Path) -> list[str]:
    """Return the names that the manifest holds, relative to the run folder."""
    return list(read_json(folder / "manifest.json")["sha256"])


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process; the system lets go of it however the process ends. Raises UserError if it is held."""
    handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + _LOCK_WAIT
    try:
        while True:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"output_dir={folder} is in use by another process. Wait for its end, or give another folder."
                    ) from None
                time.sleep(0.1)
        yield
    finally:
        os.close(handle)


def in_use(folder: Path) -> bool:
    """Tell whether another process holds a run folder. Never ask for one that this process holds: it would let go of it."""
    try:
        handle = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there takes its name at the end, or is removed on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: object) -> None:
    """Write JSON that a person can read, atomically. NaN and infinity are refused: they are not JSON."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict as safetensors, atomically, from the CPU."""
    from safetensors.torch import save

    with atomic(path) as temporary:
        temporary.write_bytes(save({name: value.detach().cpu().contiguous() for name, value in state.items()}))
