"""Bootstrap intervals and tests of differences, against scipy and against what is drawn on purpose."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats
from sklearn.metrics import roc_auc_score

from pipeline import intervals


def test_an_interval_of_a_mean_is_nearly_that_of_scipy() -> None:
    values = np.random.default_rng(1).exponential(size=300)
    low, high = intervals.interval(intervals.resampled(values[:, None])[:, 0] / len(values)) or (0, 0)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=2).confidence_interval
    width = theirs.high - theirs.low
    assert abs(low - theirs.low) < 0.08 * width and abs(high - theirs.high) < 0.08 * width


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng, hits, num_sets = np.random.default_rng(3), 0, 200
    for _ in range(num_sets):
        values = (rng.random((80, 1)) < 0.7).astype(float)
        low, high = intervals.interval(intervals.resampled(values)[:, 0] / 80) or (0, 0)
        hits += low <= 0.7 <= high
    assert 0.89 * num_sets <= hits <= 0.99 * num_sets


def test_resamples_are_the_same_each_time_and_whole() -> None:
    first, second = (np.concatenate([*intervals.weights(50)]) for _ in range(2))
    assert (first == second).all() and first.shape == (2000, 50) and (first.sum(1) == 50).all()
    values = np.random.default_rng(0).normal(size=(50, 3))
    np.testing.assert_allclose(intervals.resampled(values), intervals.resampled(sparse.csr_array(values)))


def test_a_large_set_is_drawn_fewer_times_and_a_part_at_a_time() -> None:
    assert [intervals.num_resamples(n) for n in (1, 10_000, 400_000, 10**8)] == [2000, 2000, 500, 200]
    assert next(intervals.weights(400_000)).shape[0] < 20


def test_the_area_under_the_curve_is_that_of_scikit_learn_with_ties_and_weights() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 12, 200).astype(float), rng.random(200) < 0.3
    area, drawn = intervals.roc_auc(scores, positive)
    assert area == pytest.approx(roc_auc_score(positive, scores))
    first = next(intervals.weights(200))[0]
    assert drawn[0] == pytest.approx(roc_auc_score(positive, scores, sample_weight=first))


def test_mcnemar_is_the_exact_binomial_test_of_the_samples_on_which_two_differ() -> None:
    right, other = np.array([1] * 80 + [0] * 20, bool), np.array([1] * 70 + [0] * 10 + [1] * 2 + [0] * 18, bool)
    assert intervals.mcnemar(right, other)[:2] == (10, 2)
    assert intervals.mcnemar(right, other)[2] == pytest.approx(2 * sum(stats.binom.pmf(k, 12, 0.5) for k in range(3)))
    assert intervals.mcnemar(right, right) == (0, 0, 1.0)


def test_holm_raises_p_values_by_how_many_are_asked() -> None:
    assert intervals.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert intervals.holm([0.6, 0.9]) == [1.0, 1.0] and intervals.holm([]) == []


def test_a_bootstrap_p_value_is_small_only_where_differences_have_one_sign() -> None:
    assert intervals.p_value(np.ones(1999)) == pytest.approx(0.001)
    assert intervals.p_value(np.linspace(-1, 1, 1999)) > 0.9 and intervals.p_value(np.zeros(1999)) == 1.0
