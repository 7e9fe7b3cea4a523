"""Files of 8 and 16 bits: made from the ONNX file with the layers that can bear it, and held to what they decide."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from mlflow import MlflowClient
from safetensors.torch import load_file

from export import derive, graph
from export.formats import FORMATS, fp16, int8
from export.gates import Limits
from export.verify import verify_run
from pipeline import manifest, start
from pipeline import run as run_folder
from pipeline.cli import main
from pipeline.data.loader import open_split
from pipeline.data.prepare import prepared_folder
from pipeline.run import Run
from tests.conftest import ROOT
from tests.own_data import photos

SMALLER = ("onnx-int8", "onnx-fp16")
WANTED = ["--formats", "onnx,onnx-int8,onnx-fp16"]
Trained = Callable[[str], Run]


@pytest.fixture(scope="module")
def proven(trained: Trained, session_folder: Path, cache_dir: Path) -> Run:
    """A cnn, exported to ONNX and to what is derived from it, and proven. Not to be changed."""
    folder = session_folder / "smaller" / "run"
    shutil.copytree(trained("cnn").folder, folder)
    assert main(["export", "--run", str(folder), "--cache_dir", str(cache_dir), *WANTED]) == 0
    assert main(["verify", "--run", str(folder), "--cache_dir", str(cache_dir)]) == 0
    return Run.open(folder)


@pytest.fixture(scope="module")
def spiky(trained: Trained, session_folder: Path) -> Run:
    """The same network, as float32 computes it, with values that the others cannot hold.

    One feature is 10^6 times as large, which the last layer divides again: no step of 8 bits is left for the others. So are
    the weights of the first layer, 10^8 times, which the second one divides again: 16 bits hold neither.
    """
    folder = session_folder / "spiky" / "run"
    shutil.copytree(trained("cnn").folder, folder)
    run = Run.open(folder)
    weights = load_file(folder / manifest.WEIGHTS)
    loudest = int(weights["network.fc2.weight"].abs().sum(0).argmax())
    weights["network.fc1.weight"][loudest] *= 1e6
    weights["network.fc1.bias"][loudest] *= 1e6
    weights["network.fc2.weight"][:, loudest] /= 1e6
    weights["network.conv1.weight"] *= 1e8
    weights["network.conv1.bias"] *= 1e8
    weights["network.conv2.weight"] /= 1e8
    run.unseal("train")
    run_folder.save_weights(folder / manifest.WEIGHTS, weights, run_id=run.mlflow_run_id)
    run.seal("train")
    return Run.open(folder)


def _parity(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.folder / "export" / "parity.json").read_text())
    return found


def _setting(content: bytes) -> dict[str, Any]:
    entries = {entry.key: json.loads(entry.value) for entry in onnx.load_model_from_string(content).metadata_props}
    found: dict[str, Any] = entries["quantization"]
    return found


def _bits(setting: Mapping[str, Any]) -> str:
    """What the report adds where this processor multiplies 8 bits by 8 in 16."""
    return ", weights of 7 bits" if setting.get("reduce_range") else ""


def _answer(content: bytes, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def _content(run: Run, name: str) -> bytes:
    return (run.folder / "export" / FORMATS[name].file).read_bytes()


def test_smaller_files_decide_as_torch_does_and_the_report_says_what_they_cost(proven: Run) -> None:
    report, text = _parity(proven), (proven.folder / "export" / "parity.md").read_text()
    assert report["passed"] and list(report["artifacts"]) == ["onnx", *SMALLER] and "rejected" not in report
    layers = {"conv1", "conv2", "fc1", "fc2"}
    for name, size in zip(SMALLER, (0.3, 0.55), strict=True):
        gate = report["artifacts"][name]["gate"]
        assert gate["agreement"] >= 0.995 and gate["metric_drop"] <= 0.005 and gate["size_ratio"] < size
        assert gate["speedup"] > 0 and gate["setting"]["float_layers"] == []
        worst = gate["setting"]["worst_layer"]
        assert worst["layer"] in layers and 0 < worst["error"] < 0.1 > worst["error_of_all"] > 0
        assert gate["setting"]["chosen_on"] == "val" and gate["setting"]["num_layers"] == len(layers)
        assert f"| {name} | all layers{_bits(gate['setting'])} | " in text and f"| {worst['layer']} (error alone " in text
        assert report["artifacts"][name]["max_abs_diff"] > 1e-6, "it is not the exact file"
    assert "**PASSED**: onnx predicts as the trained model does." in text
    assert "onnx-int8, onnx-fp16 keep their limits" in text
    assert "onnx-int8" in json.loads((proven.folder / "export" / "config.json").read_text())["config"]["formats"]


def test_their_figures_stand_in_mlflow(proven: Run) -> None:
    found = MlflowClient().get_run(proven.mlflow_run_id).data
    for name in SMALLER:
        for metric in ("accuracy_drop", "agreement", "argmax_flips", "size_ratio", "speedup", "latency_ms_b1", "size_bytes"):
            assert f"verify/{name}/{metric}" in found.metrics
    assert found.tags["parity"] == "passed"


def test_a_smaller_file_takes_and_gives_what_the_exact_one_does_and_says_what_it_is(proven: Run) -> None:
    exact = onnx.load_model_from_string(_content(proven, "onnx"))
    told = {entry.key: entry.value for entry in exact.metadata_props}
    for name in SMALLER:
        made = onnx.load_model_from_string(_content(proven, name))
        assert made.graph.input == exact.graph.input and made.graph.output == exact.graph.output
        own = {entry.key: entry.value for entry in made.metadata_props}
        assert told.items() <= own.items() and set(own) - set(told) == {"format", "quantization"}
        assert json.loads(own["format"]) == name and {entry.domain for entry in made.opset_import} == {""}
    types = {t.data_type for t in onnx.load_model_from_string(_content(proven, "onnx-int8")).graph.initializer if t.dims}
    assert onnx.TensorProto.INT8 in types and onnx.TensorProto.FLOAT16 not in types


def test_they_are_the_same_bytes_each_time_in_any_process(proven: Run, cache_dir: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from export.formats import FORMATS; from export import derive\n"
        "content, samples = Path(sys.argv[1]).read_bytes(), derive.samples(Path(sys.argv[2])).calibration\n"
        "for name in ('onnx-int8', 'onnx-fp16'):\n"
        "    Path(name).write_bytes(FORMATS[name].derivation(content, samples).make([]))\n"
    )
    command = [sys.executable, "-c", script, str(proven.folder / "export" / "model.onnx"), str(prepared_folder(proven.config))]
    made: list[list[bytes]] = []
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "PATH": ""}
        subprocess.run(command, cwd=tmp_path / seed, env=environment, check=True, timeout=100)
        made.append([(tmp_path / seed / name).read_bytes() for name in SMALLER])
    assert made[0] == made[1] and str(tmp_path).encode() not in b"".join(made[0])
    setting = _setting(_content(proven, "onnx-int8"))
    assert graph.with_metadata(made[0][0], {"format": "onnx-int8", "quantization": setting}) == _content(proven, "onnx-int8")


def test_where_a_layer_cannot_bear_it_that_layer_stays_in_float_and_is_named(spiky: Run, cache_dir: Path, capsys: Any) -> None:
    """The next weaker setting is tried, as often as needed."""
    assert main(["export", "--run", str(spiky.folder), "--cache_dir", str(cache_dir), *WANTED]) == 0
    said = capsys.readouterr().out
    assert "onnx-int8: 3 of 4 layers, without fc2; fc2 loses most" in said
    setting = _setting(_content(spiky, "onnx-int8"))
    assert setting["float_layers"] == ["fc2"] and setting["passes"] and setting["worst_layer"]["layer"] == "fc2"
    first, second = setting["tried"]
    assert first["float_layers"] == [] and first["agreement"] < 0.9 < 0.995 <= second["agreement"]
    halved = _setting(_content(spiky, "onnx-fp16"))
    assert halved["passes"] and {"conv1", "conv2"} <= set(halved["float_layers"]) and len(halved["tried"]) > 1
    assert halved["worst_layer"]["error"] > 0.1 and halved["tried"][0]["agreement"] < 0.995
    assert main(["verify", "--run", str(spiky.folder), "--cache_dir", str(cache_dir)]) == 0
    text = (spiky.folder / "export" / "parity.md").read_text()
    assert f"| onnx-int8 | in float: fc2{_bits(setting)} | " in text and "| fc2 (error alone " in text


def test_a_file_that_misses_its_gate_is_moved_with_the_reason_and_the_others_stay_proven(
    proven: Run, cache_dir: Path, tmp_path: Path, capsys: Any
) -> None:
    """No int8 file is a thousand times as fast. Judged again without that limit, it comes back."""
    folder = tmp_path / "run"
    shutil.copytree(proven.folder, folder)
    words = ["verify", "--run", str(folder), "--cache_dir", str(cache_dir)]
    before = _content(proven, "onnx-int8")
    assert main([*words, "--min_speedup", "1000"]) == 1
    told = capsys.readouterr().err
    assert "as a gate was missed:" in told and "times as fast as model.onnx at batch 1: 1000 is asked for (min_speedup)" in told
    run = Run.open(folder)  # all that is sealed is there
    sealed = manifest.read(folder)[1]
    assert {"rejected/model.int8.onnx", "rejected/model.int8.json", "export/model.onnx", "export/parity.json"} <= set(sealed)
    assert not (folder / "export" / "model.int8.onnx").exists() and "export/model.int8.onnx" not in sealed
    assert (folder / "rejected" / "model.int8.onnx").read_bytes() == before
    reason = json.loads((folder / "rejected" / "model.int8.json").read_text())
    assert reason["format"] == "onnx-int8" and "1000 is asked for" in reason["problems"][0] and reason["gate"]["speedup"] > 0
    assert reason["gate"]["setting"]["tried"][0]["float_layers"] == []
    report = _parity(run)
    assert report["passed"] and list(report["artifacts"]) == ["onnx"] and list(report["rejected"]) == list(SMALLER)
    text = (folder / "export" / "parity.md").read_text()
    assert "**PASSED**: onnx predicts" in text and "**REJECTED**, and moved to `rejected/`: onnx-int8, onnx-fp16." in text
    assert start.missing_stages(run, export=True)[-1:] == ["verify"], "a resumed run does not call it finished"
    client = MlflowClient()
    sent = {item.path for part in ("export", "rejected") for item in client.list_artifacts(run.mlflow_run_id, part)}
    assert {"export/model.onnx", "rejected/model.int8.onnx", "rejected/model.int8.json"} <= sent
    assert "export/model.int8.onnx" not in sent, "nobody takes it from there"
    assert client.get_run(run.mlflow_run_id).data.tags["parity"] == "passed"
    assert main(words) == 0
    assert _content(Run.open(folder), "onnx-int8") == before and not (folder / "rejected").exists()
    assert not [name for name in manifest.read(folder)[1] if name.startswith("rejected/")]


def test_an_export_of_fewer_formats_leaves_none_of_the_others(proven: Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(proven.folder, folder)
    (folder / "rejected").mkdir()
    (folder / "export" / "model.fp16.onnx").rename(folder / "rejected" / "model.fp16.onnx")
    (folder / "rejected" / "model.fp16.json").write_text("{}")
    assert main(["export", "--run", str(folder), "--formats", "onnx"]) == 0
    assert sorted(path.name for path in (folder / "export").iterdir()) == ["config.json", "model.onnx", "model.safetensors"]
    assert not [*(folder / "rejected").iterdir()] and manifest.is_whole(folder, "export")


def _outside(run: Run, name: str, make: Callable[[bytes], bytes]) -> Path:
    path = Path(name)
    path.write_bytes(make(_content(run, "onnx")))
    return path


def _stripped(content: bytes) -> bytes:
    """Return a file as somebody else's tool leaves it: it says nothing of itself."""
    model = onnx.load_model_from_string(content)
    del model.metadata_props[:]
    return model.SerializeToString()


