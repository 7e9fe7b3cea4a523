"""How each exported file is loaded: code that runs as it stands, in the run folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.run import Run

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


def snippets(run: Run, files: Mapping[str, str], *, raw: Mapping[str, Array]) -> dict[str, str]:
    """Return code for each of the `files`, name to format. `raw` are a table's columns, whose first row is the example."""
    makers = {"onnx": _onnx, "torchscript": _torchscript, "pt2": _pt2, "safetensors": _safetensors}
    found = {}
    for name, kind in files.items():
        base = kind.partition("-")[0]
        if base in makers:
            found[name] = makers[base](run, name, raw)
    return found


def _tensor(run: Run) -> str:
    spec = run.data
    what = "(batch, channels, height, width)" if spec.is_image else "(batch, features)"
    limits = f", {spec.value_range[0]} to {spec.value_range[1]}" if spec.value_range else ""
    shape = (1, *spec.sample_shape)
    if spec.columns:
        what += ": the encoded columns"
    return f"np.zeros({shape}, np.{spec.dtype})  # {what}{limits}"


def _onnx(run: Run, name: str, raw: Mapping[str, Array]) -> str:
    if run.data.columns:
        rows = [f"    {c.input_name!r}: np.array([[{_value(raw[c.name][0], c.is_category)}]]{_kind(c)}),"
                for c in run.data.columns]  # fmt: skip
        inputs = "\n".join(["inputs = {  # (batch, 1) for each column", *rows, "}"])
    else:
        inputs = f'inputs = {{"input": {_tensor(run).replace("  # ", "}  # ", 1)}'
        if run.data.any_size:
            inputs += "; height and width may be any"
    if run.task.has_decisions:
        last = 'classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])\n' + (
            'print(dict(zip(classes, answers["probabilities"][0].tolist())))'
        )
    else:
        last = 'print(answers["prediction"][0].tolist())'
    head = "import json\n\n" * run.task.has_decisions
    return (
        f"{head}import numpy as np\nimport onnxruntime\n\n"
        f"session = onnxruntime.InferenceSession({name!r}, providers=['CPUExecutionProvider'])\n{inputs}\n"
        "names = [output.name for output in session.get_outputs()]\n"
        "answers = dict(zip(names, session.run(names, inputs)))\n"
        f"{last}\n"
    )


def _kind(column: Any) -> str:
    return ", dtype=object" if column.is_category else ", dtype=np.float64"


def _value(value: Any, is_category: bool) -> str:
    if is_category:
        return repr("" if value is None or value != value else str(value))
    return repr(float(value)) if math.isfinite(float(value)) else 'float("nan")'


def _torchscript(run: Run, name: str, raw: Mapping[str, Array]) -> str:
    return f"import numpy as np\nimport torch\n\nmodule = torch.jit.load({name!r}, map_location='cpu')\n{_call(run)}"


def _pt2(run: Run, name: str, raw: Mapping[str, Array]) -> str:
    return f"import numpy as np\nimport torch\n\nmodule = torch.export.load({name!r}).module()\n{_call(run)}"


def _call(run: Run) -> str:
    outputs = "logits, probabilities, *_" if run.task.has_decisions else "prediction, *_"
    shown = outputs.split(", ")[1 if run.task.has_decisions else 0]
    return (
        f"x = {_tensor(run)}\nwith torch.inference_mode():\n    {outputs} = module(torch.from_numpy(x))\n"
        f"print({shown}[0].tolist())\n"
    )


def _safetensors(run: Run, name: str, raw: Mapping[str, Array]) -> str:
    return (
        f"from safetensors.numpy import load_file\n\nweights = load_file({name!r})\n"
        "print({name: array.shape for name, array in weights.items()})\n"
    )
