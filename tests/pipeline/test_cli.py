"""The command line as a user meets it, in processes of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline import __version__
from pipeline.cli import main
from pipeline.config import RunConfig
from pipeline.handlers import COMMANDS
from pipeline.recipe import text_of
from pipeline.values import convert, flag_name
from tests.conftest import ROOT

Command = Callable[..., "subprocess.CompletedProcess[str]"]


def _tree(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_every_field_with_meaning_and_default(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(COMMANDS[name][0]):
        assert f"--{flag_name(field.name)} " in text
        assert field.metadata["description"] in text
    assert text.count("(default:") + text.count("(required)") >= len(dataclasses.fields(COMMANDS[name][0]))


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pipeline.cli import main; main(['train', '--help']);"
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'mlflow', 'sklearn', 'onnx', 'pydantic')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, check=False).returncode == 0


def test_predict_and_its_help_import_no_torch() -> None:
    code = (
        "import sys; from pipeline.cli import main; main(['predict', '--help']);"
        "main(['predict', '--onnx', 'x', '--input', 'y']);"
        "sys.exit(any(m in sys.modules for m in ('torch', 'pandas', 'mlflow', 'sklearn', 'onnx')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, check=False).returncode == 0


def test_a_configuration_error_imports_nothing_heavy_either() -> None:
    code = (
        "import sys; from pipeline.cli import main; assert main(['train', '--lr', '-1']) == 2;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'mlflow')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, check=False).returncode == 0


def test_a_process_ends_without_tear_down_but_does_all_that_is_asked_for_at_exit() -> None:
    code = (
        "import atexit, runpy, pipeline.cli\n"
        "class Torn:\n"
        "    def __del__(self): print('torn down')\n"
        "def main():\n"
        "    global kept\n"
        "    kept = Torn()\n"
        "    atexit.register(print, 'asked for')\n"
        "    print('last word')\n"
        "    return 7\n"
        "pipeline.cli.main = main\n"
        "runpy.run_module('pipeline', run_name='__main__')"
    )
    ended = subprocess.run([sys.executable, "-c", code], timeout=60, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (7, "last word\nasked for\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "trian is not a command. Did you mean train?"),
        (["--model", "cnn"], "The command comes before --model."),
        (["train", "--lr=--"], "lr=-- is not a number"),
        (["train", "--"], "-- is not a flag of this command"),
        (["train", ""], "An empty word is not a flag of this command"),
        (["train", "--lr", ""], "lr= is not a number"),
        (["train", "--lr", "0.1", "--lr", "twice"], "lr=twice is not a number"),
        (["train", "--epochs", f"{10**30}"], f"epochs={10**30} is out of range"),
        (["train", "--max_steps", "9" * 5000], "(5000 characters) is not a whole number"),
        (["train", "--seed", f"{2**32}"], "at least 0 and at most 4294967295"),
        (["prepare", "--split_seed", f"{2**32}"], "at least 0 and at most 4294967295"),
        (["train", "--collective_timeout", f"{10**18}"], f"timeout={10**18} is out of range"),
        (["train", "--lr", "1e300"], "lr=1e300 is out of range"),
        (["train", "--layer_lr", "fc2=1e300"], "gives '1e300' for fc2. Give a number from 0 to 1e38"),
        (["train", "--checkpoint_every", "9" * 999], "is neither `epoch`, nor steps, nor minutes"),
        (["train", "--model", "mlp", "--model_args", "hiden=3"], "mlp has no argument hiden. It takes: hidden, dropout."),
        (["train", "--model", "mlp", "--model_args", "hidden=0"], "hidden=0 is no width of a layer"),
        (["train", "--model", "mlp", "--model_args", f"hidden={10**30}"], "model_args: mlp cannot be built"),
        (["train", "--model", "mlp", "--model_args", "dropout=3"], "dropout probability has to be between 0 and 1"),
        (
            ["train", "--model", "polynomial", "--model_args", "gradient=x"],
            "gradient=x of polynomial is not one of manual, auto",
        ),
        (["train", "--model", "two_layer", "--data_args", "noise=-1"], "noise=-1, a standard deviation, is not from 0 to 1000"),
        (["run", "--model", "mlp", "--model_args", f"hidden={10**12}"], "GB to train, and "),
        (["run", "--model", "mlp", "--model_args", f"hidden={10**9}"], "GB to train, and "),
        (["train", "--layer_lr", "conv1=0,conv2=0,fc1=0,fc2=0"], "freezes every layer, so that nothing would learn"),
        (["train", "--model", "polynomial", "--layer_lr", "linear=1"], "layer_lr=linear=1 names linear, which this form of"),
        (
            ["train", "--model", "polynomial", "--model_args", "gradient=linear", "--layer_weight_decay", "a=1"],
            "layers are: linear.",
        ),
        (["train", "--output_dir", "/dev/null"], "output_dir=/dev/null is a file, not a folder"),
        (["train", "--output_dir", "/dev/null/run"], "output_dir=/dev/null/run lies in a file, not in a folder"),
        (["train", "--output_dir", "x" * 5000], "(5000 characters) is longer than a file system takes"),
        (["train", "--output_dir", "x\0y"], "output_dir=x\\x00y holds a control character"),
        (["train", "--output_dir", "x\udcff"], "output_dir=x\\udcff is not UTF-8"),
        (["prepare", "--data_dir", "x\udcff"], "data_dir=x\\udcff is not UTF-8"),
        (["train", "--cache_dir", "x\udcff"], "cache_dir=x\\udcff is not UTF-8"),
        (["evaluate", "--run", "x\udcff"], "run=x\\udcff is not UTF-8"),
        (["verify", "--run", "x", "--onnx", "x\udcff"], "onnx=x\\udcff is not UTF-8"),
        (["train", "--cache_dir", "/dev/null"], "cache_dir=/dev/null is a file, not a folder"),
        (["train", "--data_dir", "/dev/null"], "data_dir=/dev/null is a file, not a folder"),
        (["train", "--output_dir", "~nobody-of-that-name/x"], "begins with ~, which is no home folder here"),
        (["export", "--run", "/dev/null"], "run=/dev/null is a file, not a folder"),
        (["run", "--formats", "onnx,int8"], "formats=onnx,int8 has 'int8', which is not known. Did you mean onnx-int8?"),
        (
            ["export", "--run", "x", "--formats", "pt2"],
            "has no onnx, which the others are held against. Write --formats onnx,pt2.",
        ),
        (["run", "--formats", "onnx,pt2,onnx"], "formats=onnx,pt2,onnx has onnx twice. Name each once."),
        (["run", "--formats", ""], "formats= has '', which is not known. Choose some of: onnx, torchscript, pt2, onnx-int8"),
        (["run", "--formats", "onnx,"], "formats=onnx, has '', which is not known"),
        (["run", "--max_metric_drop", "0.01"], "has no effect on formats=onnx,torchscript,pt2, which are exact. Leave"),
        (["run", "--max_metric_drop", "2"], "max_metric_drop=2 is out of range. Give a value at least 0 and at most 1"),
        (["export", "--run", "x", "--min_speedup", "-1"], "min_speedup=-1 is out of range"),
        (["verify", "--run", "x", "--as", "int4"], "as=int4 is not known. Did you mean int8? Choose one of: int8, fp16."),
        (["verify", "--run", "x", "--as"], "--as was given without a value"),
        (["verify", "--run", "x", "--as_", "int8"], "--as_ is not a flag of this command. Did you mean --as?"),
        (["sync", "--run", "/dev/null/x"], "run=/dev/null/x lies in a file"),
        (["evaluate", "--run", f"x/{'y' * 256}"], "is longer than a file system takes"),
        (["train", "--dataset", f"{'y' * 256}.csv"], "is longer than a file system takes"),
        (["train", "--loss", f"{'y' * 256}.py:loss"], "is longer than a file system takes"),
        (["inspect", "--dataset", f"x/{'y' * 256}/z.py:load"], "is longer than a file system takes"),
        (["compare", "--runs", f"x,{'y' * 300}"], "run=x is neither a folder nor an MLflow run id"),
        (["plot", "--output", "/proc/nowhere/x"], "output=/proc/nowhere/x cannot be written"),
        (["train", "--output_dir", "/proc/nowhere/x"], "output_dir=/proc/nowhere/x cannot be written"),
        (["plot", "--output", "/dev/null"], "output=/dev/null is a file, not a folder"),
        (["train", "--ephocs", "3"], "--ephocs is not a flag of this command. Did you mean --epochs?"),
        (["train", "--batch-size", "3"], "Did you mean --batch_size?"),
        (["train", "cnn"], "cnn is not a flag of this command"),
        (["train", "--resume"], "--resume was given without a value. Write --resume VALUE."),
        (["train", "--lr", "-1e-3"], "lr=-1e-3 is out of range"),
        (["train", "--resume", "true", "--output_dir", "nowhere"], "run=nowhere is not a run folder"),
        (["evaluate"], "Add --run FOLDER or --run MLFLOW_RUN_ID"),
        (["verify", "--run", "no/such"], "run=no/such is not a run folder"),
        (["train", "--device", "cuda"], "device=cuda: torch finds no CUDA device here"),
        (["train", "--dataset", "mnist", "--cache_dir", "/proc/nowhere"], "/proc/nowhere"),
        (["plot", "--plot", "scater"], "Did you mean scatter?"),
    ],
)
def test_a_mistake_gets_a_sentence_exit_2_and_leaves_nothing(
    arguments: list[str], said: str, working_folder: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    if "cuda" in arguments:
        import torch

        assert not torch.cuda.is_available(), "this claim is about machines without a GPU"
    if "mnist" in arguments:
        arguments = [*arguments, "--data_dir", str(request.getfixturevalue("mnist_dir"))]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert _tree(working_folder) == []


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ("RANK=0 WORLD_SIZE=abc", "WORLD_SIZE=abc is not a whole number from 1 to"),
        ("WORLD_SIZE=2", "WORLD_SIZE=2 is set and RANK is not: torchrun sets both"),
        ("RANK=3", "RANK=3 is set and WORLD_SIZE is not"),
        ("RANK=2 WORLD_SIZE=2", "RANK=2 is not a whole number from 0 to 1"),
        ("RANK=-1 WORLD_SIZE=2", "RANK=-1 is not a whole number"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_RANK=x", "LOCAL_RANK=x is not a whole number from 0 to 1"),
        ("RANK=0 WORLD_SIZE=2 LOCAL_WORLD_SIZE=1 LOCAL_RANK=1", "LOCAL_RANK=1 is not a whole number from 0 to 0"),
        ("RANK=0 WORLD_SIZE=2", "WORLD_SIZE=2 ranks need MASTER_ADDR"),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=localhost", "MASTER_PORT is not set, and should be a whole number"),
        ("RANK=0 WORLD_SIZE=1 TORCHELASTIC_RESTART_COUNT=many", "TORCHELASTIC_RESTART_COUNT=many is not a whole number"),
    ],
)
def test_half_of_what_torchrun_sets_gets_a_sentence(
    variables: str, said: str, working_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for pair in variables.split():
        monkeypatch.setenv(*pair.split("="))
    assert main(["train"]) == 2
    assert said in capsys.readouterr().err and _tree(working_folder) == []


def test_a_working_folder_that_was_deleted_gets_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gone").mkdir()
    with contextlib.chdir(tmp_path / "gone"):
        (tmp_path / "gone").rmdir()
        assert main(["train"]) == 2
    assert "the working folder is gone" in capsys.readouterr().err


def test_main_is_another_name_of_run(capsys: pytest.CaptureFixture[str]) -> None:
    """As in MLproject."""
    assert main(["main", "--help"]) == 0 and "python -m pipeline run" in capsys.readouterr().out


def test_a_tilde_is_the_home_folder(working_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = working_folder / "home"
    monkeypatch.setenv("HOME", str(home))
    assert main(["prepare", "--model", "mlp", "--cache_dir", "~/cache"]) == 0
    assert [path.name for path in working_folder.iterdir()] == ["home"] and (home / "cache").is_dir()
    for command, name in [("train", "output_dir"), ("train", "data_dir"), ("verify", "run"), ("verify", "onnx"),
                          ("sync", "run"), ("plot", "output"), ("train", "cache_dir"), ("predict", "output")]:  # fmt: skip
        values, _ = convert(COMMANDS[command][0], {name: "~/x/y"})
        assert str(values[name]) == f"{home}/x/y"
        assert str(convert(COMMANDS[command][0], {name: "x/y"})[0][name]) == "x/y"


def test_without_a_home_folder_the_default_cache_gets_a_sentence(
    working_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nobody(number: int) -> None:
        raise KeyError(number)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", nobody)  # a container's user without a name
    assert main(["prepare"]) == 2
    assert "cache_dir=~/.cache/trainyard: this user has no home folder" in capsys.readouterr().err
    assert _tree(working_folder) == []


def test_several_mistakes_come_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--lr", "0", "--modle", "cnn", "--epochs", "few", "--seed"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert all(any(word in line for line in lines) for word in ("lr=0", "--modle", "epochs=few", "--seed"))


def test_a_real_process_exits_2_without_a_traceback(command: Command, working_folder: Path) -> None:
    done = command("train", "--model", "mlp", "--lr", "nan")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("lr=nan is not a finite number") and done.stderr.count("\n") == 1
    assert _tree(working_folder) == []


def test_version_and_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0 and capsys.readouterr().out.strip() == __version__
    assert main([]) == 0
    overview = capsys.readouterr().out
    assert all(f"  {name} " in overview for name in COMMANDS)


def test_mlproject_flags_and_fields_are_in_step() -> None:
    """Each entry point runs the command of its name, and each of its parameters is a field, with the same default."""
    project = yaml.safe_load((ROOT / "MLproject").read_text())
    assert project["conda_env"] == "conda.yaml"
    assert list(project["entry_points"]) == ["main", "inspect", "prepare", "train", "search", "evaluate", "export", "verify",
                                             "benchmark", "report", "promote"]  # fmt: skip
    for entry, point in project["entry_points"].items():
        program, flags = point["command"].split(" --", 1)[0], point["command"].split()[4:]
        name = "run" if entry == "main" else entry
        assert program == f"python -m pipeline {name}"
        fields = {f.name: f for f in dataclasses.fields(COMMANDS[name][0])}
        assert flags == [w for p in point["parameters"] for w in (f"--{p}", "{" + p + "}")]
        for parameter, declared in point["parameters"].items():
            assert parameter in fields
            if isinstance(declared, dict):
                assert declared["default"] == text_of(fields[parameter].default)


def test_the_overview_of_flags_is_the_configuration() -> None:
    assert {f.name for f in dataclasses.fields(RunConfig)} >= {
        "model", "dataset", "data_dir", "epochs", "batch_size", "lr", "optimizer", "weight_decay", "loss", "scheduler",
        "seed", "device", "precision", "nproc", "num_workers", "checkpoint_every", "output_dir", "resume",
    }  # fmt: skip


@pytest.mark.parametrize(("flag", "own"), [("nproc", "--nproc-per-node"), ("max_restarts", "--max-restarts")])
def test_what_torchrun_decides_is_refused_in_its_ranks(
    flag: str, own: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    assert main(["train", "--model", "mlp", "--output_dir", "run", f"--{flag}", "2"]) == 2
    told = capsys.readouterr().err
    assert f"{flag}=2 has no effect under torchrun" in told and own in told and list(tmp_path.iterdir()) == []


def test_a_single_worker_is_restarted_too(monkeypatch: pytest.MonkeyPatch, cache_dir: Path) -> None:
    launched: list[tuple[int, int]] = []

    def launch(command: list[str], nproc: int, *, max_restarts: int) -> int:
        launched.append((nproc, max_restarts))
        return 0

    monkeypatch.setattr("pipeline.distributed.launch", launch)
    flags = ["--model", "mlp", "--output_dir", "run", "--cache_dir", str(cache_dir), "--nproc", "1", "--device", "cpu"]
    assert main(["train", *flags, "--max_restarts", "2"]) == 0
    assert launched == [(1, 2)]


def test_a_file_of_fields_names_the_folder_too(cache_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As if each of its fields had been a flag: so one that holds something else is refused, and resume is obeyed."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    file = tmp_path / "t.toml"
    file.write_text(f'model = "polynomial"\nepochs = 1\noutput_dir = "{tmp_path}/other"\ncache_dir = "{cache_dir}"\n')
    assert main(["train", "--config", str(file)]) == 2
    assert f"output_dir={tmp_path}/other holds something else (file)" in capsys.readouterr().err
    file.write_text(file.read_text().replace("/other", "/mine") + 'resume = "auto"\n')
    for last in ("next: python -m pipeline export", "is finished (1 epochs): nothing to do"):
        assert main(["train", "--config", str(file)]) == 0
        assert last in capsys.readouterr().out.splitlines()[-1]
