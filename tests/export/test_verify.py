"""The gate holds: sound files pass in fresh processes, and each way of spoiling one fails with its name."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from export import explain
from export.artifacts import FILES, FOLDER
from export.formats import onnx as onnx_format
from export.formats import pt2, torchscript
from export.module import ExportModule, example_input, export_module, metadata
from export.verify import Verdict, verify_run
from pipeline import manifest
from pipeline import run as run_folder
from pipeline.errors import UserError
from pipeline.run import Run
from tests.export.conftest import EXACT, ONE_EACH, VARIANTS, Trained

Exports = Callable[[str], Trained]
FIGURES = {"max_abs_diff", "mean_abs_diff", "latency_ms_b1"}


@pytest.fixture(scope="session")
def verdicts(exports: Exports) -> Callable[[str], Verdict]:
    """Return a function that gives the verdict over a variant's own files, reached once."""
    reached: dict[str, Verdict] = {}

    def get(variant: str) -> Verdict:
        if variant not in reached:
            trained = exports(variant)
            reached[variant] = verify_run(trained.run, data=trained.data)
        return reached[variant]

    return get


@pytest.mark.parametrize(
    "variant", [v if v in ("cnn", "polynomial-linear") else pytest.param(v, marks=pytest.mark.slow) for v in ONE_EACH]
)
def test_every_format_agrees_with_torch_in_a_fresh_process(verdicts: Callable[[str], Verdict], variant: str) -> None:
    verdict = verdicts(variant)
    assert verdict.passed, verdict.problems
    assert set(verdict.report["artifacts"]) == set(EXACT)
    classifies = verdict.report["metric"] == "accuracy"
    names = FIGURES | ({"argmax_flips", "accuracy_diff"} if classifies else {"rmse_diff"})
    assert set(verdict.metrics) == {f"verify/{kind}/{name}" for kind in EXACT for name in names}
    for kind in EXACT:
        assert verdict.metrics[f"verify/{kind}/max_abs_diff"] < 1e-5
        assert verdict.metrics[f"verify/{kind}/latency_ms_b1"] > 0
        assert list(verdict.report["artifacts"][kind]["cases"]) == ["1", "2", "7", "64", "all"]


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v not in ONE_EACH])
def test_every_gradient_of_the_cubic_exports_to_an_equal_onnx(exports: Exports, variant: str) -> None:
    trained = exports(variant)
    verdict = verify_run(trained.run, data=trained.data, onnx=trained.run.folder / FOLDER / FILES["onnx"])
    assert verdict.passed, verdict.problems


def test_the_report_is_a_table_under_the_verdict(exports: Exports, verdicts: Callable[[str], Verdict]) -> None:
    verdict = verdicts("cnn")
    text = (exports("cnn").run.folder / FOLDER / "parity.md").read_text()
    assert text.splitlines()[2].startswith("**PASSED**: onnx, torchscript, pt2 ")
    assert "| format | runtime | max abs diff | mean abs diff | argmax flips (n = 359) | accuracy |" in text
    assert "| onnx | onnxruntime " in text
    for kind in EXACT:
        assert all(f"| {kind} | {case} | " in text for case in (1, 2, 7, 64, "all"))
    assert json.loads((exports("cnn").run.folder / FOLDER / "parity.json").read_text()) == verdict.report


def test_two_reports_of_the_same_file_differ_only_in_latency(exports: Exports, tmp_path: Path) -> None:
    trained, reports = exports("mlp"), []
    for _ in range(2):
        path = shutil.copy(trained.run.folder / FOLDER / FILES["onnx"], tmp_path / "copy.onnx")
        report = verify_run(trained.run, data=trained.data, onnx=Path(path)).report
        assert report["artifacts"]["onnx"].pop("latency_ms_b1") > 0
        reports.append(report)
    assert reports[0] == reports[1]
    assert str(tmp_path) not in json.dumps(reports[0])


def edit(model: onnx.ModelProto, name: str, change: Callable[[Any], None]) -> None:
    """Change the values of an initializer in place."""
    tensor = next(t for t in model.graph.initializer if t.name == f"model.{name}")
    values = numpy_helper.to_array(tensor).copy()
    change(values)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def nudge(model: onnx.ModelProto) -> None:
    def change(weight: Any) -> None:
        weight[3, 4] += 0.01

    edit(model, "network.hidden.weight", change)


def poison(model: onnx.ModelProto) -> None:
    edit(model, "network.output.bias", lambda bias: bias.fill(np.nan))


