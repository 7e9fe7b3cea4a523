"""int8: the ONNX file with weights of 8 bits and, between its layers, activations of 8 bits, calibrated on training samples.

Static, as pairs of QuantizeLinear and DequantizeLinear around each layer with weights: uint8 activations, int8 weights with a
scale for each channel. Where the processor has no VNNI, sums of such products saturate at 16 bits, so weights get 7 bits there.
What comes before the first layer stays in float32, and so does what leaves the graph: eight bits of logits would make ties.
"""

from __future__ import annotations

import logging
import platform
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export import graph
from export.graph import Derivation

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray

    Array = NDArray[Any]

ORDER = 3
FILE = "model.int8.onnx"
BASE = "onnx"
_CHUNK = 64  # samples at once in calibration


def derivation(content: bytes, samples: Array) -> Derivation:
    """Return how to make int8 files of an .onnx file, for whose single input `samples` (N, *input_shape) are typical.

    Raises ValueError where it has no layer with weights, or onnxruntime cannot prepare it.
    """
    import onnx

    original = onnx.load_model_from_string(content)
    with tempfile.TemporaryDirectory(prefix="trainyard-int8-") as temporary, _quiet():
        prepared = _prepared(original, Path(temporary))
        layers = graph.layers(prepared.graph)
        if not layers:
            raise ValueError("no layer of it has weights that could have 8 bits. Leave onnx-int8 out of --formats.")
        ranges = _ranges(Path(temporary), original.graph.input[0].name, samples)
    reduced = not has_vnni()

    def make(in_float: Collection[str]) -> bytes:
        with _quiet():
            return _quantized(prepared, original, ranges, [name for name in layers if name not in in_float], reduced)

    return Derivation(layers, make, {"calibration_samples": len(samples), "reduce_range": reduced})


def has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Tell whether products of 8 bits are added up in 32 bits here. Of an x86 that says nothing of itself, no."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i686", "x86"):
        return True  # ARM's dot products do
    try:
        text = cpuinfo.read_text()
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return bool({"avx512_vnni", "avx_vnni"} & {*flags})


def _prepared(original: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Return the model with normalization folded into its layers, and the shapes of its values known; write `prepared.onnx`."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    onnx.save(original, folder / "original.onnx")
    try:
        quant_pre_process(folder / "original.onnx", folder / "prepared.onnx", skip_symbolic_shape=True)
    except Exception as error:  # onnxruntime has types of its own
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from error
    return onnx.load(folder / "prepared.onnx")


def _ranges(folder: Path, name: str, samples: Array) -> Any:
    """Return the least and the largest value of each activation over the samples."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = (samples[start : start + _CHUNK] for start in range(0, len(samples), _CHUNK))

        def get_next(self) -> dict[str, Array] | None:
            rows = next(self.rows, None)
            return None if rows is None else {name: rows}

    calibrator = create_calibrator(
        folder / "prepared.onnx", list(graph.LAYERS), augmented_model_path=str(folder / "augmented.onnx"),
        calibrate_method=CalibrationMethod.MinMax,
    )  # fmt: skip
    calibrator.collect_data(Reader())
    return calibrator.compute_data()


def _quantized(prepared: onnx.ModelProto, original: onnx.ModelProto, ranges: Any, layers: list[str], reduced: bool) -> bytes:
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    model = onnx.ModelProto()
    model.CopyFrom(prepared)
    if layers:  # none would mean all
        quantizer = QDQQuantizer(
            model, True, reduced, QuantType.QInt8, QuantType.QUInt8, ranges, layers, [], list(graph.LAYERS),
            {"MatMulConstBOnly": True},
        )  # fmt: skip
        quantizer.quantize_model()
        model = quantizer.model.model
    _free_outputs(model.graph, layers)
    return graph.finish(model, original)


def _free_outputs(network: onnx.GraphProto, layers: Collection[str]) -> None:
    """Take away each pair of nodes that rounds what a layer gives, where none of these `layers` reads it."""
    made = {name: node for node in network.node for name in node.output}
    outputs = {value.name for value in network.output}
    for last in [node for node in network.node if node.op_type == "DequantizeLinear"]:
        first = made.get(last.input[0])
        source = made.get(first.input[0]) if first and first.op_type == "QuantizeLinear" else None
        if not first or not source or source.op_type not in graph.LAYERS or _readers(network, last.output[0]) & {*layers}:
            continue
        value, rounded = first.input[0], last.output[0]
        network.node.remove(last)
        network.node.remove(first)
        old, new = (value, rounded) if rounded in outputs else (rounded, value)
        for node in network.node:
            node.input[:] = [new if name == old else name for name in node.input]
            node.output[:] = [new if name == old else name for name in node.output]
    read = {name for node in network.node for name in node.input} | outputs
    for tensor in [tensor for tensor in network.initializer if tensor.name not in read]:
        network.initializer.remove(tensor)


def _readers(network: onnx.GraphProto, value: str) -> set[str]:
    """Return the names of the layers that a value reaches without another layer between."""
    values, found = {value}, set()
    for node in graph.in_order(network):
        if values & {*node.input}:
            if node.op_type in graph.LAYERS:
                found.add(node.name)
            else:
                values |= {*node.output}
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep onnxruntime from advising what is done here anyway."""
    log = logging.getLogger()
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
