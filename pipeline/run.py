"""The run folder: what a training leaves behind, and the only hand-off between stages.

Every file appears under its name only when it is complete, and a stage checks what it is about to read against the manifest. A
folder belongs to one MLflow run, and what says that it is of another one is refused.
"""

from __future__ import annotations

import copy
import json
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models
from models.plugin import is_file
from pipeline import __version__, files, losses, manifest, stages
from pipeline.config import RunConfig, from_json, to_json
from pipeline.data.spec import DataSpec
from pipeline.errors import UserError
from pipeline.manifest import LOCK, WEIGHTS
from pipeline.output import say
from pipeline.task import Task, task

if TYPE_CHECKING:
    from torch import Tensor

    from models.wrapper import Model

_SOURCES = {"model": models.source_of, "loss": losses.source_of}  # the code of what may be a file of the user's
_LOCK_WAIT = 5.0  # s: the process that a launcher has just ended may still hold it


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder's `config.json`: its parameters, where it is tracked, and what its data is."""

    folder: Path
    config: RunConfig
    mlflow_run_id: str
    git_commit: str
    data: DataSpec
    code: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Of an own model, an own loss, by field: the `name` within its folder of code, and the `sha256`."""
    keys: Mapping[str, stages.Key] = field(default_factory=dict)
    """The keys of the stages that this process does, so that another one knows the result again."""

    @classmethod
    def create(cls, folder: Path, *, config: RunConfig, mlflow_run_id: str, git_commit: str, data: DataSpec) -> Run:
        """Make a run folder and write its `config.json`.

        Raises UserError if the folder holds anything already or cannot be written.
        """
        ensure_new(folder)
        sources = {name: find(getattr(config, name)) for name, find in _SOURCES.items()}
        code = {name: {"name": source.name, "sha256": source.sha256} for name, source in sources.items() if source}
        run = cls(folder=folder, config=config, mlflow_run_id=mlflow_run_id, git_commit=git_commit, data=data, code=code)
        values = {
            "trainyard_version": __version__, "mlflow_run_id": mlflow_run_id, "git_commit": git_commit,
            "data": data.to_json(), "config": to_json(config), **{manifest.CODE[name]: kept for name, kept in code.items()},
        }  # fmt: skip
        ensure_writable(folder)
        with locked(folder):
            ensure_new(folder)  # another process may have been faster
            files.write_json(folder / "config.json", values | {"sha256": files.digest_of(values)})
            run.keep_code()
        return run

    @classmethod
    def open(cls, folder: Path, *, check: bool = True, stage: str = "") -> Run:
        """Return the run in `folder`.

        `check` holds every file that the manifest names against it, but those that `stage` is about to make anew; a run whose
        training never ended has none. Raises UserError if the folder holds no run, a file that is missing or was changed, a
        link in the place of a file, or files of another run.
        """
        try:
            if not stat.S_ISREG((folder / "config.json").lstat().st_mode):
                raise FileNotFoundError
            values = files.read_json(folder / "config.json")
            if values.pop("sha256") != files.digest_of(values):
                raise ValueError("its SHA-256 differs, so it was changed")
            run = cls(
                folder=folder,
                config=from_json(values["config"]),
                mlflow_run_id=values["mlflow_run_id"],
                git_commit=values["git_commit"],
                data=DataSpec.from_json(values["data"]),
                code={name: dict(values[folder]) for name, folder in manifest.CODE.items() if values.get(folder)},
            )
            models.find(run.model)
            run.check_code()
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"run={folder} is not a run folder: it has no config.json. Give a folder that `train` wrote, or an MLflow run "
                "id."
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"run={folder} has a config.json that cannot be read: {error}") from error
        manifest.refuse_links(folder)
        manifest.refuse_strangers(folder, run.mlflow_run_id)
        if check:
            manifest.need(folder, "train")
            manifest.check(folder, but=manifest.REPLACES.get(stage, ()))
        return run

    @property
    def task(self) -> Task:
        return task(self.data.task)

    @property
    def model(self) -> str:
        """The name by which the model is built: of an own one, that of the copy of its code which lies in the run folder."""
        return self._named("model")

    @property
    def loss(self) -> str:
        """The name by which the loss is had, likewise."""
        return self._named("loss")

    @property
    def own_files(self) -> dict[str, str]:
        """The names by which model and loss are had, by field, of those that are code of a user's file, kept or not."""
        is_own = {name: name in self.code or is_file(getattr(self.config, name).rpartition(":")[0]) for name in _SOURCES}
        return {name: self._named(name) for name in _SOURCES if is_own[name]}

    def _named(self, name: str) -> str:
        given: str = getattr(self.config, name)
        if name not in self.code:
            return given
        kept = self.folder.absolute() / manifest.CODE[name] / self.code[name]["name"]
        return str(kept) if kept.with_name(kept.name.rpartition(":")[0]).is_file() else given

    def build_model(self) -> Model:
        """Return the model of this run with fresh weights, drawn from the run's seed, on the CPU."""
        spec, args = (json.dumps(values, sort_keys=True) for values in (self.data.to_json(), dict(self.config.model_args)))
        self.check_code()
        try:
            return copy.deepcopy(_built(self.model, spec, args, self.config.preprocess, self.config.seed))
        except models.PluginError as error:
            raise UserError(f"model={self.config.model} {error}") from error

    def keep_code(self) -> None:
        """Copy the code of an own model and an own loss into the run folder, unless it is there.

        This comes after `config.json`, which makes the folder a run: a start that was cut off in between can be resumed. The
        file that is named comes last of each, as it is the one that says that all are there.
        """
        for name in self.code:
            given = self._named(name)
            if given == getattr(self.config, name) and (source := _SOURCES[name](given)):
                for file, content in reversed(source.files.items()):
                    with files.atomic(self.folder / manifest.CODE[name] / file) as temporary:
                        temporary.write_bytes(content)

    def check_code(self) -> None:
        """Raise UserError where own code is not that of the training; a host without the copy has the original."""
        for name, code in self.code.items():
            given = self._named(name)
            if (now := _SOURCES[name](given)) and now.sha256 != code["sha256"]:
                raise UserError(
                    f"{name}={getattr(self.config, name)}: {given} is not the code that this run is of (its SHA-256 differs). "
                    "Put back what was there."
                )

    def note(self, stage: str) -> None:
        """Write down by what `stage` has made its files, before they are sealed."""
        key = self.keys.get(stage)
        stages.note(self.folder, stage, stages.with_inputs(self.folder, stage, key) if key and stage != "train" else key)

    def seal(self, stage: str) -> None:
        """Put the files that `stage` makes into the manifest: it has written all of them."""
        self.note(stage)
        manifest.seal(self.folder, self.mlflow_run_id, *manifest.FILES[stage])

    def unseal(self, stage: str) -> None:
        """Take what no longer holds out of the manifest: `stage` is about to write. A page that speaks of all of it goes."""
        manifest.unseal(self.folder, self.mlflow_run_id, *manifest.REPLACES[stage])
        (self.folder / manifest.PAGE).unlink(missing_ok=True)

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