def freeze(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    """Give tensors other names, throughout the graph."""
    for node in model.graph.node:
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
    for output in model.graph.output:
        output.name = names.get(output.name, output.name)


def swap_order(model: onnx.ModelProto) -> None:
    outputs = [copy.deepcopy(output) for output in reversed(model.graph.output)]
    del model.graph.output[:]
    model.graph.output.extend(outputs)


def relabel(model: onnx.ModelProto) -> None:
    rename(model, {"features": "embedding"})


def of_another_run(model: onnx.ModelProto) -> None:
    next(p for p in model.metadata_props if p.key == "weights_sha256").value = json.dumps("0" * 64)


def standardize_nothing(model: onnx.ModelProto) -> None:
    first, second = model.graph.node[0], model.graph.node[1]
    assert (first.op_type, second.op_type) == ("Sub", "Div")
    for node in model.graph.node:
        node.input[:] = ["input" if name == second.output[0] else name for name in node.input]
    del model.graph.node[:2]


def break_operator(model: onnx.ModelProto) -> None:
    model.graph.node[-1].op_type = "NoSuchOperator"


SABOTAGE = [
    (nudge, r"weights differ from weights\.safetensors: network\.hidden\.weight in 1 of 750 values by up to 0\.01$"),
    (nudge, r"output logits differs from torch by up to 0\.\d+ for batches of .*the whole test set"),
    (freeze, r"the batch is frozen at 1: the first axis of its input is declared 1, not 'batch'"),
    (freeze, r"it runs for batches of 1 only, and fails for batches of 2, 7, 64 and the whole test set: Invalid"),
    (standardize_nothing, r"standardization is missing: the outputs equal those of the network fed with raw input"),
    (swap_order, r"its outputs come in the order features, probabilities, logits, not logits, probabilities, features"),
    (poison, r"output logits is NaN or infinite in 114 of 114 values for the whole test set$"),
    (poison, r"network\.output\.bias in 1 of 1 values by up to nan"),
    (relabel, r"its outputs are named logits, probabilities, embedding, not logits, probabilities, features"),
    (of_another_run, r'its metadata says weights_sha256="0+", the run has "[0-9a-f]{64}"'),
    (break_operator, r"it cannot be loaded and run: .*NoSuchOperator"),
]


@pytest.fixture(scope="session")
def sabotaged(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Verdict]:
    """Return a function that spoils a variant's ONNX file and gives the verdict over it."""
    reached: dict[tuple[str, str], Verdict] = {}

    def get(change: Callable[[onnx.ModelProto], None], variant: str = "mlp") -> Verdict:
        key = (variant, change.__name__)
        if key not in reached:
            trained = exports(variant)
            model = onnx.load(trained.run.folder / FOLDER / FILES["onnx"])
            change(model)
            path = tmp_path_factory.mktemp("spoilt") / f"{change.__name__}.onnx"
            path.write_bytes(model.SerializeToString())
            reached[key] = verify_run(trained.run, data=trained.data, onnx=path)
        return reached[key]

    return get


@pytest.mark.parametrize(("change", "problem"), SABOTAGE, ids=[f"{c.__name__}-{i}" for i, (c, _) in enumerate(SABOTAGE)])
def test_a_spoilt_onnx_file_fails_with_the_name_of_what_differs(
    change: Callable[[onnx.ModelProto], None], problem: str, sabotaged: Callable[..., Verdict], exports: Exports
) -> None:
    verdict = sabotaged(change)
    assert not verdict.passed
    assert any(re.search(problem, found) for found in verdict.problems), verdict.problems
    written = exports("mlp").run.folder / FOLDER / f"parity-{change.__name__}"
    assert "**FAILED**: onnx must not be used." in written.with_suffix(".md").read_text()
    assert json.loads(written.with_suffix(".json").read_text())["problems"] == verdict.problems


def swap_names(model: onnx.ModelProto) -> None:
    rename(model, {"logits": "probabilities", "probabilities": "logits"})


def test_swapped_output_names_are_told_by_their_values(sabotaged: Callable[..., Verdict]) -> None:
    problems = sabotaged(swap_names, "cnn").problems
    assert "swap_names.onnx: output logits holds the values of probabilities: the outputs are swapped" in problems
    assert "swap_names.onnx: output probabilities holds the values of logits: the outputs are swapped" in problems


def test_another_onnx_file_leaves_the_runs_own_report_and_figures_alone(
    sabotaged: Callable[..., Verdict], verdicts: Callable[[str], Verdict], exports: Exports
) -> None:
    own, other = verdicts("mlp"), sabotaged(nudge)
    assert json.loads((exports("mlp").run.folder / FOLDER / "parity.json").read_text()) == own.report
    assert not set(own.metrics) & set(other.metrics)
    assert other.metrics["verify/parity-nudge/max_abs_diff"] > 1e-4


class Spoilt(nn.Module):
    """An exported model that gives at most two rows."""

    has_features = True

    def __init__(self, module: ExportModule) -> None:
        super().__init__()
        self.model = module.model
        self.module = module

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        return tuple(output[:2] for output in self.module(input))


def test_spoilt_torchscript_and_pt2_files_fail_beside_a_sound_onnx(exports: Exports, tmp_path: Path) -> None:
    trained = exports("mlp")
    shutil.copytree(trained.run.folder, tmp_path / "run")
    run = Run.open(tmp_path / "run", check=False)
    spoilt = pt2.capture(Spoilt(export_module(run)), example_input(run))
    frozen = torchscript.build(spoilt, metadata(run), outputs=())
    nudged = export_module(run)
    nudged.model.get_parameter("network.hidden.weight")[0, 0] += 0.5
    program = pt2.capture(nudged, example_input(run))
    (run.folder / FOLDER / FILES["torchscript"]).write_bytes(frozen)
    (run.folder / FOLDER / FILES["pt2"]).write_bytes(pt2.build(program, metadata(run), outputs=()))
    verdict = verify_run(run, data=trained.data)
    assert not verdict.passed
    assert verdict.report["artifacts"]["onnx"]["problems"] == []
    texts = "\n".join(verdict.problems)
    assert "model.torchscript.pt: the batch is frozen: it gives 2 rows for batches of 7" in texts
    assert "model.pt2: its weights differ from weights.safetensors: network.hidden.weight in 1 of 750 values" in texts
    assert "**FAILED**: torchscript, pt2 must not be used." in (run.folder / FOLDER / "parity.md").read_text()


def external(model: onnx.ModelProto) -> bytes:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../../etc/passwd")
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"cannot be read \(No such file or directory\)"),
        (b"", "is not an ONNX file: it holds no graph"),
        (b"\x89PNG\r\n\x1a\n" * 9, "is not an ONNX file: it cannot be decoded"),
        (external, "in other files .* which are not opened"),
    ],
    ids=["missing", "empty", "picture", "external-data"],
)
def test_a_file_that_is_no_single_onnx_file_is_the_users_mistake(
    content: Any, message: str, exports: Exports, tmp_path: Path
) -> None:
    trained, path = exports("mlp"), tmp_path / "given.onnx"
    if callable(content):
        content = content(onnx.load(trained.run.folder / FOLDER / FILES["onnx"]))
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        verify_run(trained.run, data=trained.data, onnx=path)
    assert str(path) in str(raised.value)


