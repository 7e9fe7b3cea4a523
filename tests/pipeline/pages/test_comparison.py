"""Runs beside each other: tested sample by sample where the samples are the same, and said where they are not."""

from __future__ import annotations

import dataclasses
import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from pipeline import files, manifest
from pipeline.answers import Answers
from pipeline.cli import main
from pipeline.pages import comparison
from pipeline.pages.comparison import Member
from pipeline.run import Run
from tests.pipeline.pages.test_report import HOSTILE, complete

Trained = Callable[[str], Run]


def _member(letter: str, run: Run, right: list[bool] | np.ndarray, *, sha256: str = "s", seed: int = 0) -> Member:
    decided = np.where(right, 1, 0)
    found = Answers(scores=np.zeros((len(decided), 1), np.float32), target=np.ones(len(decided), int), decided=decided,
                    split="test", split_sha256=sha256)  # fmt: skip
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, seed=seed))
    return Member(letter=letter, run=run, found=found, value=float(np.mean(right)), interval=None, proof="passed")


def test_a_difference_is_believed_where_only_one_side_is_right_and_not_where_both_are(trained: Trained) -> None:
    run, rng = trained("mlp"), np.random.default_rng(0)
    same = rng.random(500) < 0.9
    better = same | (rng.random(500) < 0.6)
    shuffled = rng.permutation(same)
    found = comparison.pairs([_member("A", run, same), _member("B", run, better), _member("C", run, shuffled)])
    told = {(p.first.letter, p.second.letter): p for p in found}
    assert told["A", "B"].better == "B" and told["A", "B"].p < 1e-4 and told["A", "B"].only == (0, int((better & ~same).sum()))
    assert told["A", "C"].better == "" and told["A", "C"].difference == 0
    low, high = told["A", "B"].interval or (0, 0)
    assert 0 < low < told["A", "B"].difference < high


def test_chance_alone_finds_a_difference_in_at_most_one_of_twenty_comparisons(trained: Trained) -> None:
    run, rng, false = trained("mlp"), np.random.default_rng(1), 0
    for _ in range(40):
        found = comparison.pairs([_member(letter, run, rng.random(150) < 0.8) for letter in "ABCD"])
        false += any(pair.better for pair in found)
    assert false <= 4


@pytest.mark.parametrize("kind", ["regression", "multilabel"])
def test_others_are_tested_by_a_paired_bootstrap(kind: str, trained: Trained) -> None:
    run, rng = trained("polynomial"), np.random.default_rng(2)
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, task=kind))
    target = (rng.random((200, 3)) < 0.5).astype(np.float32)

    def member(letter: str, spread: float) -> Member:
        scores = (2 * target - 1 + spread * rng.normal(size=target.shape)).astype(np.float32)
        decided = (scores > 0).astype(int) if kind == "multilabel" else None
        found = Answers(scores=scores, target=target, decided=decided, split="test", split_sha256="s")
        value = float(comparison.figures.metric(comparison.figures.per_sample(found).mean(), found))
        return Member(letter=letter, run=run, found=found, value=value, interval=None, proof="")

    found = comparison.pairs([member("A", 3.0), member("B", 0.5), member("C", 0.5)])
    assert [pair.better for pair in found] == ["B", "C", ""] and all(pair.only is None for pair in found)


def _copy(run: Run, folder: Path, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """Lay a copy of a run elsewhere, as a run of its own, with answers that `change` has changed."""
    from safetensors import safe_open

    shutil.copytree(
        run.folder, folder, ignore=shutil.ignore_patterns("export", "rejected", "checkpoints", manifest.TRACKING, manifest.PAGE)
    )
    run_id = uuid.uuid4().hex
    config = json.loads((folder / "config.json").read_text()) | {"mlflow_run_id": run_id}
    del config["sha256"]
    files.write_json(folder / "config.json", config | {"sha256": files.digest_of(config)})
    path = folder / manifest.ANSWERS
    with safe_open(path, framework="numpy") as file:
        about = json.loads(file.metadata()["about"]) | {"mlflow_run_id": run_id}
        arrays = {name: file.get_tensor(name) for name in ("scores", "target", "decided")}
    if change:
        change(arrays)
    path.write_bytes(save(arrays, {"about": json.dumps(about)}))
    (folder / manifest.MANIFEST).write_text(json.dumps({"mlflow_run_id": run_id, "sha256": {}}))
    for stage in ("train", "evaluate"):
        manifest.seal(folder, run_id, *manifest.FILES[stage])
    return folder


def test_the_command_tells_and_writes_a_page(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def spoil(arrays: dict[str, Any]) -> None:
        arrays["decided"] = np.where(np.arange(len(arrays["target"])) % 3, arrays["decided"], 1 - arrays["target"])

    first = trained("mlp").folder
    second = _copy(trained("mlp"), tmp_path / "a<script>", spoil)
    page = tmp_path / "pages" / "comparison.html"
    assert main(["compare", "--runs", str(first), str(second), "--output", str(page)]) == 0
    said = capsys.readouterr().out
    assert "yes: A is better" in said and "B - A" in said and f"page: {page}" in said
    text = page.read_text()
    complete(text)
    assert "a&lt;script&gt;" in text and "yes: A is better" in text
    assert main(["compare", f"--runs={first},{second}", "--output", str(page)]) == 2
    assert "is there already" in capsys.readouterr().err and page.read_text() == text
    assert main(["compare", f"--runs={first},{second}", "--output", str(page), "--overwrite", "true"]) == 0
    assert page.read_text() == text


def test_runs_on_other_samples_are_shown_and_not_tested(
    trained: Trained, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "c.html"
    assert (
        main(["compare", "--runs", *(str(trained(m).folder) for m in ("mlp", "two_layer", "cnn")), "--output", str(page)]) == 0
    )
    said = capsys.readouterr().out
    assert "evaluated on 3 different sets of samples" in said and "so no difference can be tested" in said
    complete(page.read_text())
    assert "so no difference can be tested" in page.read_text()


def test_names_of_folders_do_not_become_html(trained: Trained, tmp_path: Path) -> None:
    run = trained("mlp")
    evil = dataclasses.replace(run, data=dataclasses.replace(run.data, name=HOSTILE), git_commit=HOSTILE)
    comparison.compare([evil, Run.open(_copy(run, tmp_path / "b"))], output=tmp_path / "c.html")
    complete((tmp_path / "c.html").read_text())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "runs: nothing was given"),
        (["--runs", "MLP"], "two runs or more are compared"),
        (["--runs", "MLP", "MLP"], "is given twice"),
        (["--runs", "MLP", "CURVE"], "are measured by accuracy and by rmse, which cannot be compared"),
        (["--runs", "MLP", "nowhere"], "is neither a folder nor an MLflow run id"),
        (["--runs", *["MLP"] * 21], "at most 20 are compared"),
        (["--runs", "MLP", "CNN", "--output", "x.csv"], "is no page"),
        (["--runs", "MLP", "CNN", "--overwrite", "true"], "has no effect without --output"),
    ],
)
def test_a_mistake_gets_a_sentence(
    words: list[str], said: str, trained: Trained, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    runs = {"MLP": "mlp", "CURVE": "polynomial", "CNN": "cnn"}
    assert main(["compare", *(str(trained(runs[w]).folder) if w in runs else w for w in words)]) == 2
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1 and not [*tmp_path.iterdir()]
