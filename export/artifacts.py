"""The export stage: a run folder's best weights to one file of each format, and safetensors.

All files are made in memory before the first is written, so a model that one format cannot express leaves none.
"""

from __future__ import annotations

import json

from export.columns import with_columns
from export.formats import FORMATS, pt2
from export.module import ExportError, configuration, example_input, export_module, metadata
from pipeline import files, manifest
from pipeline.run import Run

FOLDER = "export"
METRICS = "verify"  # what stands before the names of all metrics of exported files; MLflow's pages go by the alphabet
FILES = {name: each.file for name, each in FORMATS.items()} | {"safetensors": "model.safetensors", "config": "config.json"}


def export_run(run: Run) -> dict[str, float]:
    """Write a run's `export/` folder and return the size of each file, named as MLflow metrics.

    Exported again from the same run, every file has the same bytes; a parity report goes, as it is of the files that are
    replaced, and so does the sealed file of a format that is no more. The files are not sealed. Raises ExportError where a
    format has no way to express the model, and UserError where the run's weights do not fit it.
    """
    contents = _build(run)
    contents["safetensors"] = (run.folder / manifest.WEIGHTS).read_bytes()
    contents["config"] = (json.dumps(configuration(run), indent=1) + "\n").encode()
    written = {f"{FOLDER}/{FILES[name]}": content for name, content in contents.items()}
    replaced = [name for name in manifest.read(run.folder)[1] if manifest.matches(name, manifest.REPLACES["export"])]
    run.unseal("export")
    for name in {*replaced, *manifest.FILES["verify"]} - set(written):
        (run.folder / name).unlink(missing_ok=True)
    for name, content in written.items():
        with files.atomic(run.folder / name) as temporary:
            temporary.write_bytes(content)
    return {f"{METRICS}/{name}/size_bytes": len(content) for name, content in contents.items() if name != "config"}


def _build(run: Run) -> dict[str, bytes]:
    """Return the bytes of the file of each format, by its name. Raises ExportError."""
    module, example, properties = export_module(run), example_input(run), metadata(run)
    name, contents = "pt2", {}
    try:
        program = pt2.capture(module, example, any_size=run.data.any_size)
        for name, each in FORMATS.items():
            contents[name] = each.build(program, properties, outputs=module.outputs)
        if run.data.columns:  # the other formats know no text, and take the encoded matrix
            contents["onnx"] = with_columns(contents["onnx"], run.data.columns)
    except ValueError as error:
        raise ExportError(f"{name}: {error}") from error
    return contents
