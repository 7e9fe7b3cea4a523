"""Flags of the commands between a proven run and production."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.config import FORMATS, DataStageConfig, StageConfig
from pipeline.values import Field

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
        0.0, "how long a request waits for others to be computed with; 0: only while all threads compute", ge=0, le=60_000
    )
    timeout_ms: float = Field(10_000.0, "how long an answer may take; then the client gets 504", ge=1, le=3_600_000)
    max_body_mb: float = Field(16.0, "megabytes that a request may have; more gets 413", gt=0, le=4096)
    num_threads: int = Field(0, "threads that compute; 0: one for each core", ge=0, le=1024)


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
