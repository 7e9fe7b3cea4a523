"""Which rows go where: as the data says it, in groups, and otherwise exactly as scikit-learn cuts them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from models.recipes import RECIPES, recipe
from pipeline.config import RunConfig
from pipeline.data import find, matching
from pipeline.data.spec import SPLITS, DataSpec, Samples, Source
from pipeline.data.split import held_out, split
from pipeline.errors import UserError
from pipeline.task import task

Make = Callable[..., RunConfig]
Rows = dict[str, np.ndarray]
FEW = ("a", "b", "c")


def cut(samples: Samples, *, classes: tuple[str, ...] = FEW, **flags: Any) -> Rows:
    """Return the rows of the splits of own data of classes, or of a regression where there are none."""
    spec = DataSpec(name="own", task="multiclass" if classes else "regression", sample_shape=(1,), classes=classes)
    source = Source(summary="", spec=spec, num_train=len(samples.y), load=lambda data_dir, seed: samples, is_own=True)
    config = dataclasses.replace(RunConfig(), dataset="own", **flags)
    return split(samples, config, source)


def samples(y: np.ndarray, **more: Any) -> Samples:
    return Samples(np.zeros((len(y), 1), np.float32), y, **more)


def labels(count: int, seed: int = 0, *, shares: tuple[float, ...] = (0.6, 0.3, 0.1)) -> np.ndarray:
    return np.random.default_rng(seed).choice(len(shares), count, p=shares)


def assert_each_once(rows: Rows, count: int) -> None:
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(count))


@pytest.mark.parametrize("dataset", [name for name in matching() if name != "mnist"])
@pytest.mark.parametrize("seed", [0, 7])
def test_data_without_groups_is_cut_as_scikit_learn_cuts_it(dataset: str, seed: int, make_config: Make) -> None:
    """The rows and their order: runs of before this issue must find the tensors that they were trained on."""
    model = next(m for m in RECIPES if recipe(m, "default")["dataset"] == dataset)
    config = make_config(model=model, split_seed=seed)
    source = find(dataset)
    whole = source.load(config.data_dir, seed)
    strata = whole.y if task(source.spec.task).has_strata else None
    sizes = [round(len(whole.y) * share) for share in (source.test_fraction, source.val_fraction)]
    rest, test = train_test_split(np.arange(len(whole.y)), test_size=sizes[0], random_state=seed, stratify=strata)
    left = None if strata is None else strata[rest]
    train, val = train_test_split(rest, test_size=sizes[1], random_state=seed, stratify=left)
    found = split(whole, config, source)
    assert {name: rows.tolist() for name, rows in found.items()} == {
        "train": train.tolist(), "val": val.tolist(), "test": test.tolist()
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("has_classes", [True, False])
def test_any_shares_of_any_classes_are_held_out_as_scikit_learn_does_it(seed: int, has_classes: bool) -> None:
    """Ties of classes that are as frequent, and remainders of all kinds, are broken by the same random numbers."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, [5, 60, 3000][seed % 3], rng.integers(2, 40))
    strata = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    size = int(rng.integers(len(counts), len(strata) - len(counts) + 1))
    stratify = strata if has_classes else None
    expected = train_test_split(np.arange(len(strata)), test_size=size, random_state=seed, stratify=stratify)
    found = held_out(stratify, len(strata), size, np.random.RandomState(seed))
    assert [rows.tolist() for rows in found] == [rows.tolist() for rows in expected]


@pytest.mark.parametrize(("val", "test"), [(0.2, 0.2), (0.1, 0.3), (0.0, 0.2), (0.2, 0.0), (0.0, 0.0), (0.05, 0.9)])
@pytest.mark.parametrize("classes", [FEW, ()], ids=["classes", "numbers"])
def test_shares_are_of_all_samples(val: float, test: float, classes: tuple[str, ...]) -> None:
    y = labels(400) if classes else np.random.default_rng(0).normal(size=(400, 1)).astype(np.float32)
    rows = cut(samples(y), classes=classes, val_split=val, test_split=test)
    assert_each_once(rows, 400)
    assert len(rows["val"]) == round(400 * val) and len(rows.get("test", [])) == round(400 * test)
    assert ("test" in rows) == bool(test)
    for of_split in rows.values():
        if classes and len(of_split) > 50:
            assert np.abs(np.bincount(y[of_split]) / len(of_split) - np.bincount(y) / 400).max() < 0.03


@pytest.mark.parametrize("seed", range(20))
def test_groups_never_lie_in_two_splits_and_classes_keep_their_share(seed: int) -> None:
    """Groups of 1 to 9 samples, of one class each, numbered in any way."""
    source = np.random.default_rng(seed)
    sizes = source.integers(1, 10, 240)
    names = source.choice(10**9, 240, replace=False)
    groups, y = np.repeat(names, sizes), np.repeat(labels(240, seed), sizes)
    order = source.permutation(len(y))
    groups, y = groups[order].astype(np.int64), y[order]
    rows = cut(samples(y, groups=groups), split_seed=seed)
    assert_each_once(rows, len(y))
    held = [set(groups[each].tolist()) for each in rows.values()]
    assert sum(map(len, held)) == len(set(groups.tolist())) == len(set().union(*held))
    for name in ("val", "test"):
        assert len(rows[name]) / len(y) == pytest.approx(0.2, abs=0.06)
        assert np.abs(np.bincount(y[rows[name]], minlength=3) / len(rows[name]) - np.bincount(y) / len(y)).max() < 0.12