def test_external_data_inside_a_subgraph_is_found_too() -> None:
    inner = onnx.ModelProto(ir_version=10)
    inner.opset_import.add(version=20)
    inner.graph.output.add(name="y")
    attribute = inner.graph.node.add(op_type="If").attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH)
    value = attribute.g.node.add(op_type="Constant").attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    value.t.data_location = onnx.TensorProto.EXTERNAL
    path = Path("nested.onnx")
    path.write_bytes(inner.SerializeToString())
    with pytest.raises(ValueError, match="keeps 1 tensors in other files"):
        onnx_format.read(path, what="it")


def test_a_run_without_its_export_is_the_users_mistake(exports: Exports, tmp_path: Path) -> None:
    trained = exports("mlp")
    shutil.copytree(trained.run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("*.pt2"))
    with pytest.raises(UserError, match=r"has no model\.pt2 in its export/"):
        verify_run(Run.open(tmp_path / "run", check=False), data=trained.data)


def test_outputs_that_are_not_finite_in_torch_either_fail(exports: Exports, tmp_path: Path) -> None:
    trained = exports("two_layer")
    shutil.copytree(trained.run.folder, tmp_path / "run")
    run = Run.open(tmp_path / "run", check=False)
    model = run.load_model()
    with torch.no_grad():
        model.get_parameter("network.output.bias").fill_(torch.nan)
    run_folder.save_weights(run.folder / manifest.WEIGHTS, model.state_dict(), run_id=run.mlflow_run_id)
    program = pt2.capture(export_module(run), example_input(run))
    path = tmp_path / "nan.onnx"
    path.write_bytes(onnx_format.build(program, metadata(run), outputs=run.task.outputs))
    problems = verify_run(run, data=trained.data, onnx=path).problems
    assert any("logits is NaN or infinite in 200 of 200" in p and "torch itself gives 200 such" in p for p in problems)


def test_tensors_that_another_program_has_put_together_are_not_said_to_differ() -> None:
    """A batch normalization that was folded into a convolution leaves neither under its name."""
    whole = {"conv.weight": np.ones((4, 1, 3, 3), np.float32), "bn.weight": np.full(4, 2, np.float32), "fc.bias": np.ones(3)}
    folded = {"onnx::Conv_7": whole["conv.weight"] * 2, "fc.bias": whole["fc.bias"]}
    (said,) = explain.weights(folded, whole)
    assert said.startswith(
        "2 of the 3 tensors of weights.safetensors are not in it: conv.weight (4, 1, 3, 3); bn.weight (4,). "
    )
