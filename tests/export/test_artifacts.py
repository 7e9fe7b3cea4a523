"""What the export stage writes: a file of each format and two more, which tell where they are from, not on which machine."""

from __future__ import annotations

import dataclasses
import getpass
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor, nn

import export
from export import artifacts
from export.artifacts import FILES, FOLDER, export_run
from export.formats import FORMATS, pt2, torchscript
from export.formats import onnx as onnx_format
from export.module import ExportError, ExportModule, metadata
from pipeline import manifest
from pipeline.config import RUNTIME_FIELDS
from pipeline.files import sha256
from pipeline.run import Run
from pipeline.task import TASKS
from tests.export.conftest import EXACT, VARIANTS, MakeRun, Trained

ROOT = Path(export.__file__).parents[1]
METADATA = {
    "model", "task", "classes", "input_shape", "input_dtype", "input_range", "mlflow_run_id", "git_commit",
    "data_sha256", "weights_sha256", "trainyard_version",
}  # fmt: skip

WRITTEN = [*EXACT, "safetensors", "config"]


def file(trained: Trained, kind: str) -> Path:
    return trained.run.folder / FOLDER / FILES[kind]


def test_export_writes_a_file_of_each_format_and_nothing_else(exported: Trained) -> None:
    assert sorted(p.name for p in (exported.run.folder / FOLDER).iterdir()) == sorted(FILES[kind] for kind in WRITTEN)
    assert all(file(exported, kind).stat().st_size > 0 for kind in WRITTEN)


def test_onnx_declares_raw_input_dynamic_batch_and_named_outputs(exported: Trained) -> None:
    run, graph = exported.run, onnx.load(file(exported, "onnx")).graph
    (taken,) = graph.input
    shape = [d.dim_param or d.dim_value for d in taken.type.tensor_type.shape.dim]
    assert (taken.name, shape) == ("input", ["batch", *run.data.sample_shape])
    kind = onnx.helper.tensor_dtype_to_np_dtype(taken.type.tensor_type.elem_type)
    assert kind == np.dtype(run.data.dtype)
    assert tuple(o.name for o in graph.output) == run.task.outputs
    assert {o.type.tensor_type.shape.dim[0].dim_param for o in graph.output} == {"batch"}
    if run.task.has_decisions:
        assert graph.output[1].type.tensor_type.shape.dim[1].dim_value == len(run.data.classes)


def test_onnx_is_one_file_of_the_pinned_opset_that_passes_the_full_checker(exported: Trained) -> None:
    content = onnx_format.read(file(exported, "onnx"), what="it")
    model = onnx.load_model_from_string(content)
    onnx.checker.check_model(content, full_check=True)
    assert [entry.version for entry in model.opset_import if not entry.domain] == [onnx_format.OPSET] == [20]
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    named = {tensor.name for tensor in model.graph.initializer}
    assert not named & {value.name for value in model.graph.value_info}


def test_every_format_tells_where_it_comes_from(exported: Trained) -> None:
    run, expected = exported.run, metadata(exported.run)
    assert set(expected) == METADATA
    assert expected["weights_sha256"] == sha256(run.folder / manifest.WEIGHTS)
    props = {p.key: json.loads(p.value) for p in onnx.load(file(exported, "onnx")).metadata_props}
    extra = {"metadata.json": ""}
    torch.jit.load(file(exported, "torchscript"), _extra_files=extra)
    with zipfile.ZipFile(file(exported, "pt2")) as archive:
        in_pt2 = json.loads(archive.read("archive/extra/metadata.json"))
    beside = json.loads(file(exported, "config").read_text())
    assert props == json.loads(extra["metadata.json"]) == in_pt2 == expected
    assert expected.items() <= beside.items()


def test_no_file_names_a_folder_or_a_user_of_this_machine(exported: Trained) -> None:
    traces = {str(ROOT), str(Path(torch.__file__).parents[1]), str(exported.run.folder), str(exported.data), "/tmp"}
    traces |= {str(Path.home()), "/home/", "site-packages", "stack_trace", f"/{getpass.getuser()}/"}
    for kind in WRITTEN:
        content = file(exported, kind).read_bytes()
        unpacked = [content]
        if zipfile.is_zipfile(io.BytesIO(content)):
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                unpacked += [archive.read(name) for name in archive.namelist()]
                assert not any(name.endswith(".debug_pkl") for name in archive.namelist())
        found = {trace for trace in traces for part in unpacked if trace.encode() in part}
        assert not found, kind