@pytest.mark.parametrize("seed", range(12))
def test_groups_of_several_classes_or_of_numbers_stay_together_too(seed: int) -> None:
    """With some seeds one group alone is mostly of the rare class, which is no reason to refuse the data."""
    source = np.random.default_rng(seed)
    groups = source.integers(0, 60, 500).astype(np.int64)
    for y, classes in ((labels(500, seed), FEW), (source.normal(size=(500, 2)).astype(np.float32), ())):
        rows = cut(samples(y, groups=groups), classes=classes, split_seed=seed)
        assert_each_once(rows, 500)
        held = [set(groups[each].tolist()) for each in rows.values()]
        assert sum(map(len, held)) == len(set().union(*held)) and all(held)


def test_groups_of_one_sample_each_give_the_sizes_of_no_groups() -> None:
    y = labels(300)
    alone, grouped = cut(samples(y)), cut(samples(y, groups=np.arange(300)[::-1].copy()))
    assert {name: len(rows) for name, rows in alone.items()} == {name: len(rows) for name, rows in grouped.items()}


def test_the_same_seed_cuts_alike_and_another_one_otherwise() -> None:
    y, groups = labels(300), np.arange(300) // 3
    for more in ({}, {"groups": groups}):
        first, again, other = (cut(samples(y, **more), split_seed=seed) for seed in (3, 3, 4))
        assert all(np.array_equal(first[name], again[name]) for name in SPLITS)
        assert not np.array_equal(first["test"], other["test"])


def test_splits_of_its_own_are_kept_in_the_order_of_the_data() -> None:
    own = np.array(["test", "train", "val", "train", "test"] * 20)
    rows = cut(samples(labels(100), split=own))
    assert {name: each.tolist() for name, each in rows.items()} == {n: np.flatnonzero(own == n).tolist() for n in SPLITS}


@pytest.mark.parametrize(("own", "cut_off"), [("val", "test"), ("test", "val")])
def test_a_split_that_is_missing_is_cut_from_train_alone(own: str, cut_off: str) -> None:
    given = np.array([own, "train", "train", "train"] * 50)
    rows = cut(samples(labels(200), split=given))
    assert_each_once(rows, 200)
    assert rows[own].tolist() == np.flatnonzero(given == own).tolist()
    assert len(rows[cut_off]) == 30 and (given[rows[cut_off]] == "train").all()


def test_groups_that_lie_in_two_splits_of_its_own_are_taken_out_of_the_earlier_and_told(capsys: Any) -> None:
    own = np.array(["train"] * 60 + ["val"] * 20 + ["test"] * 20)
    groups = np.arange(100)
    groups[[0, 1]] = 99  # of train, and in test
    groups[2] = groups[60] = 1000  # in train and val
    groups[61] = groups[80] = 2000  # in val and test
    rows = cut(samples(labels(100), split=own, groups=groups))
    assert rows["train"].tolist() == list(range(3, 60)) and rows["val"].tolist() == [60, *range(62, 80)]
    assert rows["test"].tolist() == list(range(80, 100))
    said = capsys.readouterr().out
    assert "3 samples of train are left out" in said and "1 samples of val are left out" in said


def test_a_class_of_one_group_is_refused_in_a_sentence_that_names_it() -> None:
    y, groups = labels(100), np.arange(100)
    groups[y == 2] = 1000
    with pytest.raises(UserError, match=r"^dataset=own is too small .*a single group of c\).*--val_split 0") as raised:
        cut(samples(y, groups=groups))
    assert len(raised.value.messages) == 1
    rows = cut(samples(y, groups=groups), val_split=0, test_split=0)
    assert len(rows["train"]) == 100


def test_one_group_of_all_samples_is_refused() -> None:
    with pytest.raises(UserError, match=r"^dataset=own is too small"):
        cut(samples(np.zeros((50, 1), np.float32), groups=np.zeros(50, np.int64)), classes=())


def test_a_class_of_one_sample_is_refused_in_a_sentence_that_names_it() -> None:
    with pytest.raises(UserError, match=r"^dataset=own is too small .*a single sample of c\).*--val_split 0"):
        cut(samples(np.array([0] * 40 + [1] * 40 + [2])))


def test_a_tensor_that_was_prepared_has_the_rows_of_its_split(make_config: Make, tmp_path: Path) -> None:
    from pipeline.data.prepare import prepare

    x = np.arange(60, dtype=np.float32)[:, None] + 0.5
    np.savez(tmp_path / "own.npz", x=x, y=np.arange(60) % 2)
    config = make_config(model="mlp", dataset=tmp_path / "own.npz", cache_dir=tmp_path / "cache")
    folder = prepare(config)
    rows = cut(samples(np.arange(60) % 2), classes=("0", "1"))
    for name, of_split in rows.items():
        assert np.array_equal(np.load(folder / f"{name}_x.npy"), x[of_split])
