"""The trial before training: every fault of a network is named, with its operator and line, and sound ones pass."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch

import models
from export.trial import trial
from models import MODELS
from pipeline.data import find
from pipeline.data.spec import DataSpec
from pipeline.resolve import resolve
from pipeline.task import TASKS, task
from tests.models.hostile import FC, UNFIT, network

VECTORS = DataSpec(name="v", task="multiclass", sample_shape=(4,), classes=("a", "b", "c"))
IMAGES = DataSpec(
    name="i", task="multiclass", sample_shape=(3, 32, 32), dtype="uint8", value_range=(0, 255), classes=("a", "b", "c")
)
ALWAYS = (
    "NaN", "infinite in training", "no weights", "frozen weights", "detached", "weights of no use",
    "another answer in training", "an operation in place",
)  # fmt: skip


def tried(source: str, data: DataSpec = VECTORS, **more: object) -> list[str]:
    Path("net.py").write_text(source)
    name = "net.py:Net"
    return trial(name, lambda: models.build(name, data, {}), data=data, task=task(data.task), **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", UNFIT)
def test_a_network_that_is_not_fit_is_a_sentence_with_its_operator_and_line(
    case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    source, said = UNFIT[case]
    (problem,) = tried(source)
    assert problem.startswith("model=net.py:Net ") and "\n" not in problem and problem.endswith(".")
    assert re.search(said, problem), problem
    assert problem.endswith("--check_export false trains it all the same.") == (case not in ALWAYS)
    assert "def forward" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("case", UNFIT)
def test_what_cannot_be_exported_is_trained_all_the_same_where_that_is_asked_for(case: str) -> None:
    assert bool(tried(UNFIT[case][0], check_export=False)) == (case in ALWAYS)


@pytest.mark.parametrize("kind", TASKS)
def test_an_own_network_of_any_task_passes(kind: str) -> None:
    data = DataSpec(name="v", task=kind, sample_shape=(4,), classes=("a", "b"), targets=("s", "t"))
    init = FC + "self.bn = nn.BatchNorm1d(4)\nself.drop = nn.Dropout()"
    assert tried(network("return self.fc(self.drop(self.bn(h)))", init), data) == []
    assert tried(network("return self.fc(self.drop(self.bn(h))), h", init), data) == []


@pytest.mark.parametrize("name", MODELS)
def test_every_built_in_model_passes(name: str) -> None:
    config = resolve({"model": name})
    data = find(config.dataset).spec.resized(config.image_size)
    assert trial(name, lambda: models.build(name, data, {}), data=data, task=task(data.task), num_ranks=2) == []


def test_resnet18_passes_within_seconds() -> None:
    name = "torchvision:resnet18"
    start = time.process_time()
    assert trial(name, lambda: models.build(name, IMAGES, {}), data=IMAGES, task=task("multiclass"), num_ranks=2) == []
    assert time.process_time() - start < 30


def test_weights_of_no_use_are_told_where_ranks_would_wait_for_them() -> None:
    source = network("return self.fc(h)", FC + "self.idle = nn.Linear(2, 2)")
    assert tried(source) == []
    (problem,) = tried(source, num_ranks=2)
    assert "has 2 weights that its scores do not hang on (idle.weight, idle.bias), for whose gradients 2 ranks" in problem


def test_the_trial_leaves_torchs_random_numbers_as_they_were() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tried(network("return self.fc(F.dropout(h, training=True))"))
    assert torch.equal(torch.rand(3), expected)


def test_real_samples_are_tried_where_they_are_given() -> None:
    source = network("assert (x == 7).all()\nreturn self.fc(h)")
    Path("net.py").write_text(source.replace("assert (x == 7).all()", "h = h / (x.abs().amax(1, keepdim=True) - 7)"))
    build = lambda: models.build("net.py:Net", VECTORS, {})  # noqa: E731
    assert trial("net.py:Net", build, data=VECTORS, task=task("multiclass")) == []
    (problem,) = trial("net.py:Net", build, data=VECTORS, task=task("multiclass"), x=torch.full((20, 4), 7.0))
    assert "not finite" in problem