def test_a_file_that_somebody_else_quantized_is_judged_by_the_same_rules(
    proven: Run, spiky: Run, cache_dir: Path, capsys: Any
) -> None:
    data, samples = prepared_folder(proven.config), derive.samples(prepared_folder(proven.config)).calibration
    good = _outside(proven, "good.onnx", lambda content: _stripped(int8.derivation(content, samples).make([])))
    verdict = verify_run(proven, data=data, onnx=good, kind="onnx-int8")
    assert verdict.passed and verdict.problems == [] == verdict.rejected
    assert verdict.metrics["verify/parity-good/agreement"] >= 0.995 and "verify/parity-good/speedup" in verdict.metrics
    assert good.is_file() and not (proven.folder / "rejected").exists(), "it is not ours to move"
    strict = verify_run(proven, data=data, onnx=good)
    assert not strict.passed and "tensors of weights.safetensors are not in it" in " ".join(strict.problems)
    halved = _outside(proven, "half.onnx", lambda content: fp16.derivation(content, samples).make([]))
    assert verify_run(proven, data=data, onnx=halved, kind="onnx-fp16").passed
    assert (
        verify_run(proven, data=data, onnx=halved, kind="onnx-int8")
        .problems[0]
        .startswith("half.onnx: it holds no weights of int8, only of float")
    )
    assert main(["export", "--run", str(spiky.folder), "--formats", "onnx"]) == 0
    bad = _outside(spiky, "bad.onnx", lambda content: _stripped(int8.derivation(content, samples).make([])))
    words = ["verify", "--run", str(spiky.folder), "--cache_dir", str(cache_dir), "--onnx", str(bad), "--as", "int8"]
    assert main(words) == 1
    told = capsys.readouterr().err
    assert "bad.onnx: its accuracy over the test samples is" in told and "0.005 is allowed (max_metric_drop)" in told
    assert "of its decisions over the test samples are torch's" in told and "99.5% are needed" in told


