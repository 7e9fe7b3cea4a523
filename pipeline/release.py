"""Flags of the commands between a proven run and production."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import FORMATS, DataStageConfig, StageConfig
from pipeline.values import Field, shown

_NAME = re.compile(r"\w(?:[\w .-]{0,148}[\w-])?")  # no / : @ ? # %, which mean something in models:/NAME@ALIAS
_ALIAS = re.compile(r"[\w-]{1,50}")
_RESERVED = re.compile(r"(?i)latest|v\d+")  # of MLflow

MEASURED = ("torch", "torch-compile", *FORMATS)
"""What `benchmark` can measure, in the order of its tables: the model as torch runs it, and each format."""
ONNX_FORMATS = tuple(name for name in FORMATS if name.partition("-")[0] == "onnx")


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(DataStageConfig):
    """Parameters of `benchmark`."""

    formats: str = Field(
        "", f"what is measured, as a,b: {', '.join(MEASURED)}; empty: both of torch, and each file that was proven",
        choices=MEASURED, several=(),
    )  # fmt: skip
    batch_sizes: tuple[int, ...] = Field((1, 32, 256), "samples in a call, as a,b", ge=1, le=65_536)
    threads: tuple[int, ...] = Field((1, 0), "threads that compute a call, as a,b; 0: one for each core", ge=0, le=1024)
    rounds: int = Field(3, "times that everything is measured, in turns; what differs too much between them is not stated",
                        ge=2, le=100)  # fmt: skip
    seconds: float = Field(0.5, "time for the calls of one kind in one round", gt=0, le=600)


@dataclass(frozen=True, kw_only=True)
class PromoteConfig:
    """Parameters of `promote`."""

    run: str = Field("", "MLflow run id or run folder; with --rollback there is none")
    name: str = Field("", "name in MLflow's registry; empty: the run's own, <model>-<data set>")
    alias: str = Field("champion", "alias of the version that is in use")
    min_gain: float = Field(
        0.0, "by how much the champion must be beaten: a difference of accuracy, a share of RMSE; 0: by anything", ge=0, le=1
    )
    max_latency_ms: float = Field(
        0.0, "longest time of model.onnx, as `benchmark` measured it: p95, batch 1, one thread; 0: any", ge=0, le=3_600_000
    )
    force: str = Field("", "reason to promote whatever the comparison says; kept as a tag. What is not proven stays refused")
    rollback: bool = Field(False, "give the alias back to the champion before this one")


def refuse_name(name: str) -> str:
    """Return what is wrong with the name of a registered model, or nothing."""
    if _NAME.fullmatch(name):
        return ""
    return (
        f"name={shown(name)} cannot be the name of a registered model. Use up to 150 letters, digits, spaces and . _ -, with a "
        "letter or digit first and last."
    )


def refuse_promotion(config: PromoteConfig, given: Mapping[str, str]) -> Iterator[str]:
    """Say what is wrong with the flags of `promote`; `given` are those that stand on the command line."""
    if config.name and (problem := refuse_name(config.name)):
        yield problem
    if not _ALIAS.fullmatch(config.alias):
        yield f"alias={shown(config.alias)} cannot be an alias. Use up to 50 letters, digits, _ and -, as in --alias champion."
    elif _RESERVED.fullmatch(config.alias):
        yield f"alias={config.alias} is one that MLflow keeps for itself. Give another, as in --alias champion."
    if "force" in given and not config.force.strip():
        yield "force: no reason was given, and it is what is kept. Write --force REASON."
    if not config.rollback:
        if not config.run:
            yield "run: nothing was given. Add --run FOLDER or --run MLFLOW_RUN_ID."
        if "min_gain" in given and config.force.strip():
            yield f"min_gain={config.min_gain:g} has no effect with --force, which asks for no gain. Leave one of them out."
        return
    if not config.name:
        yield "name: nothing was given, and no run that could say it. Add --name NAME, as MLflow's registry has it."
    for flag in ("run", "min_gain", "max_latency_ms", "force"):
        if flag in given:
            yield f"{flag}={shown(given[flag])} has no effect with --rollback true. Leave --{flag} out."


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """Parameters of `compare`, which runs no code of a run and reads no data."""

    runs: tuple[str, ...] = Field((), "two runs or more: MLflow run ids or run folders, as A B or A,B", is_required=True)
    output: str = Field("", "file for the page, .html; empty: the terminal alone", is_file=True)
    overwrite: bool = Field(False, "replace an output file that is there already")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Parameters of `report`, which runs no code of a model."""

    run: str = Field("", "MLflow run id or run folder", is_required=True)
    dataset: str = Field("", "where the run's own data lies on this machine; empty: where it lay in training")
    data_dir: Path = Field(Path("data"), "folder with (or for) downloaded raw files")
    cache_dir: Path = Field(Path("~/.cache/trainyard"), "folder for prepared tensors")


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Parameters of `serve`."""

    onnx: str = Field(
        "",
        "a model that was exported to ONNX: a file, or MLflow's models:/NAME@ALIAS or models:/NAME/VERSION",
        is_required=True,
    )
    host: str = Field("127.0.0.1", "address to listen on; 0.0.0.0 lets other machines ask")
    port: int = Field(8000, "port to listen on; 0: one that is free, and is told", ge=0, le=65_535)
    max_queue: int = Field(128, "requests that wait at most; the next ones get 429", ge=1, le=100_000)
    max_batch: int = Field(
        16, "samples that are computed together at most, and never where their bits would differ from one alone", ge=1, le=1024
    )
    max_delay_ms: float = Field(
        0.0, "how long a request waits for others to be computed with; 0: only while all that compute are busy", ge=0, le=60_000
    )
    timeout_ms: float = Field(10_000.0, "how long an answer may take; then the client gets 504", ge=1, le=3_600_000)
    max_body_mb: float = Field(16.0, "megabytes that a request may have; more gets 413", gt=0, le=4096)
    num_threads: int = Field(
        0,
        "threads that compute; 0: one for each core, fewer for a quick model; small requests to a very quick one need none",
        ge=0,
        le=1024,
    )


@dataclass(frozen=True, kw_only=True)
class TritonConfig(StageConfig):
    """Parameters of `triton`."""

    repository: str = Field("", "model repository of a Triton server, to which the model is added", is_required=True)
    name: str = Field("", "what the model is called there; empty: <model>-<data>")
    format: str = Field("onnx", "the file that is served", choices=ONNX_FORMATS)
    optimize_for: str = Field(
        "throughput", "what instances, threads and batch are chosen for, from the run's benchmark",
        choices=("throughput", "latency"),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Parameters of `cache`."""

    action: str = Field("list", "what to do; also as the first word, without its flag: cache gc", choices=("list", "gc"))
    max_gb: float = Field(0.0, "gigabytes that may stay (gc); what was used longest ago goes first", ge=0, le=1e9)
    cache_dir: Path = Field(Path("~/.cache/trainyard"), "folder of prepared tensors")


@dataclass(frozen=True, kw_only=True)
class WebConfig:
    """Parameters of `web`."""

    run: str = Field("", "run folder, or MLflow run id, whose export was verified", is_required=True)
    output: str = Field("", "folder for the page; it must be new or empty", is_required=True)
    single_file: bool = Field(False, "make one index.html with everything in it, which opens from disk without a server")
    format: str = Field("onnx", "which of the run's files the page computes with", choices=("onnx", "onnx-int8", "onnx-fp16"))
    runtime: str = Field("", "folder with onnxruntime-web that was fetched elsewhere; empty: npm fetches it once")
    cache_dir: Path = Field(Path("~/.cache/trainyard"), "folder in which the fetched onnxruntime-web is kept")
