"""RunConfig: every parameter of a training, in one frozen, flat class; flags, help and JSON come from it.

A standard dataclass, and text converted here: measured with an error reported, this takes 0.045 s, tyro 0.065 (and tells one
mistake of three), jsonargparse 0.095, pydantic 0.116 to save fifty lines.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import UserError
from pipeline.task import LOSSES, TASKS
from pipeline.values import Args, Field, convert, field_types

FORMATS = ("onnx", "torchscript", "pt2", "onnx-int8", "onnx-fp16")
"""What a model can be exported to, in the order of the reports; `export/formats/` has a module for each."""
_LARGEST_SEED = 2**32 - 1  # of numpy's generators, and what torch's tell apart


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The parameters of one training run. A default may be replaced by the model's recipe (`models/recipes.py`)."""

    model: str = Field("cnn", "network to train")
    model_args: Args = Field({}, "the network's own arguments, as hidden=25,dropout=0.1 or a JSON object")
    weights: str = Field("", "file of weights to start from: safetensors, or a state dict of torch")
    pretrained: bool = Field(False, "start from the weights that the library has (torchvision:NAME, timm:NAME)")
    check_export: bool = Field(True, "try before training whether an own network can be exported, and is deterministic")
    recipe: str = Field(
        "default",
        "set of defaults: an expert's, those of the text that the model came from, or for 99 or 99.6 % on MNIST (cnn)",
        choices=("default", "reference", "fast", "accurate"),
    )
    dataset: str = Field(
        "digits",
        "data to train on: a name, a folder of images (class/...), a table (.csv, .parquet, ...), .npz, or file.py:function",
    )
    target: str = Field("", "column that is predicted, or several as a,b (tables)")
    task: str = Field("auto", "kind of task; auto: by what the target holds (own data)", choices=("auto", *TASKS))
    ignore_columns: str = Field("", "columns that are left out, as a,b (tables)")
    group_column: str = Field("", "column whose equal values never lie in two splits (tables)")
    split_column: str = Field("", "column that says train, val or test (tables)")
    skip_bad: bool = Field(False, "leave out files that cannot be read, and record which; false: refuse them (own images)")
    data_args: Args = Field({}, "the data set's own arguments, as noise=0.2 or a JSON object")
    data_dir: Path = Field(Path("data"), "folder with (or for) downloaded raw files")
    cache_dir: Path = Field(Path("~/.cache/trainyard"), "folder for prepared tensors")
    output_dir: str = Field("", "the run folder; empty: runs/<model>-<first 8 of the MLflow run id>")
    resume: str = Field(
        "false", "resume from the newest valid checkpoint in --output_dir; auto: if there is one, otherwise start a new run",
        choices=("false", "true", "auto"),
    )  # fmt: skip
    split_seed: int = Field(0, "seed of the data set's points (moons) and of its split", ge=0, le=_LARGEST_SEED)
    val_split: float | Literal["auto"] = Field(
        "auto", "share of all training samples held out for validation; auto: the data set's own; 0: none", ge=0, lt=1
    )
    test_split: float | Literal["auto"] = Field(
        "auto", "share held out for the test where the data has no test set; auto: the data set's own; 0: none", ge=0, lt=1
    )
    image_size: int = Field(0, "side to which images are resized, in pixels; 0: as they are", ge=0, le=4096)
    preprocess: str = Field(
        "standardize",
        "the model's first layer: input as it is, scaled to [0, 1], standardized, or as pretrained weights want it",
        choices=("none", "scale", "standardize", "pretrained"),
    )  # fmt: skip
    init: str = Field(
        "random", "the first convolution's weights: random, or principal components of image patches (lenet, cnn)",
        choices=("random", "pca"),
    )  # fmt: skip
    epochs: int = Field(20, "passes over the training samples; 0: max_steps decides", ge=0)
    shuffle_window: int = Field(0, "samples among which the order of an epoch is drawn, of data in shards; 0: all", ge=0)
    local_cache_gb: float = Field(
        0.0, "gigabytes of fetched shards that lie on this host at a time (dataset=s3://...); 0: all", ge=0, le=1e9
    )
    max_steps: int = Field(0, "optimizer steps after which training ends, even within an epoch; 0: epochs decide", ge=0)
    batch_size: int = Field(64, "samples in one optimizer step, over all ranks together", ge=1)
    grad_accum_steps: int = Field(1, "parts in which a rank works through its share of a batch", ge=1, le=10_000)
    optimizer: str = Field("adamw", "update rule", choices=("sgd", "adam", "adamw", "rmsprop", "muon"))
    lr: float = Field(1e-3, "learning rate (its peak, where a schedule moves it)", gt=0)
    momentum: float = Field(0.0, "momentum (sgd, rmsprop)", ge=0, lt=1)
    nesterov: bool = Field(False, "Nesterov momentum (sgd)")
    weight_decay: float = Field(0.0, "weight decay: decoupled in adamw and muon, an L2 penalty in the others", ge=0)
    layer_lr: str = Field("", "learning rates of single layers, as fc2=1e-4,conv1=1e-3; 0 freezes one")
    layer_weight_decay: str = Field("", "weight decay of single layers, as fc2=0.1")
    freeze: str = Field("", "parameters that are not trained, by patterns over the names in parameters.md, as layer1,conv1.*")
    head_lr: float | Literal["auto"] = Field(
        "auto", "learning rate of the head, which is the last layer with a matrix; auto: as the rest", gt=0
    )
    layer_decay: float = Field(
        1.0, "factor by which the learning rate falls from each layer to the one before it; 1: one rate for all", gt=0, le=1
    )
    loss: str = Field(
        "cross_entropy",
        "training loss: a mean over samples, sse a sum; or file.py:function of scores and targets, one loss a sample",
        choices=LOSSES,
        takes_own=True,
    )
    loss_args: Args = Field({}, "the loss's own arguments, as gamma=2 (focal), delta=1 (huber) or a JSON object")
    class_weights: str = Field(
        "none", "weights of the classes in the training loss: none, balanced, or a=1,b=2 (cross_entropy, nll, bce, focal)"
    )
    augment_shift: int = Field(
        0, "pixels by which a training image is moved at most, each way, anew in each epoch (images)", ge=0, le=14
    )
    augment_affine: float = Field(
        0.0, "how far a training image is turned, stretched and sheared: largest change of its matrix (images)",
        ge=0, le=0.5,
    )  # fmt: skip
    augment_crop: float = Field(
        0.0, "smallest share of its area to which a training image is cut, at sides of 3/4 to 4/3; 0: it is not cut (images)",
        ge=0, lt=1,
    )  # fmt: skip
    augment_flip: bool = Field(False, "mirror half of the training images left to right, anew in each epoch (images)")
    augment_color: float = Field(
        0.0, "largest change of a training image's brightness, contrast and saturation, as a share (images)", ge=0, le=1
    )
    mixup: float = Field(
        0.0, "mix each training sample with another of its batch, by shares of Beta(a, a); 0: none (classes, labels)",
        ge=0, le=100,
    )  # fmt: skip
    cutmix: float = Field(
        0.0, "put a box of another image of its batch into each training image, by shares of Beta(a, a); 0: none (images)",
        ge=0, le=100,
    )  # fmt: skip
    ema_decay: float = Field(
        0.0, "decay of a moving average of the weights, which is then what is validated and kept, as 0.999; 0: none",
        ge=0, lt=1,
    )  # fmt: skip
    label_smoothing: float = Field(0.0, "label smoothing (cross_entropy)", ge=0, lt=1)
    max_grad_norm: float = Field(0.0, "largest global norm of the gradient; 0: no limit", ge=0)
    early_stopping: int = Field(
        0, "stop after so many epochs, warm-up aside, without a better validation result; 0: never", ge=0
    )
    monitor: str = Field("loss", "validation metric by which the best weights are chosen", choices=("loss", "accuracy"))
    scheduler: str = Field(
        "constant", "course of the learning rate, per step", choices=("constant", "step", "cosine", "one_cycle")
    )
    warmup_ratio: float = Field(0.0, "share of all steps in which the learning rate rises", ge=0, lt=1)
    step_size: int = Field(10, "epochs between two cuts of the learning rate (step; a third of all unless given)", ge=1)
    gamma: float = Field(0.1, "factor of each cut (step)", gt=0, le=1)
    seed: int = Field(0, "seed of weights, sample order and dropout", ge=0, le=_LARGEST_SEED)
    device: str = Field("auto", "where to compute; auto: cuda if there is one", choices=("auto", "cpu", "cuda"))
    precision: str = Field(
        "fp32", "arithmetic of the forward pass (autocast); auto: bf16 where the processor computes in it, or else fp32",
        choices=("fp32", "bf16", "fp16", "auto"),
    )  # fmt: skip
    compile: bool = Field(False, "compile the model with torch.compile")
    cuda_graph: str = Field(
        "auto", "start all kernels of a step at once, from a CUDA graph; auto: on one GPU, without --compile",
        choices=("auto", "true", "false"),
    )  # fmt: skip
    nproc: int | Literal["auto"] = Field("auto", "worker processes; auto: one per GPU, one on the CPU", ge=1, le=1024)
    max_restarts: int = Field(0, "restarts of all workers after one has died or hung, from the last checkpoint", ge=0, le=1000)
    collective_timeout: int = Field(
        600, "seconds after which a rank that does not answer in training counts as hung", ge=1, le=31_536_000
    )
    num_workers: int = Field(0, "loader processes of each rank; 0: batches are gathered in the training process", ge=0, le=256)
    checkpoint_every: str = Field("epoch", "when to save: `epoch`, a number of steps as 500, or minutes as 10m")
    upload_checkpoints: bool = Field(False, "upload checkpoints to MLflow, for a rank 0 that moves to another host")
    strict_tracking: bool = Field(False, "end the training when MLflow does not take its metrics; false: they are kept")
    log_every: int = Field(
        10, "optimizer steps that one point of train/loss stands for, also across the end of an epoch",
        ge=1, le=1_000_000,
    )  # fmt: skip
    promote: bool = Field(False, "promote the verified ONNX file to `champion` at the end, as `promote` does (run)")
    cache: str = Field(
        "on", "whether a run of ./runs that was made by the same is taken as the result; off: do everything again",
        choices=("on", "off"),
    )  # fmt: skip
    explain: bool = Field(False, "say for each stage whether it would be done, and what has changed; do nothing (run, train)")
    formats: str = Field(
        "onnx,torchscript,pt2", f"files that are exported, as a,b, onnx among them: {', '.join(FORMATS)}",
        choices=FORMATS, several=("onnx",),
    )  # fmt: skip
    max_metric_drop: float = Field(
        0.005, "how much accuracy a file of 8 or 16 bits may lose on the test set; of RMSE, the share by which it may be worse",
        ge=0, le=1,
    )  # fmt: skip
    calibrate: str = Field(
        "none", "what exported probabilities are: as trained, or of logits / T, with T fitted on the validation samples",
        choices=("none", "temperature"),
    )  # fmt: skip
    min_speedup: float = Field(
        0.0, "how many times as fast as model.onnx such a file must be at batch 1, on one thread; 0: it need not", ge=0, le=1000
    )