def test_a_good_metric_is_not_enough_for_a_file_that_does_not_behave(proven: Run) -> None:
    """Probabilities of others, rows that hang on the batch, numbers that are none: each has its sentence."""
    data, samples = prepared_folder(proven.config), derive.samples(prepared_folder(proven.config)).calibration
    made = onnx.load_model_from_string(int8.derivation(_content(proven, "onnx"), samples).make([]))

    def spoiled(change: Callable[[onnx.GraphProto], None]) -> list[str]:
        model = onnx.ModelProto()
        model.CopyFrom(made)
        change(model.graph)
        Path("spoiled.onnx").write_bytes(model.SerializeToString())
        return verify_run(proven, data=data, onnx=Path("spoiled.onnx"), kind="onnx-int8").problems

    def softer(network: onnx.GraphProto) -> None:
        softmax = next(node for node in network.node if node.op_type == "Softmax")
        network.node.insert([*network.node].index(softmax), onnx.helper.make_node("Neg", [softmax.input[0]], ["other"]))
        softmax.input[0] = "other"

    def swallowed(network: onnx.GraphProto) -> None:
        last = next(node for node in network.node if "features" in node.output)
        last.output[0] = "own"
        network.node.insert([*network.node].index(last) + 1, onnx.helper.make_node("Log", ["own"], ["features"]))

    def mixed(network: onnx.GraphProto) -> None:
        last = next(node for node in network.node if "logits" in node.output)
        place = [*network.node].index(last) + 1
        last.output[0] = "own"
        axis = onnx.numpy_helper.from_array(np.array([0]), "axis")
        network.initializer.append(axis)
        network.node.insert(place, onnx.helper.make_node("ReduceMean", ["own", "axis"], ["mean"]))
        network.node.insert(place + 1, onnx.helper.make_node("Sub", ["own", "mean"], ["logits"]))

    assert any("its probabilities are not those of its logits" in problem for problem in spoiled(softer))
    assert any("values that are not finite" in problem for problem in spoiled(swallowed))
    assert any("hangs on the batch" in problem for problem in spoiled(mixed))


