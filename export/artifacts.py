"""The export stage: a run folder's best weights to ONNX, TorchScript, .pt2 and safetensors.

All files are made in memory before the first is written, so a model that one format cannot express leaves none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from export.formats import onnx as onnx_format
from export.formats import pt2, torchscript
from export.module import OUTPUTS, deployed, example_input, metadata
from pipeline import manifest
from pipeline import run as run_folder
from pipeline.config import RUNTIME_FIELDS, to_json

FOLDER = "export"
METRICS = "verify"  # what stands before the names of all figures of exported files; MLflow's pages go by the alphabet
FILES = {
    "onnx": "model.onnx",
    "torchscript": "model.torchscript.pt",
    "pt2": "model.pt2",
    "safetensors": "model.safetensors",
    "config": "config.json",
}


def export_run(run: run_folder.Run) -> dict[str, float | int | str]:
    """Write a run's `export/` folder and return the size of each file, named as MLflow metrics.

    Exported again from the same run, every file has the same bytes; a parity report goes, as it is of the files that are
    replaced. The files are not sealed. Raises ExportError where a format has no way to
    express the model, and UserError where the run's weights do not fit it.
    """
    module, example, properties = deployed(run), example_input(run), metadata(run)
    program = pt2.capture(module, example)
    contents = {
        "onnx": onnx_format.build(program, properties, outputs=OUTPUTS[run.task]),
        "torchscript": torchscript.build(module, example, properties),
        "pt2": pt2.build(program, properties),
        "safetensors": (run.folder / run_folder.WEIGHTS).read_bytes(),
        "config": _config(run, properties),
    }
    manifest.unseal(run, *manifest.REPLACES["export"])
    for name in manifest.FILES["verify"]:
        (run.folder / name).unlink(missing_ok=True)
    for name, content in contents.items():
        with run_folder.atomic(run.folder / FOLDER / FILES[name]) as temporary:
            temporary.write_bytes(content)
    return {f"{METRICS}/{name}/size_bytes": len(content) for name, content in contents.items() if name != "config"}


def _config(run: run_folder.Run, properties: Mapping[str, object]) -> bytes:
    """Return what rebuilds the model around `model.safetensors`, without the fields that name folders."""
    config = {name: value for name, value in to_json(run.config).items() if name not in RUNTIME_FIELDS}
    values = {**properties, "statistics": run.data["statistics"], "config": config}
    return (json.dumps(values, indent=1) + "\n").encode()