@pytest.mark.parametrize(
    "variants", [pytest.param(VARIANTS, marks=pytest.mark.slow, id="all"), pytest.param(["mlp", "cnn"], id="two")]
)
def test_exporting_again_in_another_process_and_folder_gives_the_same_bytes(
    variants: list[str], exports: Callable[[str], Trained], tmp_path: Path
) -> None:
    for variant in variants:
        copied = ("config.json", manifest.WEIGHTS)
        (tmp_path / variant).mkdir()
        for name in copied:
            shutil.copy(exports(variant).run.folder / name, tmp_path / variant / name)
    script = (
        "import pathlib, sys; sys.path.insert(0, sys.argv[1])\n"
        "from export.artifacts import export_run; from pipeline.run import Run\n"
        "for name in sys.argv[2:]: export_run(Run.open(pathlib.Path(name), check=False))"
    )
    reverse = reversed(variants)  # another history of the process, too
    subprocess.run(
        [sys.executable, "-c", script, ROOT, *reverse],
        cwd=tmp_path,
        check=True,
        env=os.environ | {"PYTHONHASHSEED": "7"},
    )
    for variant in variants:
        for name in (FILES[kind] for kind in WRITTEN):
            again = tmp_path / variant / FOLDER / name
            assert sha256(again) == sha256(exports(variant).run.folder / FOLDER / name), again


