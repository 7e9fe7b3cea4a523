"""The run folder: what a training leaves behind, and the only hand-off between stages.

Every file appears under its name only when it is complete, and a stage checks what it is about to read against the manifest. A
folder belongs to one MLflow run, and what says that it is of another one is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models import build_model
from pipeline import __version__, manifest
from pipeline.config import RunConfig, UserError, from_json, to_json
from pipeline.data.catalog import DATASETS
from pipeline.data.prepare import digest_of, read_json, sha256  # noqa: F401, taken from here too
from pipeline.files import atomic, write_json
from pipeline.manifest import EVALUATIONS, JOURNALS, LAST_WEIGHTS, LOCK, LOG, METRICS, TRACKING, WEIGHTS  # noqa: F401, the same
from pipeline.output import say

if TYPE_CHECKING:
    from torch import Tensor

    from models.wrapper import Model

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
        from models.wrapper import statistics

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
        """Return the trained model in evaluation mode, float32, on the CPU.

        Raises UserError for weights that do not fit it, or that another run has learnt.
        """
        from safetensors import SafetensorError, safe_open

        model, path = self.build_model(), self.folder / weights
        try:
            with safe_open(path, framework="pt") as file:
                owner = (file.metadata() or {}).get("mlflow_run_id")
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
            model.load_state_dict(state)
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UserError(f"{path} does not hold the weights of model={self.config.model}: {error}") from error
        if owner != self.mlflow_run_id:
            raise UserError(
                f"{path} holds the weights of MLflow run {owner or 'unknown'}, and not those of {self.mlflow_run_id}. "
                "Put the file back that was there."
            )
        return model.eval()


def is_run_dir(folder: Path) -> bool:
    return (folder / "config.json").exists() or (folder / manifest.MANIFEST).exists()


def ensure_new(folder: Path, *, but: tuple[str, ...] = ()) -> None:
    """Raise UserError if `folder` is there and holds anything `but` some names: a run's folder is for its files alone."""
    if is_run_dir(folder):
        raise UserError(f"output_dir={folder} already holds a run. Give another folder, or go on with that run: --resume true.")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir={folder} is a file. Give a folder, one that is empty or that does not exist yet.")
    if found := [name for name in manifest.foreign(folder) if name not in but]:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise UserError(
            f"output_dir={folder} holds something else ({', '.join(found[:3])}{more}). A run needs a folder of its own: give "
            "one that is empty or that does not exist yet."
        )


def create(folder: Path, *, config: RunConfig, mlflow_run_id: str, git_commit: str, data: Mapping[str, Any]) -> Run:
    """Make a run folder and write its `config.json`.

    Raises UserError if the folder holds anything already or cannot be written.
    """
    ensure_new(folder)
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
    ensure_writable(folder)
    with locked(folder):
        ensure_new(folder)  # another process may have been faster
        write_json(folder / "config.json", values | {"sha256": digest_of(values)})
    return run


def ensure_writable(folder: Path, *, num_bytes: int = 0) -> None:
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


def estimate_size(config: RunConfig, data: Mapping[str, Any]) -> int:
    """Return about how much a training writes: checkpoints, weights, exports, and a margin for pictures and rows.

    A checkpoint holds the weights, the best ones, and at most twice as much of the optimizer's; three lie there at a time.
    """
    model = Run(folder=Path(), config=config, mlflow_run_id="", git_commit="", data=data).build_model()
    weights = sum(value.nbytes for value in model.state_dict().values())
    return 3 * 4 * weights + 8 * weights + _MARGIN


def open_run(folder: Path, *, check: bool = True, stage: str = "") -> Run:
    """Return the run in `folder`.

    `check` holds every file that the manifest names against it, but those that `stage` is about to make anew; a run whose
    training never ended has none. Raises UserError if the folder holds no run, a file that is missing or was changed, a link in
    the place of a file, or files of another run.
    """
    try:
        if not stat.S_ISREG((folder / "config.json").lstat().st_mode):
            raise FileNotFoundError
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
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"run={folder} is not a run folder: it has no config.json. Give a folder that `train` wrote, or an MLflow run id."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"run={folder} has a config.json that cannot be read: {error}") from error
    manifest.refuse_links(folder)
    manifest.refuse_strangers(folder, run.mlflow_run_id)
    if check:
        manifest.need(folder, "train")
        manifest.check(folder, but=manifest.REPLACES.get(stage, ()))
    return run


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


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process; the system lets go of it however the process ends. Raises UserError if it is held.

    What the killed write of an earlier holder has left is removed.
    """
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
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
        manifest.sweep(folder)
        yield
    finally:
        os.close(handle)


def in_use(folder: Path) -> bool:
    """Tell whether another process holds a run folder. Never ask for one that this process holds: it would let go of it."""
    try:
        handle = os.open(folder / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def save_weights(path: Path, state: Mapping[str, Tensor], *, run_id: str) -> None:
    """Write a state dict as safetensors, atomically, from the CPU; it says which MLflow run it is of."""
    from safetensors.torch import save

    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    with atomic(path) as temporary:
        temporary.write_bytes(save(tensors, {"mlflow_run_id": run_id}))
