"""Batch normalization on one and on two ranks: what is the same, what differs, and by how much."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from models import MODELS
from pipeline.distributed import Ranks, single_process
from pipeline.norms import Norms, mean, synchronized
from tests.networks import NORMED, Normed
from tests.pipeline.norms_worker import CASES, run_cases

_LAUNCH = "import sys; from pipeline.distributed import launch; sys.exit(launch(sys.argv[1:], 2))"


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> dict[int, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks2")
    words = [sys.executable, "-c", _LAUNCH, "tests.pipeline.norms_worker", str(folder), str(cache_dir)]
    patch = pytest.MonkeyPatch()
    patch.setitem(MODELS, "normed", NORMED)  # type: ignore[arg-type]
    alone = run_cases(tmp_path_factory.mktemp("ranks1"), str(cache_dir), single_process())
    patch.undo()
    done = subprocess.run(words, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    return {1: alone, 2: json.loads((folder / "seen.json").read_text())}


@pytest.mark.timeout(240)
@pytest.mark.parametrize("case", CASES)
def test_running_statistics_are_the_same_on_all_ranks(seen: dict[int, Any], case: str) -> None:
    first, second = seen[2][case]["running"]
    assert first == second and len(first) == 4
    assert all(np.isfinite(values).all() for values in first.values())


def test_one_and_two_ranks_differ_by_what_each_normalizes_by(seen: dict[int, Any]) -> None:
    """Before any update: the statistics of 51 samples are not those of 102. The curves stay close, and end in one place."""
    alone, together = (np.array(seen[world]["even parts"]["losses"]) for world in (1, 2))
    apart = np.abs(together / alone - 1)
    print(f"training loss: {apart[0]:.1e} apart in step 1, {apart.max():.1e} at most in {len(apart)} steps")
    assert 1e-6 < apart[0] < 2e-2 and apart.max() < 5e-2
    vals = [np.array(seen[world]["even parts"]["val"]) for world in (1, 2)]
    print(f"validation loss: {np.abs(vals[1] / vals[0] - 1).max():.1e} apart")
    np.testing.assert_allclose(vals[1], vals[0], rtol=5e-2)
    (one,), (two, _) = (seen[world]["even parts"]["running"] for world in (1, 2))
    for name in one:
        far = np.abs(np.subtract(two[name], one[name])).max() / np.abs(one[name]).max()
        print(f"{name}: {far:.1e} apart")
        assert far < 5e-2


@pytest.mark.parametrize("world", [1, 2])
def test_a_training_with_normalization_resumes_bit_for_bit_in_mid_epoch(seen: dict[int, Any], world: int) -> None:
    assert seen[world]["resumed is whole"] == [True, True]


def test_a_part_of_one_sample_or_none_is_normalized_by_the_running_statistics(seen: dict[int, Any]) -> None:
    assert {seen[world]["a sample left over"]["last"] for world in (1, 2)} == {1}
    assert all(np.isfinite(seen[world]["a sample left over"]["losses"]).all() for world in (1, 2))
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    norms = Norms(network, network)
    for count, trains in ((4, True), (1, False), (0, False), (2, True)):
        norms.for_part(count)
        network(torch.randn(count, 3)).sum().backward()
        assert network[0].training == trains
    assert network[0].num_batches_tracked == 2


def test_the_mean_over_ranks_keeps_what_is_equal_bit_for_bit() -> None:
    for count in (1, 2, 3, 5, 7):
        value = {"a": torch.randn(500), "n": torch.tensor(3), "mask": torch.tensor([-torch.inf, 1e38, 1e-45])}
        found = mean([value] * count)
        assert all(torch.equal(found[name], value[name]) for name in value)
    assert mean([{"a": torch.tensor([1.0, 2])}, {"a": torch.tensor([3.0, 2])}])["a"].tolist() == [2, 2]


def test_ranks_with_a_gpu_each_normalize_by_the_whole_batch_and_keep_their_names() -> None:
    network = Normed(input_shape=(1, 8, 8), num_outputs=10)
    names = list(network.state_dict())
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    for ranks in (single_process(), Ranks(0, 0, 1, gpu), Ranks(0, 0, 2, cpu)):
        assert synchronized(network, ranks) is network and type(network.bn1) is nn.BatchNorm2d
    converted = synchronized(network, Ranks(0, 0, 2, gpu))
    assert sum(isinstance(each, nn.SyncBatchNorm) for each in converted.modules()) == 2
    assert list(converted.state_dict()) == names and Norms(converted, converted).synchronized


class _Own(nn.BatchNorm2d):
    pass


def test_a_normalization_of_somebodys_own_is_left_as_it_is() -> None:
    network = nn.Sequential(_Own(3))
    assert synchronized(network, Ranks(0, 0, 2, torch.device("cuda", 0))) is network and type(network[0]) is _Own
