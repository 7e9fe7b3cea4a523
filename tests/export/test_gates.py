"""What a file that loses something is held to, number by number, and where it lies afterwards, whatever cuts that off."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from export import gates, rejected
from export.gates import Limits
from pipeline import manifest
from pipeline.errors import UserError
from pipeline.run import Run
from pipeline.task import task
from tests.export.conftest import Trained
from tests.faults.cutter import Hook

LABELS = np.array([0, 1, 2, 0] * 50)
SCORES = np.eye(3, dtype=np.float32)[LABELS]


def _missed(got: np.ndarray, limits: Limits | None = None, **more: float) -> list[str]:
    found = gates.figures(got, SCORES, LABELS, task("multiclass")) | more
    return [*gates.missed(found, limits or Limits(), task=task("multiclass"), split="test")]


def _flipped(number: int) -> np.ndarray:
    got = SCORES.copy()
    got[:number] = got[:number, [1, 2, 0]]
    return got


def test_one_decision_in_two_hundred_may_be_another_and_two_may_not() -> None:
    assert _missed(_flipped(1)) == []
    metric, agreement = _missed(_flipped(2))
    assert "its accuracy over the test samples is 0.99, 0.0100 lower than torch's 1: 0.005 is allowed" in metric
    assert "99.00% of its decisions over the test samples are torch's (2 samples flip): 99.5% are needed" in agreement
    assert len(_missed(_flipped(2), Limits(max_metric_drop=0.01))) == 1, "the agreement does not hang on that limit"


def test_decisions_that_flip_to_the_right_ones_still_miss_the_agreement() -> None:
    found = gates.figures(SCORES, _flipped(20), LABELS, task("multiclass"))
    assert found["metric_drop"] == pytest.approx(-0.1) and found["agreement"] == 0.9
    (only,) = gates.missed(found, Limits(), task=task("multiclass"), split="test")
    assert "are torch's" in only


@pytest.mark.parametrize(("share", "passes"), [(1.004, True), (1.006, False), (float("nan"), False)])
def test_of_regression_the_error_may_be_half_a_percent_worse(share: float, passes: bool) -> None:
    labels = np.zeros((100, 1), np.float32)
    want = np.full_like(labels, 2.0)
    found = gates.figures(want * share, want, labels, task("regression"))
    assert "agreement" not in found
    problems = [*gates.missed(found, Limits(), task=task("regression"), split="test")]
    assert (problems == []) == passes
    if share == 1.006:
        assert "its rmse over the test samples is 2.012, 0.60% worse than torch's 2: 0.50% is allowed" in problems[0]


def test_a_perfect_regression_bears_no_error_at_all() -> None:
    labels = np.ones((10, 1), np.float32)
    assert gates.figures(labels, labels, labels, task("regression"))["metric_drop"] == 0
    assert gates.figures(labels + 1e-3, labels, labels, task("regression"))["metric_drop"] == float("inf")


def test_speed_is_asked_for_only_where_it_is_and_one_that_cannot_be_told_misses_it() -> None:
    assert _missed(SCORES, speedup=0.1) == []
    assert _missed(SCORES, Limits(min_speedup=1.5), speedup=1.6) == []
    assert "it is 1.40 times as fast as model.onnx" in _missed(SCORES, Limits(min_speedup=1.5), speedup=1.4)[0]
    assert "it is 0.00 times as fast" in _missed(SCORES, Limits(min_speedup=1.5), speedup=None)[0]  # type: ignore[arg-type]


class Cut(BaseException):
    """What nobody catches."""


@pytest.mark.parametrize("problems", [["it is no good"], []])
def test_a_file_that_is_moved_lies_in_one_place_whatever_cuts_that_off(
    problems: list[str], exports: Callable[[str], Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To `rejected/` and back: the manifest names a file that is whole at each moment, and done again it ends the same."""
    start = tmp_path / "start"
    shutil.copytree(exports("two_layer").run.folder, start)
    here, there = ("export", "rejected") if problems else ("rejected", "export")
    (start / here).mkdir(exist_ok=True)
    (start / here / "model.int8.onnx").write_bytes(b"some model")
    if not problems:
        (start / "rejected" / "model.int8.json").write_text("{}")
    Run.open(start, check=False).seal("train")
    Run.open(start, check=False).seal("export")
    gate = {"min_speedup": 0.0, "speedup": 2.0}
    parts = {"onnx-int8": {"sha256": "0", "metric": 0.5, "problems": problems, "gate": gate}}

    def settled(folder: Path) -> dict[str, bytes]:
        rejected.settle(Run.open(folder, check=False), parts)
        manifest.check(folder)
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("model.int8.*")}

    shutil.copytree(start, tmp_path / "run")
    with Hook(lambda *_: None) as hook:
        whole = settled(tmp_path / "run")
    assert set(whole) == {f"{there}/model.int8.onnx", *(["rejected/model.int8.json"] if problems else [])}
    places = [(name, after) for name in hook.names for after in (False, True)] + [("unlink", False)]
    assert len(places) >= 5
    for place in places:
        shutil.rmtree(tmp_path / "run")
        shutil.copytree(start, tmp_path / "run")

        def strike(name: str, number: int, after: bool) -> None:
            if (name, after) == place:  # noqa: B023
                raise Cut

        def unlink(path: Path, missing_ok: bool = False) -> None:
            raise Cut

        with monkeypatch.context() as patch, pytest.raises(Cut), Hook(strike):
            if place[0] == "unlink":
                patch.setattr(Path, "unlink", unlink)
            settled(tmp_path / "run")
        manifest.check(tmp_path / "run")  # raises where the manifest names what is not there
        assert len([name for name in manifest.read(tmp_path / "run")[1] if name.endswith("model.int8.onnx")]) == 1
        assert settled(tmp_path / "run") == whole, place


def test_a_format_that_was_asked_for_and_is_gone_is_missed(exports: Callable[[str], Trained], tmp_path: Path) -> None:
    from export.verify import verify_run

    trained = exports("two_layer")
    shutil.copytree(trained.run.folder, tmp_path / "run")
    config = tmp_path / "run" / "export" / "config.json"
    config.write_text(config.read_text().replace('"onnx,torchscript,pt2"', '"onnx,onnx-int8"'))
    with pytest.raises(UserError, match=r"has no model.int8.onnx in its export/. Make it: python -m pipeline export --run"):
        verify_run(Run.open(tmp_path / "run", check=False), data=trained.data)
