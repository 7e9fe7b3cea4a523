"""What lies in a model repository: read as Triton reads it, by its own protobuf, and held against the graph."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import text_format

from export import triton
from export.module import export_module
from export.proven import ProvenFile
from pipeline import manifest
from pipeline.cli import main
from pipeline.run import Run
from tests.own_data import CASES

Trained = Callable[[str], Run]
TYPES = {"uint8": "TYPE_UINT8", "float": "TYPE_FP32", "double": "TYPE_FP64", "string": "TYPE_STRING"}  # of onnxruntime


@pytest.fixture(scope="module")
def model_config() -> Any:
    """Triton's own schema, of the package `tritonclient`, whose other modules need gRPC."""
    package = importlib.util.find_spec("tritonclient")
    assert package and package.submodule_search_locations
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def proven(trained: Trained, session_folder: Path, cache_dir: Path) -> Path:
    folder = session_folder / "triton" / "run"
    shutil.copytree(trained("cnn").folder, folder)
    assert main(["export", "--run", str(folder), "--formats", "onnx,onnx-fp16", "--cache_dir", str(cache_dir)]) == 0
    assert main(["verify", "--run", str(folder), "--cache_dir", str(cache_dir)]) == 0
    return folder


def _read(folder: Path, model_config: Any) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config.ModelConfig())


def _check(folder: Path, model_config: Any) -> Any:
    """Hold a configuration against what onnxruntime says of the file beside it."""
    config = _read(folder, model_config)
    session = onnxruntime.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    assert config.name == folder.name and config.backend == "onnxruntime" and config.max_batch_size >= 1
    for declared, graph in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [tensor.name for tensor in declared] == [value.name for value in graph]
        for tensor, value in zip(declared, graph, strict=True):
            assert model_config.DataType.Name(tensor.data_type) == TYPES[value.type[7:-1]]
            assert isinstance(value.shape[0], str), "Triton's batch"
            assert list(tensor.dims) == [-1 if isinstance(size, str) else size for size in value.shape[1:]]
    return config


def test_a_model_is_added_as_triton_reads_it(
    proven: Path, tmp_path: Path, model_config: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["triton", "--run", str(proven), "--repository", "models"]) == 0
    folder, said = tmp_path / "models" / "cnn-digits", capsys.readouterr().out
    config = _check(folder, model_config)
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*")) == [
        "1", "1/model.onnx", "config.pbtxt", "labels.txt"
    ]  # fmt: skip
    assert (folder / "1" / "model.onnx").read_bytes() == (proven / "export" / "model.onnx").read_bytes()
    assert {tensor.name: tensor.label_filename for tensor in config.output}["probabilities"] == "labels.txt"
    assert (folder / "labels.txt").read_text().splitlines() == [str(digit) for digit in range(10)]
    assert "the run has no benchmark: max_batch_size 32, one instance" in said
    assert "# Settings: the run has no benchmark" in (folder / "config.pbtxt").read_text()
    (group,) = config.instance_group
    assert group.count == 1 and config.parameters["intra_op_thread_count"].string_value == "0"
    assert config.HasField("dynamic_batching")


