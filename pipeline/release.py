"""Flags of the commands between a proven run and production."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.values import Field


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
        0.0, "how long a request waits for others to be computed with; 0: only while all threads compute", ge=0, le=60_000
    )
    timeout_ms: float = Field(10_000.0, "how long an answer may take; then the client gets 504", ge=1, le=3_600_000)
    max_body_mb: float = Field(16.0, "megabytes that a request may have; more gets 413", gt=0, le=4096)
    num_threads: int = Field(0, "threads that compute; 0: one for each core", ge=0, le=1024)