def test_a_table_is_quantized_behind_its_columns(cache_dir: Path, tmp_path: Path) -> None:
    source = np.random.default_rng(0)
    with Path("t.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["city", "size", "kind"])
        for k in range(240):
            city = ("Rome", "Oslo", "Bern")[k % 3]
            writer.writerow([city, f"{source.normal():.3f}" if k % 7 else "", "warm" if city == "Rome" else "cold"])
    words = ["--dataset", "t.csv", "--target", "kind", "--model", "mlp", "--epochs", "6", "--cache_dir", str(cache_dir)]
    assert main(["run", *words, "--output_dir", "run", *WANTED]) == 0
    run = Run.open(Path("run"))
    for name in SMALLER:
        model = onnx.load_model_from_string(_content(run, name))
        assert [value.name for value in model.graph.input] == ["city", "size"]
        session = onnxruntime.InferenceSession(_content(run, name), providers=["CPUExecutionProvider"])
        columns = {"city": np.array([["Rome"], ["Oslo"]], object), "size": np.array([[0.5], [np.nan]])}
        warm = run.data.classes.index("warm")
        assert (session.run(["logits"], columns)[0][:, 0] > 0).tolist() == [warm == 1, warm == 0]
    assert _parity(run)["artifacts"]["onnx-int8"]["gate"]["setting"]["worst_layer"]["layer"] in ("hidden", "output")
    assert main(["predict", "--onnx", "run/export/model.int8.onnx", "--input", "t.csv", "--output", "answers.csv"]) == 0
    with Path("answers.csv").open() as file:
        assert [row["prediction"] for row in csv.DictReader(file)][:3] == ["warm", "cold", "cold"]


def test_images_of_any_size_are_resized_before_anything_is_rounded(cache_dir: Path) -> None:
    photos(Path("photos"))
    words = ["--dataset", "photos", "--model", "cnn", "--image_size", "28", "--epochs", "4", "--cache_dir", str(cache_dir)]
    main(["run", *words, "--output_dir", "run", *WANTED])  # whether it learnt enough is not asked here
    run = Run.open(Path("run"), check=False)
    assert run.data.any_size
    plain = onnx.load_model_from_string(_content(run, "onnx")).graph
    front = [node.SerializeToString() for node in plain.node if node.name in graph.front(plain)]
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 41, 67), np.uint8)
    exact = _answer(_content(run, "onnx"), image)
    report = _parity(run)
    for name in SMALLER:
        content = next(path for path in run.folder.glob(f"*/{FORMATS[name].file}")).read_bytes()
        made = onnx.load_model_from_string(content).graph
        if name == "onnx-fp16":
            assert [node.SerializeToString() for node in made.node][: len(front)] == front
        products = [node for node in made.node if node.op_type == "MatMul"]
        assert len(products) == 2 and not any("Quantize" in name or "fp16" in name for node in products for name in node.input)
        assert np.abs(_answer(content, image) - exact).max() < 0.2 * np.abs(exact).max()
        found = (report["artifacts"] | report.get("rejected", {}))[name]["originals"]
        assert found["num_images"] == report["num_samples"] and found["argmax_flips"] <= 1