@pytest.mark.parametrize("case", ["rgb", "multiclass", "regression", "multilabel"])
def test_own_data_is_declared_in_its_own_types_and_sizes(
    case: str, model_config: Any, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of any size, raw columns of a table, and what has no classes: the weights are as they were drawn."""
    from export import artifacts
    from pipeline.data.prepare import prepare, read_spec
    from pipeline.resolve import resolve

    made = CASES[case].make(tmp_path / "data")
    config = resolve({"dataset": str(made), "cache_dir": str(cache_dir), "formats": "onnx", **CASES[case].flags})
    run = Run(folder=tmp_path, config=config, mlflow_run_id="0" * 32, git_commit="", data=read_spec(prepare(config)))
    monkeypatch.setattr(Run, "load_model", lambda self: self.build_model().eval())
    (tmp_path / manifest.WEIGHTS).write_bytes(b"")
    content = artifacts._build(run, export_module(run), None)["onnx"]
    monkeypatch.setattr(triton, "proven_file", lambda run, name: ProvenFile("model.onnx", content, "0" * 64))
    triton.add(triton.TritonConfig(repository=str(tmp_path / "models"), name="own"), run)
    found = _check(tmp_path / "models" / "own", model_config)
    dims = {tensor.name: list(tensor.dims) for tensor in found.input}
    if case == "rgb":
        assert dims == {"input": [3, -1, -1]}
        other = dataclasses.replace(run, config=dataclasses.replace(config, model="torchvision:resnet18"))
        triton.add(triton.TritonConfig(repository=str(tmp_path / "models")), other)
        assert (tmp_path / "models" / f"resnet18-{run.data.name}" / "config.pbtxt").is_file(), "named as in MLflow"
    else:
        assert dims == {name: [1] for name in ("area", "rooms", "city", "built", "garden")}
        assert (tmp_path / "models" / "own" / "labels.txt").exists() == (case != "regression")


def test_a_name_of_any_letters_is_read_back_as_it_was(model_config: Any) -> None:
    name = 'a "b"\\c\n\u2603 \U0001f600\x07'
    text = f"name: {triton._quoted(name)}"
    assert text.isascii() and text.isprintable() and text_format.Parse(text, model_config.ModelConfig()).name == name


def test_nothing_is_overwritten_and_the_next_file_is_the_next_version(
    proven: Path, tmp_path: Path, model_config: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["triton", "--run", str(proven), "--repository", "models", "--name", "m"]
    folder = tmp_path / "models" / "m"
    assert main(words) == 0
    with (folder / "config.pbtxt").open("a") as file:
        file.write('model_warmup { name: "own" }\n')
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(words) == 0 and "is this file already. Nothing was written." in capsys.readouterr().out
    assert main([*words, "--format", "onnx-fp16"]) == 0
    assert "was there, fits, and stays as it is" in capsys.readouterr().out
    added = {path for path in folder.rglob("*") if path.is_file()} - set(before)
    assert added == {folder / "2" / "model.onnx"} and all(path.read_bytes() == kept for path, kept in before.items())
    assert next(iter(added)).read_bytes() == (proven / "export" / "model.fp16.onnx").read_bytes()
    assert _read(folder, model_config).model_warmup[0].name == "own"
    (folder / "3").mkdir()  # of one that was cut off
    assert main(words) == 0 and (folder / "3" / "model.onnx").is_file() and not (folder / "4").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.pbtxt", 'input { name: "x" data_type: TYPE_FP32 dims: [3] }\n', "is of a model with other inputs or outputs"),
        ("config.pbtxt", "", "is of a model with other inputs or outputs"),
        ("labels.txt", "cat\ndog\n", "labels.txt names other classes than this model has"),
        ("1/model.plan", "x", "has no config.pbtxt that can be read"),
    ],
)
def test_a_model_that_is_another_one_is_left_as_it_is(
    name: str, content: str, said: str, proven: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "models" / "m" / name
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert main(["triton", "--run", str(proven), "--repository", "models", "--name", "m"]) == 2
    assert said in capsys.readouterr().err
    assert [p for p in (tmp_path / "models").rglob("*") if p.is_file()] == [path] and path.read_text() == content


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "repository: nothing was given. Add --repository FOLDER"),
        (["--repository", "r", "--format", "onnx-int8"], "has no proven file of it. Give one of onnx, onnx-fp16, or make it"),
        (["--repository", "r", "--name", "../x"], "name=../x is no name of a folder that Triton takes"),
        (["--repository", "r", "--format", "pt2"], "format=pt2 is not known."),
    ],
)
def test_a_mistake_is_told_and_leaves_nothing(
    words: list[str], said: str, proven: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["triton", "--run", str(proven), *words]) == 2
    assert said in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.fixture
def measured(proven: Path, tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Return a function that gives a run with a sealed benchmark of 8 cores, of these rows of its file."""
    folder = shutil.copytree(proven, tmp_path / "measured")

    def make(*rows: tuple[str, int, int, float | None], sha256: str = "") -> Run:
        run = Run.open(folder)
        digest = sha256 or manifest.read(folder)[1]["export/model.onnx"]
        keys = ("format", "batch", "threads", "p50_ms")
        report = {
            "machine": {"cores": 8, "processor": "A processor"},
            "files": {name: {"sha256": digest} for name in {row[0] for row in rows}},
            "rows": [dict(zip(keys, row, strict=True)) | {"samples_per_s": row[3] and 1000 * row[1] / row[3]} for row in rows],
        }
        (folder / "benchmark").mkdir(exist_ok=True)
        (folder / manifest.BENCHMARK).write_text(json.dumps(report))
        manifest.seal(folder, run.mlflow_run_id, manifest.BENCHMARK)
        return run

    yield make


def _choose(run: Run, optimize_for: str = "throughput") -> triton.Settings:
    return triton.choose(run, "onnx", triton.proven_file(run, "onnx"), optimize_for=optimize_for)


ROWS = (("onnx", 1, 1, 0.1), ("onnx", 1, 8, 0.05), ("onnx", 32, 1, 2.0), ("onnx", 32, 8, 0.5), ("onnx", 256, 1, 30.0))


def test_settings_are_the_best_that_the_benchmark_states(measured: Callable[..., Run]) -> None:
    found = _choose(measured(*ROWS))
    assert (found.max_batch_size, found.instances, found.threads, found.kind) == (32, 8, 1, "KIND_CPU")
    assert "about 128 000 samples a second in batches of 32, if 8 instances do not hinder each other" in found.why[0]
    found = _choose(measured(*ROWS), "latency")
    assert (found.max_batch_size, found.instances, found.threads) == (256, 1, 8)
    assert "0.05 ms (p50) for a batch of 1" in found.why[0]
    many = _choose(measured(("onnx", 32, 8, 0.1), ("onnx", 32, 1, 2.0)))
    assert (many.instances, many.threads) == (1, 8), "where threads scale better than instances"


def test_a_gpu_that_was_measured_and_is_faster_is_used(measured: Callable[..., Run]) -> None:
    found = _choose(measured(*ROWS, ("onnx-cuda", 256, 1, 0.5)))
    assert (found.kind, found.instances, found.max_batch_size) == ("KIND_GPU", 1, 256)


def test_figures_of_another_file_and_those_not_stated_count_for_nothing(measured: Callable[..., Run]) -> None:
    for run in (measured(*ROWS, sha256="0" * 64), measured(("onnx", 1, 1, None)), measured(("onnx-fp16", 1, 1, 0.1))):
        found = _choose(run)
        assert (found.max_batch_size, found.threads) == (32, 0) and "no benchmark states figures of onnx" in found.why[0]
    run = measured(*ROWS)
    (run.folder / manifest.BENCHMARK).write_text("{}")
    assert "the run has no benchmark" in _choose(run).why[0]


def test_the_file_in_the_repository_answers(proven: Path, tmp_path: Path) -> None:
    assert main(["triton", "--run", str(proven), "--repository", "models"]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "models" / "cnn-digits" / "1" / "model.onnx")
    assert session.run(["probabilities"], {"input": np.zeros((3, 1, 28, 28), np.uint8)})[0].shape == (3, 10)
