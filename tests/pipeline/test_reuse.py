"""Do nothing twice: a command that nothing has changed for takes the run that is there, and does only what has changed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline import machine, manifest, sources, stages
from pipeline.cli import main
from pipeline.run import Run
from tests.conftest import all_runs
from tests.faults.cutter import Hook

LATER = ["evaluate", "export", "verify", "report"]
Say = Callable[..., tuple[int, str]]


class Cut(BaseException):
    """What nobody catches."""


@pytest.fixture(scope="module")
def once(session_folder: Path, cache_dir: Path) -> Path:
    """A folder in which `run` was called once."""
    folder = session_folder / "once"
    folder.mkdir()
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert main(_words("run", cache_dir)) == 0
    finally:
        os.chdir(before)
    return folder


def _words(command: str, cache_dir: Path, *more: str) -> list[str]:
    return [command, "--model", "polynomial", "--epochs", "2", "--cache_dir", str(cache_dir), *more]


@pytest.fixture
def folder(once: Path, tmp_path: Path) -> Path:
    """The folder of a copy of that run, in the working folder."""
    shutil.copytree(once / "runs", tmp_path / "runs")
    (found,) = (tmp_path / "runs").iterdir()
    return found


@pytest.fixture
def say(cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> Say:
    """Return a function that calls a command as it was called once, with more flags; it returns the exit status and words."""

    def call(*more: str, command: str = "run") -> tuple[int, str]:
        capsys.readouterr()
        status = main(_words(command, cache_dir, *more))
        told = capsys.readouterr()
        return status, told.out + told.err

    return call


def _again(text: str) -> list[str]:
    """Return the stages that `--explain` says would be done again."""
    rows = [line.split(maxsplit=1) for line in text.splitlines() if line.startswith("  ")]
    return [name for name, what in rows if what != "same"]


def _bytes(folder: Path, *patterns: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for pattern in patterns for path in folder.glob(pattern) if path.is_file()}


def test_nothing_is_done_twice_and_the_figures_are_told(folder: Path, say: Say) -> None:
    before, number = _bytes(folder, "*", "*/*.*"), len(all_runs())
    for command in ("run", "train"):
        status, text = say(command=command)
        assert status == 0 and f"nothing has changed since run runs/{folder.name}" in text and "test/rmse " in text
        assert ("**PASSED**" in text) and "epoch 1/2" not in text
    assert _bytes(folder, "*", "*/*.*") == before and len(all_runs()) == number
    assert len(list(folder.parent.iterdir())) == 1


def test_what_is_there_is_told_without_torch_or_mlflow(folder: Path, cache_dir: Path) -> None:
    code = (
        "import sys; from pipeline.cli import main; status = main(sys.argv[1:]); "
        "assert not {'torch', 'mlflow', 'sklearn', 'onnxruntime'} & sys.modules.keys(); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *_words("run", cache_dir)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and "nothing to do" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("flags", "again"),
    [
        ((), []),
        (("--formats", "onnx"), ["export", "verify", "report"]),
        (("--formats", "onnx,onnx-int8"), ["export", "verify", "report"]),
        (("--epochs", "3"), ["train", *LATER]),
        (("--seed", "1"), ["train", *LATER]),
        (("--nproc", "2"), ["train", *LATER]),
        (("--checkpoint_every", "7"), ["train", *LATER]),
        (("--test_split", "0.3"), ["prepare", "train", *LATER]),
        (("--num_workers", "1"), []),
        (("--upload_checkpoints", "true"), []),
    ],
)
def test_explain_says_what_a_flag_has_done_again_and_does_nothing(
    flags: tuple[str, ...], again: list[str], folder: Path, say: Say
) -> None:
    before, number = _bytes(folder, "*", "*/*.*"), len(all_runs())
    status, text = say(*flags, "--explain")
    assert status == 0 and _again(text) == again, text
    assert not again or flags[0][2:] in text or "num_ranks is 2, was 1" in text
    assert _bytes(folder, "*", "*/*.*") == before and len(all_runs()) == number


@pytest.mark.parametrize(
    ("module", "again"),
    [
        ("pipeline.train", ["train", *LATER]),
        ("models.polynomial", ["train", *LATER]),
        ("models.lenet", []),
        ("pipeline.data.split", ["prepare", "train", *LATER]),
        ("pipeline.plots.curves", ["evaluate", "report"]),
        ("export.graph", ["export", "verify", "report"]),
        ("export.formats.onnx", ["export", "verify", "report"]),
        ("export.originals", ["verify", "report"]),
        ("pipeline.pages.charts", ["report"]),
    ],
)
def test_a_changed_helper_has_the_stages_done_again_that_import_it(
    module: str, again: list[str], folder: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = sources._look

    def changed(name: str) -> tuple[str, tuple[str, ...]]:
        digest, imported = look(name)
        return ("0" * 12 if name == module else digest), imported

    monkeypatch.setattr(sources, "_look", changed)
    status, text = say("--explain")
    found = [name for name in _again(text) if name != "prepare" or module.startswith("pipeline.data")]
    assert status == 0 and found == again, text
    assert not again or f"{module.replace('.', '/')}.py has changed" in text


@pytest.mark.parametrize(
    ("package", "again"),
    [("torch", ["train", *LATER]), ("onnxruntime", ["export", "verify", "report"]), ("matplotlib", ["evaluate", "report"]),
     ("pyarrow", ["prepare"]), ("flask", [])],
)  # fmt: skip
def test_another_version_of_a_library_has_the_stages_done_again_that_hang_on_it(
    package: str, again: list[str], folder: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = machine.version
    monkeypatch.setattr(machine, "version", lambda name: "0.0.1" if name == package else version(name))
    status, text = say("--explain")
    assert status == 0 and _again(text)[: len(again)] == again, text
    assert not again or f"{package} is 0.0.1, was {version(package)}" in text


def test_another_device_or_another_store_is_another_run(folder: Path, say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(machine, "gpus", lambda: ("NVIDIA H100", "NVIDIA H100"))
        text = say("--explain")[1]
        assert "device is NVIDIA H100, was cpu" in text and "num_ranks is 2, was 1" in text
        assert _again(say("--explain", "--device", "cpu")[1]) == []
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "other")
    assert _again(say("--explain")[1])[0] == "train"


def test_another_list_of_formats_is_exported_in_the_run_that_is_there(folder: Path, say: Say) -> None:
    before, number = _bytes(folder, "*.safetensors", "test.json", "config.json"), len(all_runs())
    status, text = say("--formats", "onnx")
    assert status == 0 and f"trained already, in runs/{folder.name}; to do: export, verify, report" in text
    assert "epoch 1/2" not in text and _bytes(folder, "*.safetensors", "test.json", "config.json") == before
    assert {path.name for path in (folder / "export").glob("model*")} == {"model.onnx", "model.safetensors"}
    assert json.loads((folder / "export" / "config.json").read_text())["config"]["formats"] == "onnx"
    assert "nothing to do" in say("--formats", "onnx")[1] and len(all_runs()) == number
    Run.open(folder)


@pytest.mark.parametrize(
    ("name", "again", "how"),
    [("export/model.onnx", ["export", "verify", "report"], "changed"), ("export/parity.json", ["verify", "report"], "deleted"),
     ("report.html", ["report"], "changed"), ("plots/curves.png", ["evaluate", "report"], "deleted")],
)  # fmt: skip
def test_a_file_that_is_gone_or_was_changed_has_its_stage_done_again(
    name: str, again: list[str], how: str, folder: Path, say: Say
) -> None:
    if how == "deleted":
        (folder / name).unlink()
    else:
        (folder / name).write_bytes((folder / name).read_bytes()[:-1] + b"\0")
    text = say("--explain")[1]
    assert _again(text) == again and f"{name} {'is missing' if how == 'deleted' else 'was changed'}" in text
    status, text = say()
    assert status == 0 and f"to do: {', '.join(again)}" in text
    Run.open(folder)
    assert "nothing to do" in say()[1]


def test_a_training_whose_weights_are_not_what_was_written_is_not_taken(folder: Path, say: Say) -> None:
    path = folder / manifest.WEIGHTS
    damaged = path.read_bytes()[:-1] + b"\1"
    path.write_bytes(damaged)
    status, text = say()
    assert status == 0 and f"not taken: runs/{folder.name} was trained so, but weights.safetensors was changed" in text
    assert len(list(folder.parent.iterdir())) == 2 and path.read_bytes() == damaged


def test_what_was_exported_by_hand_is_left_as_it_is(folder: Path, say: Say) -> None:
    assert main(["export", "--run", str(folder), "--formats", "onnx"]) == 0
    before = _bytes(folder, "export/*")
    assert "it was made by hand" in say("--explain")[1] or "was not done" in say("--explain")[1]
    status, text = say()
    assert status == 0 and f"not taken: runs/{folder.name} was trained so; its export was made by hand" in text
    assert _bytes(folder, "export/*") == before and len(list(folder.parent.iterdir())) == 2


def test_off_means_everything_again_and_a_folder_of_its_own_is_asked_for_nothing(folder: Path, say: Say) -> None:
    status, text = say("--cache", "off", command="train")
    assert status == 0 and "epoch 2/2" in text and len(list(folder.parent.iterdir())) == 2
    status, text = say("--output_dir", "mine", command="train")
    assert status == 0 and "epoch 2/2" in text and Run.open(Path("mine")).keys == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--cache", "on", "--output_dir", "x"], "cache=on has no effect with --output_dir"),
        (["run", "--explain", "--output_dir", "x", "--resume", "auto"], "explain=true has no effect with --resume"),
        (["train", "--explain", "true", "--output_dir", "x"], "explain=true has no effect with --output_dir"),
        (["prepare", "--explain", "true"], "explain=true has no effect on `prepare`"),
        (["search", "--space", "lr=0.1,0.2", "--cache", "off"], "cache=off has no effect on `search`"),
        (["run", "--explain", "--cache", "off"], "explain=true compares with runs that cache=off passes over"),
        (["run", "--cache", "maybe"], "cache=maybe is not known"),
    ],
)
def test_a_flag_without_effect_is_refused(words: list[str], said: str, capsys: Any, tmp_path: Path) -> None:
    assert main(words) == 2 and said in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_own_code_that_was_changed_is_another_training(folder: Path, cache_dir: Path, tmp_path: Path, capsys: Any) -> None:
    net = "import torch\nclass Net(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    net += "        self.l = torch.nn.Linear(1, 1)\n    def forward(self, x):\n        return self.l(x)\n"
    (tmp_path / "net.py").write_text(net)
    words = ["train", "--model", "net.py:Net", "--dataset", "sine", "--epochs", "1", "--cache_dir", str(cache_dir)]
    assert main(words) == 0 and main(words) == 0
    assert "nothing to do" in capsys.readouterr().out
    (tmp_path / "net.py").write_text(net + "# another\n")
    assert main([*words, "--explain"]) == 0
    text = capsys.readouterr().out
    assert _again(text) == ["train", "evaluate"] and "model net.py:Net has changed" in text


def test_weights_and_code_that_are_not_there_get_their_sentence(folder: Path, say: Say) -> None:
    before = sorted(folder.parent.iterdir())
    for more in ((), ("--explain",)):
        status, text = say("--weights", "none.safetensors", *more)
        assert status == 2 and text.splitlines()[-1].startswith("weights=") and "none.safetensors" in text
        assert "Traceback" not in text and sorted(folder.parent.iterdir()) == before


def test_nothing_is_downloaded_to_look_for_a_result(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any) -> None:
        raise AssertionError("it asks the network")

    monkeypatch.setattr("pipeline.data.mnist._fetch", download)
    words = ["train", "--model", "cnn", "--dataset", "mnist", "--data_dir", str(tmp_path / "none")]
    assert main([*words, "--explain"]) == 0 and "the raw files of mnist are not in" in capsys.readouterr().out
    assert main([*words, "--model_args", "dropout=7"]) == 2 and list(tmp_path.iterdir()) == []


def test_a_run_that_mlflow_has_opened_is_shown_below_the_one_that_is_taken(
    folder: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = MlflowClient()
    wrapper = client.create_run("0").info.run_id
    known = json.loads((folder / stages.FILE).read_text())
    monkeypatch.setenv("MLFLOW_RUN_ID", wrapper)
    assert known["train"]["tracking"]
    status, text = say()
    tags = client.get_run(wrapper).data.tags
    assert status == 0 and "nothing to do" in text
    assert tags["mlflow.parentRunId"] == Run.open(folder).mlflow_run_id and tags["cache"] == "hit"
    client.set_terminated(wrapper)


@pytest.mark.timeout(300)
def test_of_two_processes_one_trains_and_the_other_takes_the_result(cache_dir: Path, tmp_path: Path) -> None:
    number = len(all_runs())
    command = [sys.executable, "-m", "pipeline", *_words("train", cache_dir, "--seed", "77")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    try:
        texts = [process.communicate(timeout=250)[0] for process in started]
    finally:
        for process in started:
            with suppress(OSError):
                process.kill()
    assert [process.returncode for process in started] == [0, 0], texts
    assert sorted("epoch 2/2" in text for text in texts) == [False, True], texts
    assert sorted("nothing to do" in text for text in texts) == [False, True] and len(all_runs()) == number + 1
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_a_training_that_goes_on_by_other_code_is_not_known_again(folder: Path) -> None:
    begun = stages.read(folder)[stages.BEGUN]
    wanted = {"prepare": {}, "train": begun | {"arguments": {"precision": "fp32"}}}
    assert stages.resumed(folder, wanted)["train"] == begun
    wanted["train"] = begun | {"versions": {"torch": "0"}}
    assert "train" not in stages.resumed(folder, wanted)
    path = folder / stages.FILE
    path.write_text(path.read_text().replace("arguments", "argument5"))
    assert stages.read(folder) == {} and "train" not in stages.resumed(folder, {"prepare": {}, "train": begun})


def _writes(say: Say, folder: Path) -> Iterator[tuple[str, int]]:
    """Do what is missing for another list of formats, and yield each file that is written, with the how many-th write."""
    with Hook(lambda *_: None) as hook:
        assert say("--formats", "onnx")[0] == 0
    counts = Counter(name.removeprefix(f"{folder.name}/") for name in hook.names)
    assert {"export/model.onnx", "export/parity.json"} <= counts.keys()
    yield from ((name, k + 1) for name, count in counts.items() if name != manifest.TRACKING for k in range(count))


@pytest.mark.parametrize("place", ["export/model.onnx", "export/parity.json", stages.FILE, manifest.PAGE])
def test_cut_off_in_mid_write_the_same_command_ends_it(place: str, folder: Path, say: Say) -> None:
    _cut_and_again((place, 1), folder, say)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_cut_off_at_any_file_write_the_same_command_ends_it(folder: Path, say: Say, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "kept")
    places = list(_writes(say, folder))
    assert len(places) > 10
    for place in places:
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "kept", folder)
        _cut_and_again(place, folder, say)


def _cut_and_again(place: tuple[str, int], folder: Path, say: Say) -> None:
    weights = (folder / manifest.WEIGHTS).read_bytes()

    def strike(name: str, number: int, after: bool) -> None:
        if after and (name.removeprefix(f"{folder.name}/"), number) == place:
            raise Cut

    with pytest.raises(Cut), Hook(strike):
        say("--formats", "onnx")
    assert say("--formats", "onnx")[0] == 0, place
    assert "nothing to do" in say("--formats", "onnx")[1], place
    Run.open(folder)
    assert json.loads((folder / "export" / "config.json").read_text())["config"]["formats"] == "onnx"
    assert (folder / manifest.WEIGHTS).read_bytes() == weights


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_killed_at_any_moment_the_same_command_ends_with_the_same_files(cache_dir: Path, tmp_path: Path, capsys: Any) -> None:
    """SIGKILL at 16 moments of a command that trains, exports and proves; a training that was killed is begun anew."""
    command = [sys.executable, "-m", "pipeline", *_words("run", cache_dir, "--formats", "onnx")]
    outcomes: Counter[str] = Counter()
    for k in range(16):
        place = tmp_path / str(k)
        place.mkdir()
        process = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout
        for number, _ in enumerate(process.stdout):  # its own words are its clock
            if number >= k + 2:
                break
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        outcomes["taken" if "trained already" in done.stdout or "nothing to do" in done.stdout else "anew"] += 1
        last = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=60, check=False)
        assert "nothing to do" in last.stdout, last.stdout
    with capsys.disabled():
        print(f"\n16 kills: {dict(outcomes)}")


def test_a_runs_keys_are_no_part_of_what_is_told(folder: Path) -> None:
    params = MlflowClient().get_run(Run.open(folder).mlflow_run_id).data.params
    assert stages.FILE not in manifest.read(folder)[1] and not {"cache", "explain"} & params.keys()
