"""Flags of the commands between a proven run and production."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.values import Field


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
class WebConfig:
    """Parameters of `web`."""

    run: str = Field("", "run folder, or MLflow run id, whose export was verified", is_required=True)
    output: str = Field("", "folder for the page; it must be new or empty", is_required=True)
    single_file: bool = Field(False, "make one index.html with everything in it, which opens from disk without a server")
    format: str = Field("onnx", "which of the run's files the page computes with", choices=("onnx", "onnx-int8", "onnx-fp16"))
    runtime: str = Field("", "folder with onnxruntime-web that was fetched elsewhere; empty: npm fetches it once")
    cache_dir: Path = Field(Path("~/.cache/trainyard"), "folder in which the fetched onnxruntime-web is kept")