@dataclass(frozen=True, kw_only=True)
class PrepareConfig(RunConfig):
    """Parameters of `prepare`: those of a training that say what its samples are, and shards."""

    shards: str = Field(
        "", "size of a shard, as 256MB: write Arrow IPC files into --output_dir, a folder or s3://BUCKET/FOLDER; empty: write "
        "tensors into --cache_dir",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SearchConfig(RunConfig):
    """Parameters of `search`: those of a training, which are the same in each trial, and what is searched and how."""

    space: tuple[str, ...] = Field(
        (),
        "flags that are searched: NAME=LOW..HIGH (with :log behind it, on a logarithmic scale), or NAME=a,b,c; several words",
        is_required=True,
    )
    trials: int = Field(50, "trainings in all, of whatever number of workers", ge=1, le=1_000_000)
    metric: str = Field("", "what is best: val/loss, val/accuracy or val/rmse; empty: accuracy, or else rmse")
    pruner: str = Field(
        "median", "what ends a trial early: worse than the median at its epoch, Hyperband, or none: it always has all epochs",
        choices=("median", "hyperband", "none"),
    )  # fmt: skip
    study: str = Field("", "name of the study, which the same command joins; empty: <model>-<data>")
    storage: str = Field("", "where the study is kept: a journal file, or a database as postgresql://...; empty: a journal "
                             "in --output_dir")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """What a stage after training needs: which run."""

    run: str = Field("", "MLflow run id or run folder", is_required=True)
    trust_code: bool = Field(False, "run the code of an own model or an own loss that was fetched from MLflow")


@dataclass(frozen=True, kw_only=True)
class DataStageConfig(StageConfig):
    """What a stage needs that reads the run's data too: where it lies on this machine."""

    dataset: str = Field("", "where the run's own data lies on this machine; empty: where it lay in training")
    data_dir: Path = Field(Path("data"), "folder with (or for) downloaded raw files")
    cache_dir: Path = Field(Path("~/.cache/trainyard"), "folder for prepared tensors")


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """Parameters of `sync`."""

    run: Path = Field(Path("run"), "run folder")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(DataStageConfig):
    """Parameters of `evaluate`."""

    device: str = Field("auto", "where to compute; auto: cuda if there is one", choices=("auto", "cpu", "cuda"))
    nproc: int | Literal["auto"] = Field("auto", "worker processes; auto: one per GPU, one on the CPU", ge=1, le=1024)


@dataclass(frozen=True, kw_only=True)
class ExportConfig(DataStageConfig):
    """Parameters of `export`; the data is read for files of 8 or 16 bits and for a temperature only."""

    formats: str = Field(
        "", f"files to export, as a,b, onnx among them: {', '.join(FORMATS)}; empty: as the run was trained with",
        choices=FORMATS, several=("onnx",),
    )  # fmt: skip
    max_metric_drop: float | Literal["auto"] = Field(
        "auto", "how much accuracy a file of 8 or 16 bits may lose (of RMSE, which share); auto: as the run was trained with",
        ge=0, le=1,
    )  # fmt: skip
    calibrate: str = Field(
        "", "what exported probabilities are: as trained, or of logits / T, with T fitted on the validation samples; empty: as "
        "the run was trained with", choices=("", "none", "temperature"),
    )  # fmt: skip
    min_speedup: float | Literal["auto"] = Field(
        "auto", "how many times as fast as model.onnx such a file must be; auto: as the run was trained with", ge=0, le=1000
    )


@dataclass(frozen=True, kw_only=True)
class VerifyConfig(DataStageConfig):
    """Parameters of `verify`."""

    onnx: str = Field("", "another .onnx file to hold against the run's model; empty: the run's own artifacts")
    as_: str = Field(
        "", "what the other file is: int8 or fp16 is held to the metric and the decisions, not to each number; empty: exact",
        choices=("", "int8", "fp16"),
    )  # fmt: skip
    max_metric_drop: float | Literal["auto"] = Field(
        "auto", "how much accuracy a file of 8 or 16 bits may lose (of RMSE, which share); auto: as it was exported with",
        ge=0, le=1,
    )  # fmt: skip
    min_speedup: float | Literal["auto"] = Field(
        "auto", "how many times as fast as model.onnx such a file must be; auto: as it was exported with", ge=0, le=1000
    )


@dataclass(frozen=True, kw_only=True)
class PlotConfig:
    """Parameters of `plot`."""

    plot: str = Field(
        "activations", "what to draw; none of these needs a run", choices=("activations", "scatter", "tsne", "samples")
    )
    output: Path = Field(Path("runs/plots"), "folder for the PNG file")


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Parameters of `predict`."""

    onnx: str = Field(
        "", "a model that was exported to ONNX: a run's export/model.onnx, wherever it lies now", is_required=True
    )
    input: tuple[str, ...] = Field(
        (),
        "what to answer: images, tables, arrays (.npy, .npz), Parquet with images, or folders of them; several after one flag",
        is_required=True,
    )
    output: str = Field("", "file for all answers: .csv, .jsonl or .parquet; empty: the first ones are shown", is_file=True)
    batch_size: int = Field(64, "samples that are answered at once", ge=1, le=65_536)
    top: int = Field(5, "most probable classes that are listed (.jsonl, and a single input that is shown)", ge=1, le=1000)
    overwrite: bool = Field(False, "replace an output file that is there already")


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Parameters of `inspect`; those that a training has too mean the same."""

    dataset: str = Field(
        "", "data to look at: a name, a folder of images (class/...), a table, .npz, or file.py:function", is_required=True
    )
    target: str = Field("", "column that is predicted, or several as a,b (tables); empty: one is guessed, and told")
    task: str = Field("auto", "kind of task; auto: by what the target holds (own data)", choices=("auto", *TASKS))
    ignore_columns: str = Field("", "columns that are left out, as a,b (tables)")
    group_column: str = Field("", "column whose equal values never lie in two splits (tables)")
    split_column: str = Field("", "column that says train, val or test (tables)")
    skip_bad: bool = Field(False, "decode every image to find the broken ones; false: as many as take a second (own images)")
    image_size: int = Field(0, "side to which images would be resized, in pixels; 0: one is proposed", ge=0, le=4096)
    data_args: Args = Field({}, "the data set's own arguments, as noise=0.2 or a JSON object")
    data_dir: Path = Field(Path("data"), "folder with downloaded raw files; nothing is downloaded here")
    cache_dir: Path = Field(Path("~/.cache/trainyard"), "folder for prepared tensors, whose free space is looked at")
    output: Path = Field(Path("runs/plots"), "folder for the PNG file")


RENAMED: Mapping[str, str] = {
    "holdout": "--val_split 0 (and --test_split 0)", "noise": "--data_args noise=X", "hidden": "--model_args hidden=N",
    "dropout": "--model_args dropout=X", "gradient": "--model_args gradient=NAME", "workers": "--num_workers",
    "grad_clip": "--max_grad_norm", "warmup": "--warmup_ratio", "accumulation_steps": "--grad_accum_steps",
    "timeout": "--collective_timeout", "picture": "--plot",
}  # fmt: skip
"""Flags of earlier versions, and what to write instead."""
RUNTIME_FIELDS = frozenset(
    [
        "data_dir",
        "cache_dir",
        "output_dir",
        "resume",
        "device",
        "nproc",
        "max_restarts",
        "collective_timeout",
        "num_workers",
        "local_cache_gb",
    ]
) | {"upload_checkpoints", "strict_tracking", "cuda_graph", "promote", "cache", "explain"}
"""Fields that say where and how a run is computed, not what: they may change when it is resumed."""


def format_names(text: str) -> tuple[str, ...]:
    """Return the names of a checked `formats` text, in the order of the reports."""
    names = text.split(",")
    return tuple(sorted(names, key=lambda name: FORMATS.index(name) if name in FORMATS else -1))


def lossy_formats(text: str) -> tuple[str, ...]:
    """Return those of a checked `formats` text whose files are derived from another one, and lose something."""
    return tuple(name for name in format_names(text) if "-" in name)


def to_json(config: RunConfig) -> dict[str, Any]:
    """Return the fields as JSON values: paths become text."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()}


def to_flags(values: Mapping[str, Any]) -> dict[str, str]:
    """Return JSON values of fields as the texts that flags have."""
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in values.items()}


def from_json(values: Mapping[str, Any]) -> RunConfig:
    """Return the configuration that `to_json` wrote, checked again. Raises UserError."""
    flags = to_flags(values)
    unknown = set(flags) - set(field_types(RunConfig))
    if unknown:
        raise UserError(
            f"the configuration has unknown fields: {', '.join(sorted(unknown))}. Was it written by another version?"
        )
    converted, problems = convert(RunConfig, flags)
    if problems:
        raise UserError(*problems.values())
    return RunConfig(**converted)
