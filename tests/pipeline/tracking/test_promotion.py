"""Which run gets the alias, which does not, and the way back: in a real MLflow registry."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pipeline import commands, files, manifest
from pipeline.cli import main
from pipeline.errors import Failure
from pipeline.release import PromoteConfig
from pipeline.tracking import connection, history, promotion, served
from tests.pipeline.tracking.conftest import FLAGS
from tests.promotions import change, id_of, log_model, num_versions, reseal, twin, version

Twin = Callable[..., Path]


@pytest.fixture
def make(proven: Path, tmp_path: Path) -> Twin:
    """Return a function that gives a proven run of some accuracy."""
    made: list[Path] = []

    def of(accuracy: float, **more: Any) -> Path:
        made.append(twin(proven, tmp_path / f"twin-{len(made)}", accuracy=accuracy, **more))
        return made[-1]

    return of


def _promote(folder: Path, name: str, *flags: str) -> int:
    return main(["promote", "--run", str(folder), "--name", name, *flags])


def _roll_back(name: str) -> int:
    return main(["promote", "--rollback", "true", "--name", name])


def test_a_run_promotes_itself_and_a_finished_one_is_the_champion_already(
    proven: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, client = "mlp-breast_cancer", MlflowClient()
    assert version(name) == "1"
    flags = [*FLAGS, "--output_dir", str(proven), "--cache_dir", str(cache_dir), "--resume", "true"]
    assert main(["run", *flags]) == 0
    assert f"{name}@champion is version 1 already" in capsys.readouterr().out
    found = client.get_model_version_by_alias(name, "champion")
    assert found.run_id == id_of(proven) and found.tags["onnx_sha256"] == files.sha256(proven / "export/model.onnx")
    assert found.source == client.get_run(id_of(proven)).data.tags["model_uri"]
    assert float(found.tags["accuracy"]) == json.loads((proven / "test.json").read_text())["accuracy"]


def test_what_is_served_after_a_promotion_has_the_bytes_that_were_proven(make: Twin) -> None:
    folder = make(0.9)
    assert _promote(folder, "bytes") == 0
    for address in ("models:/bytes@champion", "models:/bytes/1"):
        path, name, number = served.fetch(address)
        assert (path.read_bytes(), name, number) == ((folder / "export/model.onnx").read_bytes(), "bytes", "1")


def test_a_run_that_does_not_win_is_done_all_the_same_and_the_command_ends_with_1(
    make: Twin, proven: Path, cache_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "mlp-breast_cancer"
    assert _promote(make(1.0), name) == 0
    flags = [*FLAGS, "--output_dir", str(proven), "--cache_dir", str(cache_dir), "--resume", "true"]
    try:
        assert main(["run", *flags]) == 1
    finally:
        assert _roll_back(name) == 0
    said = capsys.readouterr().err
    assert f"the run {proven} is done; it was not promoted:" in said and "it has to be better" in said
    assert MlflowClient().get_run(id_of(proven)).info.status == "FINISHED" and manifest.is_whole(proven, "verify")


def test_only_the_better_one_wins_and_who_does_not_leaves_nothing(make: Twin, capsys: pytest.CaptureFixture[str]) -> None:
    first, equal, worse, better = (make(value) for value in (0.9, 0.9, 0.8, 0.95))
    assert _promote(first, "better") == 0
    assert "accuracy 0.9 on 114 test samples; it is the first" in capsys.readouterr().out
    for folder in (equal, worse):
        assert _promote(folder, "better") == 1
        said = capsys.readouterr().err
        assert said.startswith("better@champion stays version 1: accuracy 0.") and said.count("\n") == 1
        assert "on the same 114 test samples, where version 1 has 0.9: it has to be better" in said
    assert (version("better"), num_versions("better")) == ("1", 1)
    assert _promote(better, "better", "--min_gain", "0.06") == 1
    assert "a gain of 0.06 is asked for" in capsys.readouterr().err and num_versions("better") == 1
    assert _promote(better, "better", "--min_gain", "0.05") == 0 and version("better") == "2"
    assert _promote(better, "better") == 0 and num_versions("better") == 2, "it is the champion already"
    assert not [each for each in MlflowClient().search_registered_models() if each.name.startswith("better.")]


def test_a_version_gets_a_second_alias_and_no_second_number(make: Twin) -> None:
    folder = make(0.9)
    assert _promote(folder, "aliases", "--alias", "staging") == _promote(folder, "aliases") == 0
    assert (version("aliases", "staging"), version("aliases"), num_versions("aliases")) == ("1", "1", 1)


def _edit(name: str, **values: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / name, lambda found: found.update(values))


def _no_test(folder: Path) -> None:
    (folder / "test.json").rename(folder / "train.json")
    change(folder / "export/parity.json", lambda report: report.update(split="train"))


UNCOMPARABLE: dict[str, tuple[Callable[[str, Path], object], str]] = {
    "other samples": (
        lambda name, folder: None, "version 1 was tested on other samples (SHA-256",
    ),
    "its version was deleted": (
        lambda name, folder: MlflowClient().delete_model_version(name, "1"), "1 cannot be compared with: it was deleted",
    ),
    "its run was deleted": (lambda name, folder: MlflowClient().delete_run(id_of(folder)), "was deleted (mlflow runs restore"),
    "its figures were changed": (
        lambda name, folder: _replace_evaluation(folder), "its test.json is not the one with which it was promoted",
    ),
    "its figures are gone": (lambda name, folder: _remove_manifest(folder), "its sealed files cannot be fetched"),
}  # fmt: skip


def _replace_evaluation(folder: Path) -> None:
    """Have MLflow hold another test.json of a run, and a manifest and a report that agree with it."""
    from tests.promotions import set_figure

    set_figure(folder, 0.1)
    reseal(folder)
    for name in ("test.json", "export/parity.json", "manifest.json"):
        MlflowClient().log_artifact(id_of(folder), str(folder / name), "export" if "/" in name else None)


def _remove_manifest(folder: Path) -> None:
    where = MlflowClient().get_run(id_of(folder)).info.artifact_uri.removeprefix("file://")
    (Path(where) / "manifest.json").unlink()


@pytest.mark.parametrize("kind", UNCOMPARABLE)
def test_a_champion_that_cannot_be_compared_with_keeps_its_alias_unless_forced(
    kind: str, make: Twin, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, told = UNCOMPARABLE[kind]
    name = kind.replace(" ", "-")
    edit = _edit("export/parity.json", split_sha256="5" * 64) if kind == "other samples" else None
    champion, folder = make(0.5, edit=edit), make(0.9)
    assert _promote(champion, name) == 0
    spoil(name, champion)
    before = version(name)
    assert _promote(folder, name) == 1
    said = capsys.readouterr().err
    assert told in said and "--force REASON does it all the same" in said and said.count("\n") == 1
    assert version(name) == before and num_versions(name) == (0 if "version" in kind else 1)
    assert _promote(folder, name, "--force", "the old one is gone for good") == 0
    found = MlflowClient().get_model_version_by_alias(name, "champion")
    assert found.version == 2 or found.version == "2"
    assert found.tags["forced.champion"].startswith("the old one is gone for good (overruled: version 1")
    assert history.read(name, "champion")[-1].reason == "the old one is gone for good"


def test_a_champion_of_another_task_is_no_measure(make: Twin, proven: Path) -> None:
    from pipeline.tracking import proof

    own = proof.read(proven)
    other = proof.Proof(**vars(own) | {"task": "regression", "metric": "rmse"})
    champion = promotion.Champion(version="1", is_current=True, proof=other)
    assert "version 1 is judged by rmse of a regression task, and this run by accuracy" in promotion._against(own, champion, 0)
    nan = promotion.Champion(version="1", is_current=True, proof=proof.Proof(**vars(own) | {"value": float("nan")}))
    assert "it has to be better" in promotion._against(own, nan, 0)


def test_a_champion_that_somebody_registered_by_hand_is_compared_by_its_run(make: Twin) -> None:
    client, good, bad = MlflowClient(), make(0.9), make(0.8)
    client.create_registered_model("by-hand")
    address = client.get_run(id_of(good)).data.tags["model_uri"]
    client.create_model_version("by-hand", address, id_of(good))
    client.set_registered_model_alias("by-hand", "champion", "1")
    assert _promote(bad, "by-hand") == 1 and _promote(make(0.91), "by-hand") == 0
    foreign = client.create_run("0").info.run_id
    client.create_model_version("by-hand", log_model(good, foreign), foreign)
    client.set_registered_model_alias("by-hand", "champion", "3")
    assert _promote(make(0.99), "by-hand") == 1 and version("by-hand") == "3"


def test_an_alias_that_was_taken_away_comes_back_to_the_same_file_only_without_a_comparison(make: Twin) -> None:
    first, worse = make(0.9), make(0.8)
    assert _promote(first, "away") == 0
    MlflowClient().delete_registered_model_alias("away", "champion")
    assert _promote(worse, "away") == 1 and version("away") == ""
    assert _promote(first, "away") == 0 and version("away") == "1"


def test_a_run_without_test_samples_is_promoted_by_force_alone(make: Twin, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(0.9)
    _no_test(folder)
    reseal(folder)
    client = MlflowClient()
    for name in ("train.json", "export/parity.json", "manifest.json"):
        client.log_artifact(id_of(folder), str(folder / name), "export" if "/" in name else None)
    client.log_metric(id_of(folder), "train/final/accuracy", 0.9)
    assert _promote(folder, "untested") == 1 and "no test samples" in capsys.readouterr().err
    assert version("untested") == "" and _promote(folder, "untested", "--force", "a curve") == 0


def test_a_rollback_goes_one_further_back_each_time_and_passes_over_what_is_gone(
    make: Twin, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in (0.5, 0.6, 0.7, 0.8):
        assert _promote(make(value), "back") == 0
    assert _roll_back("back") == 0 and version("back") == "3"
    assert "back@champion is version 3 again, and was version 4" in capsys.readouterr().out
    MlflowClient().delete_model_version("back", "2")
    assert _roll_back("back") == 0 and version("back") == "1"
    assert "back version 2 is passed over: it was deleted" in capsys.readouterr().err
    assert _roll_back("back") == 2 and version("back") == "1"
    assert "knows no champion before" in capsys.readouterr().err
    assert _promote(make(0.55), "back") == 0 and version("back") == "5"
    assert _roll_back("back") == 0 and version("back") == "1"
    moves = history.read("back", "champion")
    assert [(m.kind, m.before, m.after) for m in moves] == [
        ("promotion", "", "1"), ("promotion", "1", "2"), ("promotion", "2", "3"), ("promotion", "3", "4"),
        ("rollback", "4", "3"), ("rollback", "3", "1"), ("promotion", "1", "5"), ("rollback", "5", "1"),
    ]  # fmt: skip
    assert all("@" in move.by and move.at.endswith("+00:00") for move in moves)


def test_a_rollback_leaves_out_a_file_that_is_not_the_one_that_was_promoted(make: Twin) -> None:
    for value in (0.5, 0.6, 0.7):
        assert _promote(make(value), "spoilt") == 0
    client = MlflowClient()
    model = client.get_model_version("spoilt", "2").source.removeprefix("models:/")
    where = client.get_logged_model(model).artifact_location.removeprefix("file://")
    (Path(where) / "model.onnx").write_bytes(b"another")
    assert _roll_back("spoilt") == 0 and version("spoilt") == "1"


def test_a_version_that_was_set_by_hand_counts_as_a_champion() -> None:
    def move(kind: str, before: str, after: str) -> history.Move:
        return history.Move(kind=kind, before=before, after=after)

    moves = [move("promotion", "", "1"), move("promotion", "1", "2"), move("promotion", "7", "8")]
    assert history.standing(moves) == ["1", "2", "7", "8"] and history.before(moves, "8") == ["7", "2", "1"]
    assert history.before(moves, "9") == ["8", "7", "2", "1"] and history.before(moves, "2") == ["1"]
    assert history.before([*moves, move("rollback", "8", "2")], "2") == ["1"]


def _benchmark(**row: Any) -> dict[str, Any]:
    good = {"format": "onnx", "batch": 1, "threads": 1, "p50_ms": 0.1, "p95_ms": 0.2, "p99_ms": 9.0, "reason": None}
    return {"rows": [good | {"threads": 2, "p95_ms": 0.001}, good | row]}


@pytest.mark.parametrize(
    ("content", "limit", "status", "told"),
    [(_benchmark(), "0.2", 0, ""), (_benchmark(), "0.19", 1, "takes 0.2 ms at batch 1 on one thread (p95), and max_lat"),
     (None, "1", 2, "has no benchmark. Measure it: python -m pipeline benchmark --run"),
     (_benchmark(batch=2), "1", 2, "has no onnx at batch 1 on one thread"),
     (_benchmark(p95_ms=float("nan")), "1", 1, "no time"),
     (_benchmark(p95_ms=None, reason="the machine was busy"), "1", 2, "states no p95 of model.onnx (the machine was busy)"),
     (_benchmark(p95_ms=None), "1", 2, "(there were fewer than 20 calls: give it more --seconds)"),
     (_benchmark() | {"files": {"onnx": {"sha256": "0" * 64}}}, "1", 1, "its benchmark is of another model.onnx"),
     ({}, "1", 2, "cannot be read")],
)  # fmt: skip
def test_a_limit_of_the_latency_is_held_against_the_sealed_benchmark(
    content: dict[str, Any] | None, limit: str, status: int, told: str, make: Twin, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make(0.9)
    if content is not None:
        if "rows" in content:
            digest = hashlib.sha256((folder / "export" / "model.onnx").read_bytes()).hexdigest()
            content = {"files": {"onnx": {"sha256": digest}}} | content
        (folder / "benchmark").mkdir()
        (folder / "benchmark" / "benchmark.json").write_text(json.dumps(content))
        reseal(folder, "benchmark")
    name = f"latency-{status}-{limit}-{len(told)}".replace(".", "_")
    assert _promote(folder, name, "--max_latency_ms", limit) == status
    assert told in capsys.readouterr().err and version(name) == ("" if status else "1")


MISTAKES = [
    (["--run", "R", "--name", "a/b"], "name=a/b cannot be the name"), (["--run", "R", "--name", "a:b"], "name=a:b cannot be"),
    (["--run", "R", "--name", " a"], "name= a cannot be"), (["--run", "R", "--name", "a@b"], "name=a@b cannot be"),
    (["--run", "R", "--alias", "latest"], "alias=latest is one that MLflow keeps"),
    (["--run", "R", "--alias", "V3"], "alias=V3 is one that MLflow keeps"),
    (["--run", "R", "--alias", "a.b"], "alias=a.b cannot be an alias"), (["--run", "R", "--alias", ""], "alias= cannot be"),
    (["--run", "R", "--force", " "], "force: no reason was given"),
    (["--run", "R", "--force", "x", "--min_gain", "0.1"], "min_gain=0.1 has no effect with --force"),
    (["--run", "R", "--min_gain", "-1"], "min_gain=-1 is out of range"), (["--run", "R", "--min_gain", "nan"], "not a finite"),
    ([], "run: nothing was given"), (["--rollback", "true"], "name: nothing was given"),
    (["--rollback", "true", "--name", "x", "--run", "R"], "run=R has no effect with --rollback"),
    (["--rollback", "true", "--name", "x", "--force", "y"], "force=y has no effect with --rollback"),
    (["--rollback", "true", "--name", "nobody"], "name=nobody is no registered model"),
    (["--run", "R"], "run=R is neither a folder nor an MLflow run id"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "told"), MISTAKES)
def test_a_mistake_gets_a_sentence_and_nothing_is_created(
    words: list[str], told: str, working_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = len(MlflowClient().search_registered_models())
    assert main(["promote", *words]) == 2
    said = capsys.readouterr().err
    assert told in said and said.count("\n") == 1
    assert len(MlflowClient().search_registered_models()) == before and not [*working_folder.iterdir()]


@pytest.mark.parametrize(
    ("variables", "told"),
    [({"MLFLOW_TRACKING_URI": "mlruns"}, "MLFLOW_TRACKING_URI=mlruns is a folder, in which no two processes"),
     ({"MLFLOW_TRACKING_URI": "file:///tmp/x"}, "is a folder, in which no two processes"),
     ({"MLFLOW_REGISTRY_URI": "http://me:geheim@there:5000"}, "MLFLOW_REGISTRY_URI=http://***@there:5000 is another place")],
)  # fmt: skip
@pytest.mark.parametrize("words", [["promote", "--run", "R"], ["run", "--model", "mlp", "--promote", "true"]])
def test_where_there_is_no_registry_it_is_told_before_anything_is_created(
    words: list[str], variables: dict[str, str], told: str, working_folder: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(words) == 2
    said = capsys.readouterr()
    assert told in said.err and "geheim" not in said.err + said.out and not [*working_folder.iterdir()]


def test_a_password_of_a_server_that_does_not_answer_is_not_told(
    proven: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:geheim@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    try:
        assert _promote(proven, "unreachable") == 2
    finally:
        monkeypatch.undo()
        connection.configure()
    said = capsys.readouterr()
    assert "http://***@127.0.0.1:9 does not answer" in said.err and "geheim" not in said.err + said.out


def test_promote_has_no_effect_where_nothing_is_exported_or_tested(cache_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "prepare"):
        assert main([command, "--model", "mlp", "--promote", "true"]) == 2
        assert f"promote=true has no effect on `{command}`" in capsys.readouterr().err
    flags = ["--test_split", "0", "--promote", "true", "--output_dir", "out", "--cache_dir", str(cache_dir)]
    assert main(["run", "--model", "mlp", *flags]) == 2
    assert "promote=true needs samples that are held out for a test" in capsys.readouterr().err and not Path("out").exists()


@pytest.mark.parametrize("promote", ["true", "false"])
def test_a_run_that_fails_before_its_promotion_says_that_nothing_was_promoted(
    promote: str, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise Failure("a gate was missed")

    monkeypatch.setattr(commands, "train", fails)
    assert main(["run", "--model", "mlp", "--promote", promote, "--cache_dir", str(cache_dir)]) == 1
    assert capsys.readouterr().err == "a gate was missed\n" + "Nothing was promoted.\n" * (promote == "true")


def test_a_promotion_loads_no_torch(proven: Path) -> None:
    words = ["promote", "--run", str(proven), "--name", "light"]
    code = f"import sys; from pipeline.cli import main; assert main({words}) == 0; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
    assert version("light") == "1" and PromoteConfig().alias == "champion"