def test_exporting_again_in_the_same_process_gives_the_same_bytes_and_prints_nothing(
    exports: Callable[[str], Trained],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    first = exports("cnn").run
    shutil.copytree(first.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / FOLDER)
    figures = export_run(Run.open(tmp_path / "run", check=False))
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    for name in (FILES[kind] for kind in WRITTEN):
        assert sha256(tmp_path / "run" / FOLDER / name) == sha256(first.folder / FOLDER / name), name
    assert figures["verify/onnx/size_bytes"] == (first.folder / FOLDER / "model.onnx").stat().st_size


def test_torchscript_keeps_its_weights_as_buffers_that_can_be_moved(exported: Trained) -> None:
    state = torch.jit.load(file(exported, "torchscript")).state_dict()
    weights = load_file(exported.run.folder / manifest.WEIGHTS)
    assert set(state) == {"model_" + name.replace(".", "_") for name in weights}
    assert all(np.array_equal(state["model_" + n.replace(".", "_")].numpy(), a) for n, a in weights.items())


def test_safetensors_are_the_runs_weights_with_a_configuration_free_of_folders(exported: Trained) -> None:
    assert sha256(file(exported, "safetensors")) == sha256(exported.run.folder / manifest.WEIGHTS)
    config = json.loads(file(exported, "config").read_text())["config"]
    assert config["model"] == exported.run.config.model
    assert not RUNTIME_FIELDS & set(config)


@pytest.mark.parametrize("name", TASKS)
def test_exported_probabilities_have_one_column_a_class_and_sum_to_one(name: str) -> None:
    class Fixed(nn.Module):
        has_features = True

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    logits = torch.tensor([[0.5], [-200.0]]) if name == "binary" else torch.tensor([[1.0, 2.0], [90.0, -90.0]])
    outputs = ExportModule(Fixed(), task=TASKS[name])(logits)  # type: ignore[arg-type]
    assert len(outputs) == len(TASKS[name].outputs)
    if name == "binary":
        assert torch.allclose(outputs[1], torch.cat([torch.sigmoid(-logits), torch.sigmoid(logits)], dim=1), rtol=1e-6)
    if name == "multiclass":
        assert torch.allclose(outputs[1].sum(1), torch.ones(2))


class Refused(nn.Module):
    """A network that some format cannot express."""

    has_features = True

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "operator":
            return torch.linalg.eigvals(x[:, :4].reshape(-1, 2, 2)).real, x
        if self.kind == "branch":
            return (x * 2 if x.sum() > 0 else x), x
        if self.kind == "batch":
            return x.reshape(2, 30), x
        return torch.from_numpy(x.detach().numpy() * 2), x


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("operator", r"^onnx: the operator aten\.linalg_eig cannot be exported"),
        ("branch", r"^pt2: .*`return \(x \* 2 if x\.sum\(\) > 0 else x\), x` \(test_artifacts\.py:\d+\)"),
        ("batch", r"^pt2: the batch cannot vary: .* specialized it to be a constant \(2\)\. Take its size from"),
        ("numpy", r"^pt2: .*x\.detach\(\)\.numpy\(\)"),
    ],
    ids=["operator", "branch", "batch", "numpy"],
)
def test_a_model_that_cannot_be_exported_fails_with_the_operators_name_and_leaves_no_file(
    kind: str, message: str, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("mlp", tmp_path / "run").run
    monkeypatch.setattr(artifacts, "export_module", lambda run: ExportModule(Refused(kind), task=TASKS["regression"]).eval())
    with pytest.raises(ExportError, match=message):
        export_run(run)
    assert not (run.folder / FOLDER).exists()


class _InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        assert len(ctx.needs_input_grad) == 1
        ctx.mark_dirty(x)
        return x.mul_(2)


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x * factor

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.factor = inputs[1]


@pytest.mark.parametrize("style", ["context", "setup_context"])
def test_torchscript_holds_autograd_functions_of_both_styles_at_any_batch_size(style: str) -> None:
    class Net(nn.Module):
        has_features = True

        def forward(self, input: Tensor) -> tuple[Tensor]:
            return (_InPlace.apply(input.clone()) if style == "context" else _Scale.apply(input, 2.0),)

    content = torchscript.build(pt2.capture(Net(), torch.zeros(2, 3)), {}, outputs=("y",))
    x = torch.randn(7, 3)
    assert torch.equal(torch.jit.load(io.BytesIO(content))(x)[0], 2 * x)


class Various(nn.Module):
    """What a trace gets wrong, or what the captured graph writes otherwise than TorchScript."""

    has_features = True

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.offset = torch.arange(4.0)  # no buffer

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            doubled = 2 * input.reshape(input.shape[0], -1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = self.linear(doubled)
        return (
            torch.zeros(input.shape[0], 4) + self.offset + torch.tensor([1.0, 2.0, 3.0, 4.0]),
            doubled.masked_fill(doubled > 0, float("-inf")).clamp(max=float("inf")),
            low.float() * input.shape[0] ** 0.5 / max(input.shape[0] // 2, 1),
            doubled.expand(input.size(0) * 1, 4).max(1).indices,
        )


def test_torchscript_computes_with_the_batch_size_and_holds_what_a_trace_could_not() -> None:
    net = Various().eval().requires_grad_(False)
    content = torchscript.build(pt2.capture(net, torch.zeros(2, 2, 2)), {}, outputs=())
    loaded = torch.jit.load(io.BytesIO(content))
    assert {"linear_weight", "linear_bias", "offset"} <= set(loaded.state_dict())
    for size in (1, 2, 7, 64):
        x = torch.randn(size, 2, 2)
        assert all(torch.equal(got, want) for got, want in zip(loaded(x), net(x), strict=True))


def test_torchscript_refuses_a_branch_on_values_by_its_name() -> None:
    class Net(nn.Module):
        has_features = True

        def forward(self, input: Tensor) -> tuple[Tensor]:
            return (torch.cond(input.sum() > 0, torch.sin, torch.cos, (input,)),)

    with pytest.raises(ValueError, match=r"^the operator cond cannot be exported"):
        torchscript.build(pt2.capture(Net(), torch.zeros(2, 3)), {}, outputs=())


def test_export_names_the_format_that_refuses_a_model(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> bytes:
        raise ValueError("it is too large.")

    run = make_run("two_layer", tmp_path / "run").run
    refusing = {"onnx": FORMATS["onnx"], "pt2": dataclasses.replace(FORMATS["pt2"], build=refuse)}
    monkeypatch.setattr(artifacts, "FORMATS", refusing)
    with pytest.raises(ExportError, match=r"^pt2: it is too large\.$"):
        export_run(run)


def test_a_file_of_a_format_that_is_no_more_goes_with_the_export_that_it_was_of(
    exports: Callable[[str], Trained], tmp_path: Path
) -> None:
    shutil.copytree(exports("two_layer").run.folder, tmp_path / "run")
    run = Run.open(tmp_path / "run", check=False)
    (run.folder / FOLDER / "model.old").write_text("of an earlier export")
    run.seal("export")
    (run.folder / FOLDER / "model.mine").write_text("of somebody else")
    export_run(run)
    left = {path.name for path in (run.folder / FOLDER).iterdir()}
    assert "model.old" not in left and "model.mine" in left
