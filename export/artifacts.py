"""The export stage: a run folder's best weights to one file of each format that is asked for, and safetensors.

All files are made in memory before the first is written, so a model that one format cannot express leaves none.
"""

from __future__ import annotations

import json
from pathlib import Path

from export import derive, temperature
from export.columns import with_columns
from export.formats import FORMATS, pt2
from export.gates import Limits
from export.module import ExportError, ExportModule, configuration, example_input, export_module, metadata
from pipeline import files, manifest
from pipeline.config import format_names
from pipeline.run import Run

FOLDER = "export"
REJECTED = "rejected"
METRICS = "verify"  # what stands before the names of all metrics of exported files; MLflow's pages go by the alphabet
FILES = {name: each.file for name, each in FORMATS.items()} | {"safetensors": "model.safetensors", "config": "config.json"}


def export_run(run: Run, *, data: Path | None = None) -> dict[str, float]:
    """Write a run's `export/` folder and return the size of each file, named as MLflow metrics.

    The formats are those of the run's configuration, which `export/config.json` keeps; a derived one, and a calibrated model,
    need `data`, the prepared folder. Exported again from the same run, every file has the same bytes; a parity report goes, as
    it is of the files that are replaced, and so does the file of a format that is no more, or that was rejected. The files are
    not sealed. Raises ExportError where a format has no way to express the model, Failure where no temperature fits it, and
    UserError where the run's weights do not fit it.
    """
    module, calibrated = export_module(run), {}
    if run.config.calibrate != "none":
        temperature.refuse(run)
        assert data, "a temperature is fitted to samples"
        calibrated = {"calibration": temperature.fit(module, data, has_labels=run.task.has_labels)}
        module.temperature = calibrated["calibration"][temperature.KEY]
    contents = _build(run, module, data)
    contents["safetensors"] = (run.folder / manifest.WEIGHTS).read_bytes()
    contents["config"] = (json.dumps(configuration(run) | calibrated, indent=1) + "\n").encode()
    written = {f"{FOLDER}/{FILES[name]}": content for name, content in contents.items()}
    replaced = {name for name in manifest.read(run.folder)[1] if manifest.matches(name, manifest.REPLACES["export"])}
    replaced |= {f"{folder}/{each.file}" for each in FORMATS.values() for folder in (FOLDER, REJECTED)}
    replaced |= {rejection(name) for name, each in FORMATS.items() if each.base}
    replaced |= {*manifest.REPORTS, *manifest.FILES["benchmark"]}
    run.unseal("export")
    for name in replaced - set(written):
        (run.folder / name).unlink(missing_ok=True)
    for name, content in written.items():
        with files.atomic(run.folder / name) as temporary:
            temporary.write_bytes(content)
    return {f"{METRICS}/{name}/size_bytes": len(content) for name, content in contents.items() if name != "config"}


def rejection(name: str) -> str:
    """Return the name of the file that says why a format was rejected, relative to the run folder."""
    return f"{REJECTED}/{Path(FORMATS[name].file).stem}.json"


def written_files(run: Run) -> list[str]:
    """Return the names of the files in `export/` that the formats of a run's configuration mean."""
    return sorted(FILES[name] for name in (*format_names(run.config.formats), "safetensors", "config"))


def _build(run: Run, module: ExportModule, data: Path | None) -> dict[str, bytes]:
    """Return the bytes of the file of each format, by its name. Raises ExportError."""
    example, properties = example_input(run), metadata(run, temperature=module.temperature)
    wanted = format_names(run.config.formats)
    name, contents = "pt2", {}
    try:
        program = pt2.capture(module, example, any_size=run.data.any_size)
        for name, each in FORMATS.items():
            if name in wanted and each.build:
                contents[name] = each.build(program, properties, outputs=module.outputs)
        derived = [each for each in FORMATS.values() if each.name in wanted and each.base]
        if derived:
            assert data, "a derived format is made with samples"
            drawn = derive.samples(data)
            limits = Limits(max_metric_drop=run.config.max_metric_drop)
            for name, each in ((each.name, each) for each in derived):
                contents[name] = derive.derive(each, contents[each.base], drawn, task=run.task, limits=limits)
        if run.data.columns:  # the other formats know no text, and take the encoded matrix
            for name in [name for name in contents if "onnx" in (name, FORMATS[name].base)]:
                contents[name] = with_columns(contents[name], run.data.columns)
    except ValueError as error:
        raise ExportError(f"{name}: {error}") from error
    return contents