@lru_cache(maxsize=1)
def _built(name: str, data: str, args: str, preprocess: str, seed: int) -> Model:
    """Build a model once in a process: a large one takes its time."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.build(name, DataSpec.from_json(json.loads(data)), json.loads(args), preprocess=preprocess)


def is_run_dir(folder: Path) -> bool:
    return (folder / "config.json").exists() or (folder / manifest.MANIFEST).exists()


def ensure_new(folder: Path, *, but: tuple[str, ...] = ()) -> None:
    """Raise UserError if `folder` is there and holds anything `but` some names: a run's folder is for its files alone."""
    if is_run_dir(folder):
        raise UserError(f"output_dir={folder} already holds a run. Give another folder, or resume that run: --resume true.")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir={folder} is a file. Give a folder, one that is empty or that does not exist yet.")
    if found := [name for name in manifest.foreign(folder) if name not in but]:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise UserError(
            f"output_dir={folder} holds something else ({', '.join(found[:3])}{more}). A run needs a folder of its own: give "
            "one that is empty or that does not exist yet."
        )


def ensure_writable(folder: Path, *, num_bytes: int = 0) -> None:
    """Make a folder that can be written into, on a disk with `num_bytes` left. Raises UserError if either is impossible."""
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


def parse_rows(lines: bytes, path: Path) -> list[dict[str, Any]]:
    """Return the rows of a journal's lines; one that is damaged is skipped, and reported."""
    rows = []
    for line in lines.splitlines():
        try:
            row = json.loads(line)
            row["step"] + row["time"]
            rows.append(row)
        except (ValueError, KeyError, TypeError, RecursionError):
            say(f"{path}: a line is damaged and skipped ({line[:40].decode(errors='replace')}...)", error=True)
    return rows


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process. Raises UserError if another one holds it.

    What the killed write of an earlier holder has left is removed.
    """
    try:
        with files.locked(folder / LOCK, wait=_LOCK_WAIT):
            manifest.sweep(folder)
            yield
    except files.Locked:
        raise UserError(
            f"output_dir={folder} is in use by another process. Wait for its end, or give another folder."
        ) from None


def in_use(folder: Path) -> bool:
    """Tell whether another process holds a run folder; never ask for one that this process holds."""
    return files.is_locked(folder / LOCK)


def save_weights(path: Path, state: Mapping[str, Tensor], *, run_id: str) -> None:
    """Write a state dict as safetensors, atomically, from the CPU; it says which MLflow run it is of."""
    from safetensors.torch import save

    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    with files.atomic(path) as temporary:
        temporary.write_bytes(save(tensors, {"mlflow_run_id": run_id}))
