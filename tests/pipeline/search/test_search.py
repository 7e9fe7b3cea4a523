"""A whole small search by the real command, in process: its trials, its winner, its MLflow runs, and what it never looks at."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline import commands, evaluate, fitting, signals
from pipeline.cli import main
from pipeline.tracking import parent
from pipeline.train import Training
from tests.conftest import all_runs
from tests.pipeline.search.searches import outcome, report, weights, without_a_winner, words

TRIALS = 3


@dataclass
class Searched:
    """What a search left, and which splits its trials and its winner have opened."""

    folder: Path
    opened: dict[str, set[str]]
    printed: str


@pytest.fixture(scope="module")
def searched(session_folder: Path, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    folder, opened = tmp_path_factory.mktemp("search") / "here", {"trials": set[str](), "winner": set[str]()}
    patch = pytest.MonkeyPatch()
    for module in (commands, evaluate, fitting):
        inner = module.open_split

        def spy(data: Path, name: str, inner: Callable[..., Any] = inner, **more: float) -> Any:
            opened["winner" if list(folder.glob("winner-*")) else "trials"].add(name)
            return inner(data, name, **more)

        patch.setattr(module, "open_split", spy)
    said: list[str] = []
    patch.setattr("builtins.print", lambda text, **_: said.append(text))
    try:
        assert main(words(folder, cache_dir, trials=TRIALS)) == 0
    finally:
        patch.undo()
    return Searched(folder, opened, "\n".join(said))


def _runs(folder: Path) -> tuple[Any, list[Any]]:
    """Return the MLflow run of a search, and those below it."""
    child = next(run for run in all_runs() if run.info.run_id == parent.child_id(folder / "trial-0000"))
    above = MlflowClient().get_run(child.data.tags[parent.CHILD])
    return above, [run for run in all_runs() if run.data.tags.get(parent.CHILD) == above.info.run_id]


def test_a_search_ends_in_a_proven_onnx_file_of_the_best_trial_trained_anew(searched: Searched) -> None:
    found = report(searched.folder)
    best = max(found["trials"], key=lambda trial: trial["value"])
    assert found["best"]["number"] == best["number"] and len(found["trials"]) == TRIALS
    winner = searched.folder / f"winner-{best['number']:04d}"
    assert json.loads((winner / "export" / "parity.json").read_text())["passed"]
    assert weights(searched.folder, best["number"]) == weights(searched.folder, best["number"], "winner")
    values = " ".join(f"--{name} {text}" for name, text in best["values"].items())
    assert searched.printed.endswith(values)
    assert "\npython -m pipeline run --model mlp --dataset moons --epochs 2 --formats onnx --log_every 1 " in searched.printed


def test_the_first_trial_is_the_training_without_a_search_and_the_best_is_told_beside_it(searched: Searched) -> None:
    first, found = report(searched.folder)["trials"][0], report(searched.folder)["best"]
    assert first["values"] == {"lr": "0.01", "optimizer": "adam"}
    assert "\ntrial 0 is the recipe itself: lr=0.01 optimizer=adam\n" in searched.printed
    beside = f", the recipe itself {first['value']:.4f}" if found["number"] else ""
    assert f"trial {found['number']}, val/accuracy {found['value']:.4f}{beside}: lr=" in searched.printed


def test_no_trial_looks_at_the_test_set_and_the_winner_does(searched: Searched) -> None:
    assert searched.opened["trials"] == {"train", "val"} and "test" in searched.opened["winner"]
    assert not list(searched.folder.glob("trial-*/test.json")) and len(list(searched.folder.glob("winner-*/test.json"))) == 1
    _, children = _runs(searched.folder)
    tested = [run for run in children if any(name.startswith("test") for name in run.data.metrics)]
    assert ["search.winner" in run.data.tags for run in tested] == [True]


def test_each_trial_is_an_mlflow_run_below_that_of_the_search(searched: Searched) -> None:
    above, children = _runs(searched.folder)
    assert above.info.status == "FINISHED" and above.data.params["space"] == "lr=0.001..0.1:log optimizer=adam,sgd"
    assert above.data.metrics["search/best"] == report(searched.folder)["best"]["value"]
    assert sorted(run.data.tags["search.trial"] for run in children if "search.trial" in run.data.tags) == ["0", "1", "2"]
    assert len(children) == TRIALS + 1 and {run.info.status for run in children} == {"FINISHED"}
    assert {run.data.params["lr"] for run in children} == {trial["values"]["lr"] for trial in report(searched.folder)["trials"]}
    kept = {file.path for file in MlflowClient().list_artifacts(above.info.run_id, "plots")}
    assert kept == {"plots/importances.png", "plots/parallel_coordinates.png"}


def test_the_same_command_finds_that_nothing_is_left_to_do(
    searched: Searched, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(all_runs())
    assert main(words(searched.folder, cache_dir, trials=TRIALS)) == 0
    said = capsys.readouterr().out
    assert "best of 3 trials" in said and "training the winner" not in said and len(all_runs()) == before
    assert _runs(searched.folder)[0].info.status == "FINISHED"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--metric", "val/loss"], "study=mlp-moons was made with metric=val/accuracy, and this is metric=val/loss."),
        (["--weight_decay", "0.01"], "study=mlp-moons was made with weight_decay="),
        (["--space", "lr=1e-3..1e-2"], "study=mlp-moons was made with space=lr=0.001..0.1:log optimizer=adam,sgd, and this"),
        (["--data_args", "noise=0.3"], "study=mlp-moons was made with data_sha256="),
        (["--model", "two_layer", "--study", "mlp-moons"], "study=mlp-moons was made with model=mlp, and this is model=two_l"),
        (["--study", "other"], "output_dir="),
    ],
)  # fmt: skip
def test_another_search_cannot_join_a_study(
    more: list[str], said: str, searched: Searched, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(all_runs())
    arguments = words(searched.folder, cache_dir, *more, trials=TRIALS)
    if more[0] == "--space":  # a flag of several words adds to those before it
        start = arguments.index("--space")
        del arguments[start : start + 3]
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert told.startswith(said) and "Traceback" not in told
    assert len(all_runs()) == before and len(report(searched.folder)["trials"]) == TRIALS


def test_a_search_stopped_in_a_trial_is_gone_on_with_bit_for_bit(
    searched: Searched, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A signal, noted as the handler notes it, in the second trial; with real signals, and kills: test_kills.py."""
    without_a_winner(monkeypatch)
    line, inner, left = words(tmp_path / "here", cache_dir, trials=TRIALS), Training._step, [57]

    def step(self: Training, *args: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            monkeypatch.setattr(signals, "_pending", signal.SIGINT)
        return inner(self, *args)

    monkeypatch.setattr(Training, "_step", step)
    assert main(line) == 130
    said = capsys.readouterr()
    assert said.err == "stopped by SIGINT\n" and "\n".join(["stopped; what was found is kept. Go on with:", ""]) in said.out
    stopped = MlflowClient().get_run(parent.child_id(tmp_path / "here" / "trial-0001"))
    assert stopped.info.status == "KILLED" == MlflowClient().get_run(stopped.data.tags[parent.CHILD]).info.status
    assert main(line) == 0
    assert outcome(tmp_path / "here") == outcome(searched.folder)
    assert MlflowClient().get_run(stopped.info.run_id).info.status == "FINISHED"


def test_a_trial_that_diverges_is_told_and_the_search_goes_on(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_a_winner(monkeypatch)
    line = words(tmp_path / "here", cache_dir, "--space", "lr=1e-3,1e38", trials=4)
    start = line.index("--space")
    del line[start : start + 3]
    assert main(line) == 0
    trials = report(tmp_path / "here")["trials"]
    assert {trial["state"] for trial in trials if trial["values"]["lr"] == "1e38"} == {"pruned"}
    assert all(("diverged" in trial["problem"]) == (trial["values"]["lr"] == "1e38") for trial in trials)
    assert report(tmp_path / "here")["best"]["values"] == {"lr": "1e-3"}


def test_a_folder_with_something_else_is_refused(tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.txt").write_text("mine")
    before = len(all_runs())
    assert main(words(tmp_path / "here", cache_dir)) == 2
    assert capsys.readouterr().err == (
        f"output_dir={tmp_path}/here holds something else (mine.txt). A search needs a folder of its own: give one that is "
        "empty or that does not exist yet.\n"
    )
    assert len(all_runs()) == before


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("nosql://x/y", "storage=nosql://x/y is no address of a database ("),
        ("postgresql://me:secret@127.0.0.1:1/db", "storage=postgresql://***@127.0.0.1:1/db needs the package psycopg"),
        ("sqlite:////proc/nowhere/x.db", "storage=sqlite:////proc/nowhere/x.db cannot be used ("),
        ("other.txt", "storage="),
    ],
)
def test_a_storage_that_cannot_be_used_gets_a_sentence_and_leaves_nothing(
    storage: str, said: str, tmp_path: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.txt").write_text("my diary\n")
    assert main(words(tmp_path / "here", cache_dir, "--storage", storage)) == 2
    told = capsys.readouterr().err
    assert told.startswith(said) and "secret" not in told and told.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["other.txt"] and (tmp_path / "other.txt").read_text() == "my diary\n"