@pytest.mark.parametrize(
    ("flags", "reduced"),
    [("fpu avx2", True), ("fpu avx512_vnni", False), ("avx_vnni", False), ("", True)],
)
def test_a_processor_without_vnni_gets_weights_of_seven_bits(
    flags: str, reduced: bool, proven: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    (tmp_path / "cpuinfo").write_text(f"model name\t: some\nflags\t\t: {flags}\n" if flags else "")
    assert int8.has_vnni(tmp_path / "cpuinfo") != reduced
    assert int8.has_vnni(tmp_path / "none") is False
    monkeypatch.setattr(int8, "has_vnni", lambda: not reduced)
    made = int8.derivation(_content(proven, "onnx"), open_split(prepared_folder(proven.config), "val").x[:32].numpy())
    weights = [
        onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load_model_from_string(made.make([])).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    ]
    largest = max(int(np.abs(tensor.astype(int)).max()) for tensor in weights)
    assert made.setting["reduce_range"] is reduced and largest == (64 if reduced else 127)


def test_where_no_setting_passes_the_best_one_is_made_and_verify_has_the_last_word(proven: Run, capsys: Any) -> None:
    """A limit that nothing keeps: each weaker setting is tried, and none with all layers in float."""
    drawn = derive.samples(prepared_folder(proven.config))
    content = derive.derive(
        FORMATS["onnx-int8"], _content(proven, "onnx"), drawn, task=proven.task, limits=Limits(max_metric_drop=-1.0)
    )
    setting = _setting(content)
    assert not setting["passes"] and [len(entry["float_layers"]) for entry in setting["tried"]] == [0, 1, 2, 3]
    assert "none of 4 settings keeps its limits on the val samples" in capsys.readouterr().out
